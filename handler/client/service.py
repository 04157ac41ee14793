"""What a client asks of a service, however it reaches it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from ..contract.responses import QuoteResponse, ResultPage, ResultResponse, TaskResponse


@dataclass(frozen=True)
class Poll:
    """A result, or None where it is what ``etag`` stands for; ``retry_after``: seconds until another is worth it."""

    result: ResultResponse | None
    etag: str | None = None
    retry_after: float | None = None


class Service(Protocol):
    """Raises what :mod:`handler.errors` names. Each may be called again after a fault without paying twice."""

    def submit(self, body: bytes, key: str) -> TaskResponse:
        """``key`` names the task: the same key and body again are the same task."""

    def quote(self, body: bytes) -> QuoteResponse:
        """What it would do and cost; nothing is recorded."""

    def upload(self, image: bytes, content_type: str) -> str:
        """Sends an input image; the upload_id under which requests find it. A second one is of no harm."""

    def poll(self, task_id: str, etag: str | None, wait: int) -> Poll:
        """The result: with an ``etag`` once it is another, without one once it is terminal, or after ``wait`` seconds
        as it is then.
        """

    def page(self, limit: int, cursor: str | None, status: str | None, tag: str | None) -> ResultPage: ...

    def cancel(self, task_id: str) -> TaskResponse: ...

    def retry(self, task_id: str, key: str) -> TaskResponse: ...

    def close(self) -> None: ...
