"""What a round of the doctor costs where 100,000 tasks have ended and 50 are open: requests to S3 and SQS, and seconds.

The embedded AWS runs in this process, so that the bucket can be filled past its HTTP door; the doctor itself goes
through it, and each request is counted as it arrives.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends

from handler.aws.queue import TaskQueue
from handler.aws.store import TaskStore
from handler.care.rounds import Doctor
from handler.cli.local.aws import CREDENTIALS, EmbeddedAws, create_resources
from handler.clock import utc_now
from handler.contract.request import GenerationRequest
from handler.logs import logger
from handler.process import use
from handler.task import moves

from .counted import operation
from .report import Report

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime
    from wsgiref.types import StartResponse, WSGIEnvironment

ENDED, OPEN = 100_000, 50
MOST_REQUESTS = 200


class _Counting:
    def __init__(self, app: Any) -> None:
        self._app, self.seen = app, Counter[str]()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        answer = b"".join(self._app(environ, start_response))
        target = environ.get("HTTP_X_AMZ_TARGET", "")
        self.seen[operation(environ["REQUEST_METHOD"], environ["PATH_INFO"], target, answer)] += 1
        return [answer]


def main() -> None:
    """Prints the table: each kind of request, all of them, and the seconds of a round, twice: with and without work."""
    report = Report("rounds")
    logger.setLevel("CRITICAL")
    os.environ.update(CREDENTIALS)
    aws = EmbeddedAws()
    server: Any = aws._server
    server.app = counting = _Counting(server.app)
    with aws:
        resources = create_resources(aws.endpoint)
        settings = use(**resources.variables, AWS_ENDPOINT_URL=aws.endpoint, NO_PROXY="127.0.0.1")
        store, queue = TaskStore(settings), TaskQueue(settings)
        _fill(resources.bucket, store)
        later = _Later(settings)
        doctor = Doctor(settings, later, queue)
        for what, ahead in (
            ("open tasks that nobody came for in an hour", 3600),
            ("the same tasks after 10 minutes", 600),
        ):
            counting.seen.clear()
            later.ahead = timedelta(seconds=ahead)
            began = time.perf_counter()
            found = doctor.examine(fix=True)
            seconds = time.perf_counter() - began
            for name, count in sorted(counting.seen.items()):
                report.detail(f"{what}: {name}", count, "")
            report.add(f"{what}: requests", counting.seen.total(), "", ("at most", MOST_REQUESTS))
            report.add(f"{what}: sent again", sum(one.mended for one in found), "")
            report.add(f"{what}: seconds", seconds, "s")
    report.remark(f"{OPEN} open tasks; {ENDED:,} ended ones in the same bucket: record, image, index entry of each")
    report.show()


class _Later(TaskStore):
    """The store as it is some time from now: nobody has to wait for the open tasks to look stuck."""

    ahead = timedelta()

    def now(self) -> datetime:
        return super().now() + self.ahead


def _fill(bucket: str, store: TaskStore) -> None:
    backend: Any = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
    for number in range(ENDED):
        for key in (f"tasks/t{number}/status.json", f"tasks/t{number}/1/0.png", f"index/{number:013d}-t{number}"):
            backend.put_object(bucket, key, b"{}")
    for number in range(OPEN):
        pending = moves.create(
            f"open-{number}", GenerationRequest(prompt="fox"), 7, utc_now() - timedelta(seconds=1), timedelta(days=30)
        )
        store.announce(pending)
        store.create(pending)
