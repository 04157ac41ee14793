"""The interface of a deployment that the client uses: over HTTP, or directly over SQS and S3."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from ..contract.responses import QuoteResponse, ResultPage, ResultResponse, TaskResponse


@dataclass(frozen=True)
class Poll:
    """The answer to a poll: a result, or None if it is unchanged. ``retry_after``: seconds until the next poll is
    useful.
    """

    result: ResultResponse | None
    etag: str | None = None
    retry_after: float | None = None


class Service(Protocol):
    """Methods raise the exceptions of :mod:`handler.errors`. After one any call may be repeated: it makes no second
    task.
    """

    def submit(self, body: bytes, key: str) -> TaskResponse:
        """Submits a request. ``key`` becomes the task_id: the same key and body again return the same task."""

    def quote(self, body: bytes) -> QuoteResponse:
        """What the request would run and cost; records nothing."""

    def upload(self, image: bytes, content_type: str) -> str:
        """Uploads an input image and returns its upload_id."""

    def poll(self, task_id: str, etag: str | None, wait: int) -> Poll:
        """Returns the result after at most ``wait`` seconds: with an ``etag`` as soon as the task has changed, without
        one as soon as it is terminal.
        """

    def page(self, limit: int, cursor: str | None, status: str | None, tag: str | None) -> ResultPage:
        """Up to ``limit`` tasks, newest first; ``cursor`` continues after an earlier page."""

    def cancel(self, task_id: str, *, unseen: bool) -> TaskResponse:
        """Cancels a task; idempotent. With ``unseen`` also one that has no record yet."""

    def retry(self, task_id: str, key: str) -> TaskResponse:
        """Submits a terminal task's request again; ``key`` becomes the new task_id."""

    def close(self) -> None:
        """Frees what the service holds."""
