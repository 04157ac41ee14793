"""The container's health check, ``python -m handler.work.liveness``: is the worker alive?

The worker touches ``ALIVE_FILE`` at every turn of its loop, unless it is broken or its last poll failed: one that has
not polled successfully for MOST_SECONDS is dead. The check reads the file's age and loads nothing else.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from ..errors import SettingsError
from ..settings import Settings

MOST_SECONDS = 300.0
"""An older touch means a dead worker. One poll with all its retries may take 3.5 minutes while SQS is unreachable."""


def touch(file: str) -> None:
    """Touches ``file`` if one is named. A failure is ignored here: the health check finds the file too old."""
    if file:
        try:
            Path(file).touch()
        except OSError:
            return


def age(file: str) -> float:
    """Seconds since the last touch. Raises OSError if there is no file."""
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
