"""Whether a worker is alive: ``python -m handler.work.liveness``, the container's health check.

The worker touches ``ALIVE_FILE`` at every turn of its loop; this looks how old the touch is, and loads nothing else.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from ..errors import SettingsError
from ..settings import Settings

MOST_SECONDS = 300.0
"""A poll with all its retries may take three and a half minutes while SQS is away; no worker need die of that."""


def touch(file: str) -> None:
    """Nothing where no ``file`` is named. A file that cannot be written is the health check's to report."""
    if file:
        try:
            Path(file).touch()
        except OSError:
            return


def age(file: str) -> float:
    """Seconds since the last touch. Raises OSError where there was none."""
    return time.time() - Path(file).stat().st_mtime


def main() -> int:
    """Exit status: 0 alive, 1 not (stderr says why)."""
    try:
        file = Settings.load().require("alive_file").alive_file
        seconds = age(file)
    except (OSError, SettingsError) as fault:
        print(f"no sign of life: {fault}", file=sys.stderr)  # noqa: T201
        return 1
    if seconds > MOST_SECONDS:
        print(f"the last sign of life is {seconds:.0f} s old", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
