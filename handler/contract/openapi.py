"""The API's OpenAPI document. Imported only when it is requested.

Each function declares one operation by its types and is never called; a test compares them with the routes. Powertools
makes a document of them, which :mod:`handler.contract.described` completes.
"""

# mypy: disable-error-code="empty-body"
from __future__ import annotations

import json
from functools import cache
from typing import Annotated, Any

from aws_lambda_powertools.event_handler import APIGatewayRestResolver
from aws_lambda_powertools.event_handler.openapi.params import Body, Header, Path, Query

from .. import __doc__ as summary
from . import described, examples
from .card import ModelCard
from .described import Described, answers, in_openais_words, link
from .ids import TASK_ID
from .openai import ImagesRequest, ImagesResponse, OpenAiModel, OpenAiModels
from .paging import CURSOR, MAX_PAGE, MAX_TAG, MAX_WAIT
from .request import GenerationRequest
from .responses import (
    HealthResponse,
    ModelsResponse,
    QuoteResponse,
    ResultPage,
    ResultResponse,
    TaskResponse,
    UploadResponse,
)
from .statuses import STATUSES
from .upload import UploadRequest

app = APIGatewayRestResolver()

TaskId = Annotated[str, Path(pattern=f"^{TASK_ID}$", description="As named by the caller, or by POST /generate")]
Key = Annotated[str | None, Header(pattern=f"^{TASK_ID}$", description="Names the task, as `task_id` in a body does")]
DryRun = Annotated[
    str | None, Query(pattern="^[01]$", description="1: tells what it would do and cost, and does nothing")
]
TASK_LINKS = {
    "result": link("result", "The task", task_id="$response.body#/task_id"),
    "cancel": link("cancel", "Cancels the task", task_id="$response.body#/task_id"),
    "retry": link("retry", "The same again, once it has ended", task_id="$response.body#/task_id"),
}
SUBMITTED: dict[str, Described] = {"Location": ("The task", {"type": "string", "format": "uri-reference"})}
FRESHNESS: dict[str, Described] = {
    "ETag": ("For If-None-Match; another one with every move of the task, or of what is before it", {"type": "string"}),
    "Cache-Control": ("Keep it, and ask whether it is still so", {"type": "string"}),
    "Retry-After": (
        "Seconds, from the ETA, or until it is begun; absent once the task has ended",
        {"type": "integer", "minimum": 1},
    ),
}
DOOR = {
    "_415": "The body says that it is something else than JSON",
    "_422": "Invalid; every fault is listed",
    "_429": "The day's budget is used up, or as many tasks wait and run as may at a time (TENANT_TASKS)",
    "_503": "The model is not available, or S3 or SQS failed",
}


@app.post(
    "/generate",
    operation_id="generate",
    summary="Ask for images",
    tags=["Tasks"],
    responses=answers(
        202,
        "Recorded and queued; the same id and body again answers with the task as it is",
        TaskResponse,
        examples.SUBMITTED,
        headers=SUBMITTED,
        links=TASK_LINKS,
        also={200: ("What it would do and cost (`dry_run=1`)", QuoteResponse, examples.QUOTE)},
        _409="The id names another request",
        _413="More than 256 KB",
        **DOOR,
    ),
)
def generate(
    body: Annotated[GenerationRequest, Body(openapi_examples=examples.REQUESTS)],
    idempotency_key: Key = None,
    dry_run: DryRun = None,
) -> TaskResponse: ...


@app.post(
    "/generate/<task_id>/retry",
    operation_id="retry",
    summary="Ask for the same again",
    description="A new task with the request of one that has ended, seed included. The body is empty.",
    tags=["Tasks"],
    responses=answers(
        202,
        "Recorded and queued; with the same Idempotency-Key again the task as it is",
        TaskResponse,
        examples.SUBMITTED,
        headers=SUBMITTED,
        links=TASK_LINKS,
        also={200: ("What it would do and cost (`dry_run=1`)", QuoteResponse, examples.QUOTE)},
        _404="No such task",
        _409="It has not ended, or never was a valid request; or the key names another task",
        _413="More than 256 KB",
        **DOOR,
    ),
)
def retry(task_id: TaskId, idempotency_key: Key = None, dry_run: DryRun = None) -> TaskResponse: ...


@app.post(
    "/uploads",
    operation_id="upload",
    summary="Ask for leave to send an input image",
    description="A form for one file, to be posted to S3 as multipart/form-data: its `fields`, then the `file`.",
    tags=["Tasks"],
    responses=answers(
        201,
        "The form; what is sent with it can be the `image` of requests",
        UploadResponse,
        examples.UPLOAD,
        _413="More than 256 KB",
        _415="The body says that it is something else than JSON; the image itself is not sent here",
        _422="Invalid; every fault is listed",
        _503="There are no credentials to sign it with",
    ),
)
def upload(body: UploadRequest | None = None) -> UploadResponse: ...


@app.get(
    "/results/<task_id>",
    operation_id="result",
    summary="One task, with fresh presigned URLs",
    tags=["Tasks"],
    responses=answers(
        200,
        "The task",
        ResultResponse,
        examples.RESULT,
        headers=FRESHNESS,
        also={304: ("It still is as the ETag says; its URLs too are good for half of their lifetime", None, None)},
        _404="No such task",
        _422="Invalid query",
        _503="S3 failed",
    ),
)
def result(
    task_id: TaskId,
    wait: Annotated[
        int | None, Query(ge=1, le=MAX_WAIT, description="Seconds to wait for the end; with If-None-Match for any move")
    ] = None,
    inline: Annotated[
        str | None, Query(pattern="^base64$", description="Adds base64 to each image, and image_base64")
    ] = None,
    if_none_match: Annotated[str | None, Header(description="An ETag: 304 while it holds")] = None,
) -> ResultResponse: ...


