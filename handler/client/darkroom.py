"""The client class."""

from __future__ import annotations

import random as chance
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from re import fullmatch
from typing import TYPE_CHECKING, Any, Self, Unpack

from ..clock import utc_now
from ..contract.ids import TASK_ID, new_id
from ..errors import DarkroomError, Internal, ServiceFault, SettingsError, StillRunning
from ..settings import Settings
from .asking import Asked, Parameters, content_type_of, fields_of, to_json
from .batch import Batch, Drawn
from .faults import fault_in
from .following import follow
from .http import HttpService
from .net import HttpClient
from .patience import Clock
from .pictures import Picture, Stale, fetch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from datetime import datetime
    from threading import Event

    from ..contract.responses import QuoteResponse, ResultResponse, TaskResponse
    from ..contract.statuses import Status
    from .service import Service

PAGE = 100


class Darkroom:
    """A client of one deployment. Thread-safe.

    Every submission carries its task_id as Idempotency-Key, so that a repeated one, by the client or by its caller,
    makes no second task.
    """

    def __init__(
        self,
        *,
        endpoint: str | None = None,
        api_key: str | None = None,
        queue: str | None = None,
        bucket: str | None = None,
        patience: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        random: Callable[[], float] = chance.random,
        now: Callable[[], datetime] = utc_now,
        new_id: Callable[[], str] = new_id,
    ) -> None:
        """``endpoint``: URL of the HTTP API. ``queue`` and ``bucket``: the queue's URL and the bucket's name, to use
        SQS and S3 directly with AWS credentials; reading needs no queue. With none of them the environment decides
        (DARKROOM_ENDPOINT, else BUCKET and QUEUE_URL).

        ``patience``: seconds for which a call is retried after no response, 408, 429 or 5xx. Raises SettingsError.
        """
        self._clock, self._patience, self._new_id = Clock(clock, sleep, random, now), patience, new_id
        self._http = HttpClient()
        if endpoint and (queue or bucket):
            raise SettingsError("give an endpoint, or a queue and a bucket, not both")
        if not (endpoint or queue or bucket):
            settings = Settings.load()
            endpoint, api_key = settings.darkroom_endpoint, api_key or settings.darkroom_api_key
        self._service = self._over_http(endpoint, api_key) if endpoint else self._over_aws(queue, bucket)

    def _over_http(self, endpoint: str, api_key: str | None) -> Service:
        if not endpoint.startswith(("http://", "https://")):
            raise SettingsError(f"{endpoint!r} is no http(s) URL of a service")
        return HttpService(endpoint, api_key, self._http, self._patience, self._clock)

    def _over_aws(self, queue: str | None, bucket: str | None) -> Service:
        from .direct import DirectService  # loads the AWS clients

        settings = Settings.load()
        return DirectService(replace(settings, queue_url=queue or settings.queue_url, bucket=bucket or settings.bucket))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes idle connections."""
        self._service.close()
        self._http.close()

    def submit(self, asked: Asked, **parameters: Unpack[Parameters]) -> TaskResponse:
        """Queues a task; ``parameters`` fill in what ``asked`` leaves out.

        Raises InvalidRequest (listing every fault), Conflict if its ``task_id`` names another request,
        ModelUnavailable, QuotaExceeded, and ServiceFault, whose message names the task that may have been created.
        """
        body = fields_of(asked, parameters)
        return self._submit(body, body.get("task_id") or self._new_id())

    def _submit(self, body: dict[str, Any], task_id: str) -> TaskResponse:
        with _naming(task_id):
            return self._service.submit(to_json(body), task_id)

    def quote(self, asked: Asked, **parameters: Unpack[Parameters]) -> QuoteResponse:
        """The request with its defaults filled in, and its estimated seconds and dollars. Records nothing. Raises as
        ``submit`` does.
        """
        return self._service.quote(to_json(fields_of(asked, parameters)))

    def upload(self, image: str | Path | bytes) -> str:
        """Uploads a PNG, JPEG or WebP file of at most 10 MB; returns its upload_id, to pass as a request's ``image``.

        Raises OSError if the file cannot be read, InvalidRequest for another format or a larger file, ServiceFault.
        """
        body = image if isinstance(image, bytes) else Path(image).read_bytes()
        return self._service.upload(body, content_type_of(body))

    def result(self, task_id: str) -> ResultResponse:
        """A task's current state, with fresh presigned URLs. Raises NotFound."""
        polled = self._service.poll(task_id, None, 0)
        if polled.result is None:
            raise Internal("the service says that nothing has changed, and was not asked that")
        return polled.result

    def results(
        self, limit: int | None = 20, *, status: Status | None = None, tag: str | None = None
    ) -> Iterator[ResultResponse]:
        """Up to ``limit`` tasks (None: all), newest first. Pages are fetched as they are needed."""
        cursor: str | None = None
        left = limit
        while left is None or left > 0:
            page = self._service.page(PAGE if left is None else min(PAGE, left), cursor, status, tag)
            yield from page.results[:left]
            left = None if left is None else left - len(page.results)
            cursor = page.cursor
            if cursor is None:
                return

    def wait(
        self,
        task_id: str,
        *,
        timeout: float | None = 600,
        on_change: Callable[[ResultResponse], None] | None = None,
        on_unseen: Callable[[], None] = lambda: None,
    ) -> ResultResponse:
        """Waits until the task is terminal and returns it, completed or not (see :func:`fault_in`). ``on_change`` is
        called with the task's current state, and then at every change.

        A task that is not known yet is waited for as well, for a message to SQS has no record until a worker reads it;
        ``on_unseen`` is called once if it is so. Raises StillRunning after ``timeout`` seconds (None: never), NotFound
        if the task was there and is gone, or no task can have that name, and ServiceFault; the task goes on.
        """
        may_come = on_unseen if fullmatch(TASK_ID, task_id) else None
        return follow(self._service, task_id, timeout, self._clock, on_change, on_unseen=may_come)

    def cancel(self, task_id: str, *, unseen: bool = False) -> TaskResponse:
        """Cancels a task; idempotent. ``unseen``: also a message to SQS that no worker has read yet, and which is then
        consumed undrawn. Raises NotFound, Conflict if it has completed or failed, InvalidRequest if no unseen task can
        have that name, and ServiceFault.
        """
        return self._service.cancel(task_id, unseen=unseen)

    def retry(self, task_id: str, *, new_task_id: str | None = None) -> TaskResponse:
        """A new task with the same request and seed. Raises NotFound, and Conflict unless the old one is terminal."""
        named = new_task_id or self._new_id()
        with _naming(named):
            return self._service.retry(task_id, named)

    def images(self, task: str | ResultResponse) -> list[Picture]:
        """Downloads a completed task's pictures, each checked against its sha256. Those that are unsafe were not kept.

        Raises the task's own fault if it failed or was cancelled, StillRunning if it is not terminal, NotFound if its
        pictures have been deleted.
        """
        result = self.result(task) if isinstance(task, str) else task
        if fault := fault_in(result):
            raise fault
        if result.status != "completed":
            raise StillRunning(result.task_id, result)
        try:
            return fetch(result, self._http, self._patience, self._clock)
        except Stale:
            # The presigned URLs may have expired since the result was read.
            return fetch(self.result(result.task_id), self._http, self._patience, self._clock)

    def map(
        self,
        asked: Iterable[Asked],
        *,
        in_flight: int = 16,
        timeout: float | None = 600,
        on_change: Callable[[ResultResponse], None] | None = None,
        **parameters: Unpack[Parameters],
    ) -> Batch:
        """Submits many requests, at most ``in_flight`` at a time, and yields their outcomes in the order of completion.
        A fault of one is in its :class:`Drawn` and does not stop the others.

        ``timeout``: seconds for each, from its submission. ``on_change`` is called in other threads. ``parameters``
        fill in what a request leaves out. The iterable is read lazily, in the caller's thread.
        """

        def name(one: Asked) -> str:
            return str(fields_of(one, parameters).get("task_id") or self._new_id())

        def draw(index: int, one: Asked, task_id: str, stop: Event) -> Drawn:
            result: ResultResponse | None = None
            try:
                self._submit(fields_of(one, parameters), task_id)
                result = follow(self._service, task_id, timeout, self._clock, on_change, lambda: not stop.is_set())
                return Drawn(index, one, task_id, result, fault_in(result))
            except StillRunning as fault:
                return Drawn(index, one, task_id, fault.result, fault)
            except DarkroomError as fault:
                return Drawn(index, one, task_id, result, fault)

        return Batch(asked, draw, name, in_flight)


@contextmanager
def _naming(task_id: str) -> Iterator[None]:
    """Adds the task_id to a fault after which the task may or may not exist, so that the caller can repeat the call."""
    try:
        yield
    except (ServiceFault, Internal) as fault:
        again = f"if it was taken all the same it is task {task_id}; sent again under that name it costs nothing more"
        raise ServiceFault(f"{fault.message}; {again}") from fault
