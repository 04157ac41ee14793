"""``python -m tests.chaos --seed 3 --tasks 300``: the fleet under fire. Exit status 1 when an invariant fails.

The last line on stdout is JSON with the figures.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from handler.logs import logger

from .figures import figures
from .report import table
from .run import run


def main() -> int:
    options = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__.splitlines()[0])
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--tasks", type=int, default=60)
    options.add_argument("--limit", type=float, default=900, help="seconds after which the run counts as stuck")
    options.add_argument("--logs", type=Path, help="a folder to leave the workers' logs in")
    options.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the workers")
    chosen = options.parse_args()
    logger.setLevel("CRITICAL")  # this process only calls; what the faults do to its calls is part of the plan
    with tempfile.TemporaryDirectory(prefix="chaos-") as scratch:
        folder = chosen.logs or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        settings = dict(pair.split("=", 1) for pair in chosen.set)
        found = figures(run(chosen.seed, chosen.tasks, folder, limit=chosen.limit, settings=settings))
    table(found)
    for violation in found["violations"]:
        print("violated:", violation)
    print(json.dumps(found))
    return 1 if found["violations"] else 0


if __name__ == "__main__":
    sys.exit(main())
