"""The container's entrypoint: Lambda's runtime client under Lambda, else the worker.

Under Lambda the first argument names the handler, as in the image's ``CMD`` or the function's ``ImageConfig``.
"""

from __future__ import annotations

import sys

from .settings import Settings


def main(arguments: list[str]) -> int:
    """Returns the exit status."""
    settings = Settings.load()
    if settings.aws_lambda_runtime_api:
        from awslambdaric.__main__ import main as serve_lambda

        serve_lambda(["awslambdaric", *(arguments or ["handler.generate.handle"])])
        return 0
    from .worker import main as work

    return work(settings)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
