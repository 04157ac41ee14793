"""What callers see: the answers of the HTTP API. Shaped in submit and status, documented in openapi."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from .card import ModelCard
from .errors import Code
from .records import ErrorInfo, FaultDetail, ModelRef, Outcome, Progress, Status, Timings, When
from .request import Contract, GenerationRequest


class TaskResponse(Contract):
    """What a submission answers."""

    task_id: str
    status: Status
    message: str


class ResultImage(Contract):
    """An image as a caller sees it: a presigned URL that is fresh at every answer, and no S3 key."""

    url: str
    seed: int
    width: int
    height: int
    content_type: str
    bytes: int
    sha256: str


class ResultAttempt(Contract):
    """What became of an attempt; whose it was is nobody's business outside."""

    number: int
    started_at: When
    ended_at: When
    outcome: Outcome
    code: Code | None
    message: str | None


class ResultResponse(Contract):
    """What the status handler shows: the record with presigned URLs, and the tutorial's fields beside them."""

    task_id: str
    status: Status
    prompt: str | None
    error_message: str | None
    image_base64: str | None = Field(None, description="With `?inline=base64` or INLINE_IMAGES=1")
    sequence: int
    request: GenerationRequest | None
    model: ModelRef | None
    created_at: When
    started_at: When | None
    completed_at: When | None
    queued_at: When | None
    attempt: int
    attempts: list[ResultAttempt]
    progress: Progress | None
    preview_url: str | None = Field(description="A thumbnail of the unfinished picture, with PREVIEWS=1")
    images: list[ResultImage]
    error: ErrorInfo | None
    timings: Timings | None
    batch_size: int | None
    cold_start: bool | None
    expires_at: When


class ResultPage(Contract):
    """Newest first; ``cursor`` asks for the next page, None on the last."""

    results: list[ResultResponse]
    cursor: str | None


class ErrorResponse(Contract):
    """The envelope of every error over HTTP."""

    class Body(Contract):
        code: Code
        message: str
        details: list[FaultDetail]

    error: Body


class HealthResponse(Contract):
    """``model_status`` tells whether ``POST /generate`` takes requests; ``reason`` why not, or what is unknown."""

    status: Literal["ok"]
    model_status: Literal["available", "unavailable"]
    model: ModelCard | None
    reason: str | None
