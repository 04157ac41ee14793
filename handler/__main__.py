"""The container's entrypoint: Lambda's runtime client under Lambda, else the worker.

usage: python -m handler [HANDLER]

Under Lambda HANDLER names the handler (handler.status.handle), as in the image's CMD or the function's ImageConfig;
elsewhere it serves the queue QUEUE_URL until SIGTERM, and exits with 0 after that, with 1 if the model cannot be loaded
or the device or the disk has failed, with 2 if a setting is wrong. handler/README.md lists the settings.
"""

from __future__ import annotations

import sys

from .errors import DarkroomError, SettingsError
from .process import around_proxies
from .settings import Settings


def main(arguments: list[str]) -> int:
    """Returns the exit status."""
    if {"--help", "-h"} & set(arguments):
        print(__doc__)  # noqa: T201
        return 0
    try:
        settings = Settings.load()
        if settings.aws_lambda_runtime_api:
            from awslambdaric.__main__ import main as serve_lambda

            serve_lambda(["awslambdaric", *(arguments or ["handler.generate.handle"])])
            return 0
        around_proxies()
        from .worker import main as work

        return work(settings.require("bucket", "queue_url"))
    except DarkroomError as fault:
        print(f"{fault.code} {fault.message}", file=sys.stderr)  # noqa: T201
        return 2 if isinstance(fault, SettingsError) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
