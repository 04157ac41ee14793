"""What a submission's HTTP call holds beside the request (headers, media type), and the reply to it."""

from __future__ import annotations

from re import fullmatch
from typing import TYPE_CHECKING

from ..contract.ids import TASK_ID
from ..contract.request import MAX_BODY
from ..errors import FieldError, InvalidRequest, TooLarge, UnsupportedMediaType
from .routing import Call, Reply, json_reply

if TYPE_CHECKING:
    from ..contract.record import Record
    from ..contract.request import GenerationRequest, Parsed

TRACE = r"(Self=[^;]{1,64};)?Root=1-[0-9a-f]{8}-[0-9a-f]{24}(;[A-Za-z]{1,16}=[0-9A-Za-z:|]{1,64}){0,4}"
"""The X-Ray tracing headers that SQS accepts; it would reject a message with any other."""
JSON_TYPE = r"(?i)\s*(application/([\w.-]+\+)?json|application/x-www-form-urlencoded)\s*(;.*)?"
"""Accepted content types. The form type is accepted because curl and urllib send it by default."""


def json_body(call: Call) -> bytes:
    """The call's body. Raises UnsupportedMediaType and TooLarge."""
    kind = call.headers.get("Content-Type", "")
    body = call.body()
    if kind and body and not fullmatch(JSON_TYPE, kind):
        raise UnsupportedMediaType([FieldError("Content-Type", f"is {kind[:64]}; application/json is taken")])
    if len(body) > MAX_BODY:
        raise TooLarge([FieldError("body", f"has {len(body)} bytes; at most {MAX_BODY} are taken")])
    return body


def task_reply(call: Call, record: Record, status: int = 202, prompt_tokens: int | None = None) -> Reply:
    """A TaskResponse: the task's status, and the URLs to poll and to cancel it. ``prompt_tokens``: of the card."""
    at = f"{call.base}/results/{record.task_id}"
    ask = "" if record.status == "cancelled" else f"; ask for it at /results/{record.task_id}"
    if record.purged:
        ask = ", and what was asked for and drawn is deleted"
    body = {
        "task_id": record.task_id,
        "status": record.status,
        "message": f"task {record.task_id} is {record.status}{ask}",
        "status_url": at,
        "result_url": f"{at}?wait=20",
        "cancel_url": at,
        "prompt_tokens": prompt_tokens,
    }
    return json_reply(status, body, {"Location": at} if status == 202 else None)


def trace_header(call: Call) -> str | None:
    """The call's X-Ray tracing header; None if it has none that SQS accepts."""
    trace = call.headers.get("X-Amzn-Trace-Id", "")
    return trace if fullmatch(TRACE, trace) else None


def named_request(parsed: Parsed, key: str | None) -> GenerationRequest:
    """The request, with the task_id that the caller chose: in the body, or as ``Idempotency-Key`` (``key``).

    Raises InvalidRequest with every fault, also if the key is malformed or differs from the body's task_id.
    """
    faults = list(parsed.faults)
    if key is not None and not fullmatch(TASK_ID, key):
        faults.append(FieldError("Idempotency-Key", f"must match {TASK_ID}"))
    elif key is not None and parsed.task_id not in {None, key}:
        faults.append(FieldError("Idempotency-Key", "differs from the body's task_id"))
    if parsed.request is None or faults:
        raise InvalidRequest(faults)
    return parsed.request if key is None else parsed.request.model_copy(update={"task_id": key})
