"""A process of the fleet: the container's own entrypoint, whose forwards are counted and whose delays are shorter."""

from __future__ import annotations

import os
import sys

from handler.__main__ import main

from . import scaled, steps

if __name__ == "__main__":
    scaled.install()
    steps.install(os.environ[steps.FILE])
    sys.exit(main([]))
