"""The service without its HTTP API: runs the API's code in this process, with the caller's AWS credentials."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from ..api.results import Status
from ..api.submission import Submit
from ..aws.queue import TaskQueue
from ..aws.store import TaskStore
from ..contract.ids import new_id
from ..contract.responses import QuoteResponse, ResultPage, ResultResponse, TaskResponse
from .service import Poll

if TYPE_CHECKING:
    from ..contract.record import Record
    from ..settings import Settings


class DirectService:
    """A :class:`.service.Service` over SQS and S3. ``poll`` ignores ``wait``. Retries are those of the AWS clients."""

    def __init__(self, settings: Settings) -> None:
        self._settings, self._store = settings, TaskStore(settings)
        self._status = Status(settings, self._store)

    @cached_property
    def _submit(self) -> Submit:
        """Made on first use, because reading needs no queue."""
        return Submit(self._settings, self._store, TaskQueue(self._settings))

    def submit(self, body: bytes, key: str) -> TaskResponse:
        return _task_response(self._submit.submit(body, key))

    def quote(self, body: bytes) -> QuoteResponse:
        return QuoteResponse.model_validate(self._submit.quote(body), extra="ignore")

    def upload(self, image: bytes, content_type: str) -> str:
        upload_id = new_id()
        self._store.put_upload(upload_id, image, content_type)
        return upload_id

    def poll(self, task_id: str, etag: str | None, wait: int) -> Poll:  # noqa: ARG002
        result = ResultResponse.model_validate(self._status.result(task_id), extra="ignore")
        seen = str(result.sequence)
        return Poll(None if seen == etag else result, seen)

    def page(self, limit: int, cursor: str | None, status: str | None, tag: str | None) -> ResultPage:
        page = self._status.results(str(limit), cursor, status=status, tag=tag)
        return ResultPage.model_validate(page, extra="ignore")

    def cancel(self, task_id: str, *, unseen: bool) -> TaskResponse:
        return _task_response(self._submit.cancel(task_id, unseen=unseen))

    def retry(self, task_id: str, key: str) -> TaskResponse:
        return _task_response(self._submit.retry(task_id, key))

    def close(self) -> None:
        """There is nothing to close."""


def _task_response(record: Record) -> TaskResponse:
    """What the HTTP API would answer, but with paths as URLs, because there is no host."""
    at = f"/results/{record.task_id}"
    return TaskResponse(
        task_id=record.task_id,
        status=record.status,
        message=f"task {record.task_id} is {record.status}",
        status_url=at,
        result_url=f"{at}?wait=20",
        cancel_url=at,
    )
