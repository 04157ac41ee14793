"""The API's description. Loaded when somebody asks for it: the handlers themselves answer without it.

Each function declares one operation with its types and is never called; a test holds the list against the routes.
"""

# mypy: disable-error-code="empty-body"
from __future__ import annotations

import json
from functools import cache
from typing import Annotated, Any

from aws_lambda_powertools.event_handler import APIGatewayRestResolver
from aws_lambda_powertools.event_handler.openapi.params import Header, Path, Query

from . import __doc__ as summary
from .request import GenerationRequest
from .responses import ErrorResponse, HealthResponse, ResultPage, ResultResponse, TaskResponse
from .status import MAX_PAGE
from .storage import CURSOR
from .world import TASK_ID

app = APIGatewayRestResolver()


def _answers(status: int, description: str, model: type, **errors: str) -> dict[int, Any]:
    """An operation's answers: its own, and the errors by status (``_404="…"``), which share one envelope."""
    errors = {"_500": "A fault on our side", **errors}
    return {
        status: {"description": description, "content": {"application/json": {"model": model}}},
        **{
            int(code[1:]): {"description": text, "content": {"application/json": {"model": ErrorResponse}}}
            for code, text in errors.items()
        },
    }


@app.post(
    "/generate",
    summary="Ask for images",
    responses=_answers(
        202,
        "Recorded and queued; the same id and body again answers with the task as it is",
        TaskResponse,
        _409="The id names another request",
        _422="Invalid; every fault is listed",
        _503="The model is not available, or S3 or SQS failed",
    ),
)
def generate(
    body: GenerationRequest, idempotency_key: Annotated[str | None, Header(pattern=f"^{TASK_ID}$")] = None
) -> TaskResponse: ...


@app.get(
    "/results/<task_id>",
    summary="One task, with fresh presigned URLs",
    responses=_answers(
        200,
        "The task",
        ResultResponse,
        _404="No such task",
        _422="Invalid query",
        _503="S3 failed",
    ),
)
def result(
    task_id: Annotated[str, Path(description="As named by the caller, or the answer of POST /generate")],
    inline: Annotated[str | None, Query(pattern="^base64$", description="Adds image_base64")] = None,
) -> ResultResponse: ...


@app.delete(
    "/results/<task_id>",
    summary="Cancel a task",
    responses=_answers(
        200,
        "Cancelled, now or before",
        TaskResponse,
        _404="No such task",
        _409="It has completed or failed",
        _503="S3 failed",
    ),
)
def cancel(task_id: Annotated[str, Path(description="The task's name")]) -> TaskResponse: ...


@app.get(
    "/results",
    summary="All tasks, newest first",
    responses=_answers(200, "A page of tasks", ResultPage, _422="Invalid query", _503="S3 failed"),
)
def results(
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 20,
    cursor: Annotated[str | None, Query(pattern=f"^{CURSOR.pattern}$", description="From the page before")] = None,
) -> ResultPage: ...


@app.get("/health", summary="Whether requests are taken", responses=_answers(200, "Health", HealthResponse))
def health() -> HealthResponse: ...


@app.get("/openapi.json", summary="This document", responses={200: {"description": "OpenAPI 3.1"}})
def openapi() -> dict[str, Any]: ...


@cache
def document() -> dict[str, Any]:
    """The OpenAPI 3.1 document as JSON data."""
    from importlib.metadata import version

    text = app.get_openapi_json_schema(title="Darkroom", version=version("darkroom"), description=summary)
    described: dict[str, Any] = json.loads(text)
    return described
