"""OpenAI's images API: submits a task, waits for it, and answers in their words. No torch.

Their client repeats 409, 429 and every 5xx, as new calls. So the task's name is chosen before it is submitted; once it
may have a record, the answer names it and tells the client not to repeat the call (``X-Should-Retry``, as their clients
read it). A call with an ``Idempotency-Key`` is the same task's, however often it comes.
"""

from __future__ import annotations

import base64
import json
import time
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import unquote

from ..contract.ids import new_id
from ..contract.openai import ONLY_THEIRS, ImagesRequest, ImagesResponse, OpenAiImage, OpenAiModel, OpenAiModels
from ..contract.record import Record
from ..contract.request import json_object, validated
from ..contract.statuses import TERMINAL
from ..errors import (
    Cancelled,
    DarkroomError,
    FieldError,
    Internal,
    InvalidRequest,
    NotFound,
    OutOfMemory,
    OutOfTime,
    RetriesExhausted,
    ServiceFault,
    TimedOut,
    TooLarge,
    UnsafeContent,
)
from .calls import json_body, trace_header
from .freshness import poll_intervals
from .openai_errors import NOT_AGAIN, envelope, not_again
from .routing import Call, Reply, error_reply, json_reply

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ..aws.store import TaskStore

NAMES = {"num_images": "n", "width": "size", "height": "size", "quality": "output_compression", "tags": "user"}
"""Our fields by theirs."""
MARGIN = 2.0
"""Seconds that the wait leaves of an invocation's time."""
FAULTS: dict[str, type[DarkroomError]] = {
    "CANCELLED": Cancelled,
    "OUT_OF_MEMORY": OutOfMemory,
    "RETRIES_EXHAUSTED": RetriesExhausted,
    "TIMED_OUT": OutOfTime,
    "UNSAFE_CONTENT": UnsafeContent,
}
"""What tasks end by."""
MOST_BASE64 = 4 * 1024 * 1024
"""Bytes of images that fit, as base64, into an answer of Lambda's."""


class Submits(Protocol):
    """What of :class:`.submission.Submit` is used."""

    def submit(self, body: str | bytes, key: str | None = None, *, trace: str | None = None) -> Record:
        """Records and queues a task."""


class Images:
    """``POST /v1/images/generations`` for one tenant's tasks. ``model``: the deployment's own; ``wait``: seconds."""

    def __init__(
        self,
        submits: Submits,
        store: TaskStore,
        model: str,
        wait: float,
        *,
        new_id: Callable[[], str] = new_id,
        sleep: Callable[[float], None] = time.sleep,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._submits, self._store, self._model, self._wait = submits, store, model, wait
        self._new_id, self._sleep, self._monotonic = new_id, sleep, monotonic

    def serve(self, call: Call) -> Reply:
        """Raises as ``submit`` does while there is no task. Once there may be one every fault is answered here."""
        body = json_object(json_body(call))
        known = {name: value for name, value in body.items() if value is not None or name not in ONLY_THEIRS}
        asked = validated(ImagesRequest, known)
        if asked.model not in {None, self._model}:
            raise InvalidRequest([FieldError("model", f"there is no model {asked.model}; it is {self._model}")])
        key = call.headers.get("Idempotency-Key")
        name = self._new_id() if key is None else key
        try:
            record = self._submitted(call, asked, name)
        except ServiceFault as fault:
            return _unknown(fault, name, again=key is not None)
        try:
            ended = self._ended(record, min(self._wait, call.seconds_left - MARGIN))
            return json_reply(200, self._answer(ended, asked).model_dump(mode="json", exclude_none=True))
        except ServiceFault as fault:
            return _unknown(fault, name, again=key is not None)
        except DarkroomError as fault:
            return json_reply(fault.http_status, envelope(fault), NOT_AGAIN)

    def _submitted(self, call: Call, asked: ImagesRequest, name: str) -> Record:
        try:
            return self._submits.submit(json.dumps(asked.generation()), name, trace=trace_header(call))
        except InvalidRequest as fault:
            raise InvalidRequest(_in_their_words(fault.details)) from fault

    def _ended(self, record: Record, wait: float) -> Record:
        """The task's record once it has completed. Raises TimedOut, which names it, and what it ended by."""
        until = self._monotonic() + wait
        for pause in poll_intervals():
            left = until - self._monotonic()
            if record.status in TERMINAL:
                break
            if left <= 0:
                again = f"ask again with the Idempotency-Key {record.task_id}, or at /results/{record.task_id}"
                raise TimedOut(f"task {record.task_id} is {record.status} and goes on: {again}")
            self._sleep(min(pause, left))
            stored = self._store.read(record.task_id)
            record = Record.from_json(stored.body) if stored else record
        if record.status != "completed":
            raise _fault_of(record)
        return record

    def _answer(self, record: Record, asked: ImagesRequest) -> ImagesResponse:
        kept = [image for image in record.images if image.key]
        inline = asked.response_format == "b64_json"
        if inline and sum(image.bytes for image in kept) > MOST_BASE64:
            fault = f"the images have more than {MOST_BASE64} bytes: ask for url; they are at /results/{record.task_id}"
            raise TooLarge([FieldError("response_format", fault)])
        data = [
            OpenAiImage(b64_json=base64.b64encode(self._store.read_image(image.key)).decode())
            if inline
            else OpenAiImage(url=self._store.presign(image.key))
            for image in kept
        ]
        first = kept[0] if kept else None
        return ImagesResponse(
            created=int(record.created_at.timestamp()),
            data=data,
            output_format=record.request.output_format if record.request else "png",
            size=f"{first.width}x{first.height}" if first else None,
            task_id=record.task_id,
        )


def _fault_of(record: Record) -> DarkroomError:
    error = record.error
    if error is not None and error.code == "INVALID_REQUEST":  # the worker's to refuse, where the door had no card yet
        details = [FieldError(one.field, one.message) for one in error.details]
        return InvalidRequest(_in_their_words(details or [FieldError("body", error.message)]))
    reason = error.message if error else f"it is {record.status}"
    code = error.code if error else record.status.upper()
    return FAULTS.get(code, Internal)(f"task {record.task_id}: {reason}")


def _in_their_words(details: Iterable[FieldError]) -> list[FieldError]:
    """Each once: what is told of both width and height, they call size."""
    return list(dict.fromkeys(FieldError(NAMES.get(one.field, one.field), one.message) for one in details))


def _unknown(fault: ServiceFault, name: str, *, again: bool) -> Reply:
    """The answer to a call that broke where the task may have a record: without a key of the caller's (``again``) the
    same call would be another task, as well paid for.
    """
    message = fault.message
    if f"Idempotency-Key {name}" not in message:
        message += f". It may go on as task {name}: submit it again with the Idempotency-Key {name}"
    told = ServiceFault(message)
    told.__cause__ = fault.__cause__
    reply = error_reply(told, envelope)
    return reply if again else not_again(reply)


def models(name: str) -> dict[str, Any]:
    """``GET /v1/models``: the one that there is."""
    return OpenAiModels(data=[OpenAiModel(id=name)]).model_dump(mode="json")


def model(name: str, asked: str) -> dict[str, Any]:
    """``GET /v1/models/{model_id}``. Raises NotFound for any other than the one that there is.

    ``asked``: as in the path, where a slash may be written as ``%2F``, as their clients do.
    """
    if name not in {asked, unquote(asked)}:
        raise NotFound(f"there is no model {asked[:128]!r}; it is {name}")
    return OpenAiModel(id=name).model_dump(mode="json")
