"""An embedded AWS in a process of its own, which tells every request that it has answered.

No client is patched: a WSGI wrapper around the server's application writes a line for each, and the parent reads them.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from handler.cli.local.aws import EmbeddedAws

if TYPE_CHECKING:
    from collections.abc import Iterable
    from wsgiref.types import StartResponse, WSGIEnvironment

DELETED = "SQS DeleteMessage"
EMPTY = "SQS ReceiveMessage, empty"
HEALTH = "S3 GET health"


class CountedAws:
    """A context manager; inside it ``endpoint`` answers, and each request answered is an operation's name."""

    def __init__(self) -> None:
        self.endpoint = ""
        self._seen: list[str] = []
        self._changed = threading.Condition()

    def __enter__(self) -> CountedAws:
        command = [sys.executable, "-m", "tests.benchmarks.counted"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.endpoint = self._line()
        self._thread = threading.Thread(target=self._follow, name="counting", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.stdin:
            self._process.stdin.close()  # which tells it to end
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def forget(self) -> None:
        with self._changed:
            self._seen.clear()

    def until_deleted(self, timeout: float = 120) -> list[str]:
        """All requests since the last ``forget``, once a message has been deleted."""
        ends = time.monotonic() + timeout
        with self._changed:
            if not self._changed.wait_for(lambda: DELETED in self._seen, ends - time.monotonic()):
                raise TimeoutError("no message was deleted")
            return list(self._seen)

    def _line(self) -> str:
        return self._process.stdout.readline().strip() if self._process.stdout else ""

    def _follow(self) -> None:
        while line := self._line():
            with self._changed:
                self._seen.append(line)
                self._changed.notify_all()


class _Counting:
    def __init__(self, app: Any) -> None:
        self._app = app
        self._lock = threading.Lock()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        answer = b"".join(self._app(environ, start_response))
        name = operation(environ["REQUEST_METHOD"], environ["PATH_INFO"], environ.get("HTTP_X_AMZ_TARGET", ""), answer)
        with self._lock:
            print(name, flush=True)
        return [answer]


def operation(method: str, path: str, target: str, answer: bytes) -> str:
    """``SQS SendMessage``, ``S3 PUT record`` and the like: SQS tells by header, S3 by the kind of key."""
    if target:
        name = target.replace("AmazonSQS.", "SQS ")
        return EMPTY if name == "SQS ReceiveMessage" and b'"Messages"' not in answer else name
    key = "/".join(path.split("/")[2:])
    if method == "POST" and not key:
        return "S3 DELETE object"  # obstore deletes by DeleteObjects, a list of one
    kinds = {kind: key.startswith(f"{kind}/") for kind in ("index", "open", "health")}
    kinds |= {"record": key.endswith(".json")}
    return f"S3 {method} {next((kind for kind, fits in kinds.items() if fits), 'image' if key else 'bucket')}"


def main() -> None:
    """Serves until its standard input ends, as it does when the parent does."""
    with EmbeddedAws() as aws:
        server: Any = aws._server
        server.app = _Counting(server.app)
        print(aws.endpoint, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