@app.delete(
    "/results/<task_id>",
    operation_id="cancel",
    summary="Cancel a task",
    tags=["Tasks"],
    responses=answers(
        200,
        "Cancelled, now or before",
        TaskResponse,
        examples.CANCELLED,
        _404="No such task",
        _409="It has completed or failed; or, with `purge=1`, has not ended",
        _422="Invalid query",
        _503="S3 failed",
    ),
)
def cancel(
    task_id: TaskId,
    unseen: Annotated[
        str | None,
        Query(pattern="^[01]$", description="1: also a message to SQS that no worker has read yet"),
    ] = None,
    purge: Annotated[
        str | None,
        Query(pattern="^[01]$", description="1, without unseen: of a task that has ended, deletes all but status"),
    ] = None,
) -> TaskResponse: ...


@app.get(
    "/results",
    operation_id="results",
    summary="All tasks, newest first",
    tags=["Tasks"],
    responses=answers(
        200,
        "A page of tasks",
        ResultPage,
        examples.PAGE,
        links={
            "next": link("results", "The next page", cursor="$response.body#/cursor"),
            "newest": link("result", "The first of them", task_id="$response.body#/results/0/task_id"),
        },
        _422="Invalid query",
        _503="S3 failed",
    ),
)
def results(
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 20,
    cursor: Annotated[str | None, Query(pattern=f"^{CURSOR.pattern}$", description="From the page before")] = None,
    status: Annotated[str | None, Query(pattern=f"^({'|'.join(STATUSES)})$", description="Only these")] = None,
    tag: Annotated[str | None, Query(min_length=1, max_length=MAX_TAG, description="Only those that have it")] = None,
) -> ResultPage: ...


@app.get(
    "/models",
    operation_id="models",
    summary="What can be asked of the model",
    tags=["Service"],
    responses=answers(200, "The model, and each parameter with its limits", ModelsResponse, examples.MODELS),
)
def models() -> ModelsResponse: ...


@app.get(
    "/health",
    operation_id="health",
    summary="Whether requests are taken",
    tags=["Service"],
    responses=answers(200, "Health", HealthResponse, examples.HEALTH),
)
def health() -> HealthResponse: ...


@app.post(
    "/v1/images/generations",
    operation_id="images",
    summary="Images, as OpenAI's clients ask for them",
    description="Submits a task, waits for it and answers. With an `Idempotency-Key`, which names the task, a call "
    "that is repeated draws nothing twice.",
    tags=["OpenAI"],
    responses=in_openais_words(
        answers(
            200,
            "The images",
            ImagesResponse,
            examples.IMAGES,
            headers=None,
            also=None,
            links={"result": link("result", "The task", task_id="$response.body#/task_id")},
            _409="The key names another request, or the task was cancelled",
            _413="More than 256 KB; or images too large for `b64_json`",
            _504="The task goes on: ask again with the same key",
            **DOOR,
        )
    ),
)
def images(
    body: Annotated[ImagesRequest, Body(openapi_examples=examples.IMAGES_REQUESTS)], idempotency_key: Key = None
) -> ImagesResponse: ...


@app.get(
    "/v1/models",
    operation_id="openai_models",
    summary="The model's name, as OpenAI's clients ask for it",
    tags=["OpenAI"],
    responses=in_openais_words(answers(200, "The one that there is", OpenAiModels, examples.OPENAI_MODELS)),
)
def openai_models() -> OpenAiModels: ...


@app.get(
    "/v1/models/<model_id>",
    operation_id="openai_model",
    summary="The same of one model",
    tags=["OpenAI"],
    responses=in_openais_words(
        answers(200, "The model", OpenAiModel, examples.OPENAI_MODELS["data"][0], _404="It is another one")
    ),
)
def openai_model(model_id: Annotated[str, Path(description="As `GET /v1/models` names it")]) -> OpenAiModel: ...


@app.get(
    "/openapi.json",
    operation_id="openapi",
    summary="This document",
    tags=["Service"],
    responses=answers(200, "OpenAPI 3.1", None, None),
)
def openapi() -> dict[str, Any]: ...


@app.get(
    "/docs",
    operation_id="docs",
    summary="This document, to read and to try",
    tags=["Service"],
    responses=answers(200, "A page that loads nothing from elsewhere", None, None, kind="text/html"),
)
def docs() -> str: ...


def document(base: str = "", card: dict[str, Any] | None = None) -> dict[str, Any]:
    """The OpenAPI 3.1 document as JSON data. ``base``: the API's base URL; ``card``: the model card, for its limits."""
    made = {**_document(), "servers": [{"url": base or "/"}]}
    return described.limit_to_model(made, ModelCard.model_validate(card)) if card else made


@cache
def _document() -> dict[str, Any]:
    from importlib.metadata import version

    text = app.get_openapi_json_schema(title="Darkroom", version=version("darkroom"), description=summary)
    return described.complete(json.loads(text))
