"""An embedded AWS in a process of its own, whose IAM is turned on once all is set up: moto has one for everybody."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from .stacks import Aws

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def guarded() -> Iterator[tuple[Aws, Callable[[], None]]]:
    """The server, and what turns its IAM on."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.infra.guarded"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("no pipes")
        stdin, stdout = process.stdin, process.stdout
        endpoint = _line(stdout, "http://")

        def guard() -> None:
            stdin.write("guard\n")
            stdin.flush()
            _line(stdout, "guarded")

        try:
            yield Aws(endpoint), guard
        finally:
            stdin.close()  # which tells it to end
            process.wait(20)


def _line(stream: Iterator[str], start: str) -> str:
    """moto prints what it passes over; the next line of ours."""
    for line in stream:
        if line.startswith(start):
            return line.strip()
    raise RuntimeError("the embedded AWS ended")


def main() -> None:
    from moto.core.authorization import enable_iam_authentication

    from handler.cli.local.aws import EmbeddedAws

    with EmbeddedAws() as aws, ExitStack() as guard:
        print(aws.endpoint, flush=True)
        for _ in sys.stdin:
            guard.enter_context(enable_iam_authentication())
            print("guarded", flush=True)


if __name__ == "__main__":
    main()
