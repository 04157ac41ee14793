"""The responses of the HTTP API."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ..errors import Code
from .card import Defaults, Limits, ModelCard
from .record import ErrorInfo, FaultDetail, Input, ModelRef, Outcome, Progress, Remark, Timings, When
from .request import Contract, GenerationRequest
from .statuses import Status


class TaskResponse(Contract):
    """The response to a submission or a cancellation. URLs are absolute if the API knows its own address."""

    task_id: str
    status: Status
    message: str
    status_url: str = Field(description="GET: the task as it is")
    result_url: str = Field(description="GET: the task once it has ended, or as it is after 20 seconds")
    cancel_url: str = Field(description="DELETE: cancels it")
    prompt_tokens: int | None = Field(
        None, description="Of each text the model reads so many tokens and cuts the rest; null where that is not known"
    )


class QuoteResponse(Contract):
    """The response to `?dry_run=1`: what would be run and what it would cost. Nothing is recorded or queued."""

    request: GenerationRequest = Field(description="With what was left out filled in")
    model: str
    images: int
    seconds: float | None = Field(description="Of a worker's time; null where nobody has measured it")
    dollars: float | None = Field(description="With everything around the worker; null where no price is known")
    basis: str = Field(description="What the figures rest on, or why there are none")


class UploadResponse(Contract):
    """A presigned POST for an input image: a multipart form with these ``fields``, then ``file``, sent to ``url``."""

    upload_id: str = Field(description="For `image` of a request")
    url: str
    fields: dict[str, str]
    max_bytes: int
    content_types: list[str] = Field(description="What can be asked for; the form takes the one that was")
    expires_at: When


class ResultImage(Contract):
    """An image: its presigned URL, renewed in every response, and its properties."""

    url: str | None = Field(description="null of a picture that is unsafe")
    seed: int
    width: int
    height: int
    content_type: str
    bytes: int
    sha256: str
    unsafe: bool = Field(False, description="The model's safety checker flagged it, and it was not kept")
    base64: str | None = Field(
        None, description="With `?inline=base64`, as far as it fits into one answer (4 MiB in all)"
    )


class ResultAttempt(Contract):
    """How an attempt ended."""

    number: int
    started_at: When
    ended_at: When
    outcome: Outcome
    code: Code | None
    message: str | None


class ResultResponse(Contract):
    """A task: its record with presigned URLs, and the fields of the tutorial's API."""

    task_id: str
    status: Status
    prompt: str | None
    error_message: str | None
    image_base64: str | None = Field(None, description="The first image, with `?inline=base64` or INLINE_IMAGES=1")
    sequence: int
    origin: str | None = Field(description="The task that this one repeats")
    request: GenerationRequest | None
    body: str | None = Field(description="What a message held that was no valid request, its first 4 KB")
    model: ModelRef | None
    created_at: When
    started_at: When | None
    completed_at: When | None
    queued_at: When | None
    attempt: int
    tries: int = Field(description="Attempts that ended by the task's own fault, or without a step saved")
    spent_seconds: float = Field(description="Of drawing, over all attempts")
    saved_step: int = Field(description="Steps that need not be computed again")
    warnings: list[Remark] = Field(description="What was done otherwise than asked: text that was cut, for one")
    attempts: list[ResultAttempt]
    progress: Progress | None
    input: Input | None
    preview_url: str | None = Field(description="A thumbnail of the unfinished picture, with PREVIEWS=1")
    images: list[ResultImage]
    error: ErrorInfo | None
    timings: Timings | None
    batch_size: int | None
    cold_start: bool | None
    purged: bool = Field(description="Whether its prompt and images were deleted (`?purge=1`)")
    expires_at: When


class ResultPage(Contract):
    """Newest first; ``cursor`` asks for the next page, None on the last. A page before the last may be short, and with
    a filter empty.
    """

    results: list[ResultResponse]
    cursor: str | None


class ErrorResponse(Contract):
    """The envelope of every error over HTTP."""

    class Body(Contract):
        code: Code
        message: str
        details: list[FaultDetail]

    error: Body


class MeasuredSpeed(Contract):
    """Seconds per denoising step, and of everything else for one image, at a size of ``pixels``."""

    step: float
    other: float
    pixels: int


class HealthResponse(Contract):
    """``model_status``: whether ``POST /generate`` accepts requests; ``reason``: why not, or what is unknown."""

    status: Literal["ok"]
    model_status: Literal["available", "unavailable"]
    model: ModelCard | None
    reason: str | None
    measured: MeasuredSpeed | None = Field(description="How fast the worker that loaded the model found it to be")
    host: str | None = Field(description="What that worker runs on")


class Parameter(Contract):
    """A request field with this model's limits (inclusive): enough to render a form's field."""

    name: str
    type: Literal["string", "integer", "number"]
    description: str | None = None
    required: bool
    default: str | int | float | None = None
    least: int | float | None = None
    most: int | float | None = None
    multiple_of: int | None = None
    min_length: int | None = None
    max_length: int | None = None
    one_of: list[str] | None = None


class ModelDescription(Contract):
    """The model card, with its parameters in full. Null values are unknown until a worker has loaded the model."""

    id: str
    revision: str | None = None
    pipeline: str | None = Field(None, description="diffusers' class name")
    dtype: str | None = None
    status: Literal["available", "unavailable", "unknown"]
    reason: str | None
    parameters: list[Parameter]
    defaults: Defaults | None = None
    limits: Limits | None = None
    size_multiple: int | None = None
    sizes: list[tuple[int, int]] = Field(default_factory=list)


class ModelsResponse(Contract):
    """The models of this deployment."""

    models: list[ModelDescription]
