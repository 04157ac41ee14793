"""Darkroom: the client."""

from __future__ import annotations

import random as chance
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, Unpack

from ..clock import utc_now
from ..contract.ids import new_id
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
    """A deployment, as its callers see it. Thread-safe.

    Every submission carries an Idempotency-Key that names its task: so whatever is repeated, here or by the caller,
    nothing is paid for twice.
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
        """``endpoint``: URL of the HTTP API. ``queue`` and ``bucket``: the queue's URL and the bucket's name, which
        are used directly, with AWS credentials; who only reads needs no queue. With none of them the settings say
        which (DARKROOM_ENDPOINT, else BUCKET and QUEUE_URL).

        ``patience``: seconds for which one call is repeated while nobody answers, or 429 or 5xx.
        Raises SettingsError.
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
        """Closes the connections that are not in use."""
        self._service.close()
        self._http.close()

    def submit(self, asked: Asked, **parameters: Unpack[Parameters]) -> TaskResponse:
        """Queues a task; ``parameters`` fill in what ``asked`` leaves out.

        Raises InvalidRequest (with every fault at once), Conflict where its ``task_id`` names another request,
        ModelUnavailable, QuotaExceeded, and ServiceFault, whose message names the task that may have been taken.
        """
        body = fields_of(asked, parameters)
        return self._submit(body, body.get("task_id") or self._new_id())

    def _submit(self, body: dict[str, Any], task_id: str) -> TaskResponse:
        with _naming(task_id):
            return self._service.submit(to_json(body), task_id)

    def quote(self, asked: Asked, **parameters: Unpack[Parameters]) -> QuoteResponse:
        """What the request would run with what was left out filled in, its seconds and dollars as far as they are
        known. Nothing is recorded. Raises as ``submit`` does.
        """
        return self._service.quote(to_json(fields_of(asked, parameters)))

    def upload(self, image: str | Path | bytes) -> str:
        """Sends a PNG, JPEG or WebP of at most 10 MB; returns the upload_id to give as a request's ``image``.

        Raises OSError for a file that cannot be read, InvalidRequest for another kind or a larger one, ServiceFault.
        """
        body = image if isinstance(image, bytes) else Path(image).read_bytes()
        return self._service.upload(body, content_type_of(body))

    def result(self, task_id: str) -> ResultResponse:
        """A task as it is now, with fresh presigned URLs. Raises NotFound."""
        polled = self._service.poll(task_id, None, 0)
        if polled.result is None:
            raise Internal("the service says that nothing has changed, and was not asked that")
        return polled.result

    def results(
        self, limit: int | None = 20, *, status: Status | None = None, tag: str | None = None
    ) -> Iterator[ResultResponse]:
        """Up to ``limit`` tasks (None: all), newest first; the next page is asked for when it is needed."""
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
    ) -> ResultResponse:
        """The result once it is terminal, completed or not (:func:`fault_in` tells why not). ``on_change`` is called
        with what the task is now, and then at every change.

        Raises StillRunning after ``timeout`` seconds (None: never), NotFound and ServiceFault; the task goes on.
        """
        return follow(self._service, task_id, timeout, self._clock, on_change)

    def cancel(self, task_id: str) -> TaskResponse:
        """Cancels a task, also one that is cancelled. Raises NotFound, and Conflict if it has completed or failed."""
        return self._service.cancel(task_id)

    def retry(self, task_id: str, *, new_task_id: str | None = None) -> TaskResponse:
        """A new task with the same request and seed. Raises NotFound, and Conflict unless the old one is terminal."""
        named = new_task_id or self._new_id()
        with _naming(named):
            return self._service.retry(task_id, named)

    def images(self, task: str | ResultResponse) -> list[Picture]:
        """Downloads a completed task's pictures, and checks each against its sha256.

        Raises the fault of a task that has failed, StillRunning before it is terminal, NotFound when its pictures are
        no longer kept.
        """
        result = self.result(task) if isinstance(task, str) else task
        if fault := fault_in(result):
            raise fault
        if result.status != "completed":
            raise StillRunning(result.task_id, result)
        try:
            return fetch(result, self._http, self._patience, self._clock)
        except Stale:
            # URLs are presigned for a while; they may have run out since the result was read.
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
        """Submits many requests, at most ``in_flight`` of them unfinished at a time, and gives what became of each, as
        they end. A fault of one is in its :class:`Drawn` and stops no other.

        ``timeout``: seconds for each from its submission on. ``on_change`` is called in other threads. ``parameters``
        fill in what a request leaves out. The iterable is read in the caller's thread, when there is room.
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
    """Whoever cannot know whether a task was taken is told its name: nothing is lost, nothing paid for twice."""
    try:
        yield
    except (ServiceFault, Internal) as fault:
        again = f"if it was taken all the same it is task {task_id}; sent again under that name it costs nothing more"
        raise ServiceFault(f"{fault.message}; {again}") from fault
