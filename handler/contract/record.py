"""The record of a task as it is stored in S3. Its transitions are in :mod:`handler.task.moves`."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from ..errors import Code
from .request import Contract, GenerationRequest, TaskId
from .statuses import Status

When = Annotated[datetime, Field(strict=False)]  # JSON has it as a string


class ModelRef(Contract):
    """Which model drew the picture. ``dtype`` is part of it, because it changes the pixels slightly."""

    id: str
    revision: str | None = None
    pipeline: str
    dtype: str


class Lease(Contract):
    """Which attempt holds the task, and until when. ``message_id``: its SQS message; any other one is a duplicate."""

    owner: str
    expires_at: When
    message_id: str | None = None


class Progress(Contract):
    """``fraction`` from 0 to 1; ``eta_seconds`` None until a step was measured."""

    step: int
    steps: int
    fraction: float
    eta_seconds: float | None = None


class Input(Contract):
    """The input image as the first attempt read it: its size in ``bytes``, and its ``sha256`` in hex.

    Later attempts compare with it, because an upload may be replaced, and all must use the same image.
    """

    bytes: int
    sha256: str


class Image(Contract):
    """An image in the bucket: its size in ``bytes``, and its ``sha256`` in hex."""

    key: str
    seed: int
    width: int
    height: int
    content_type: str
    bytes: int
    sha256: str


class FaultDetail(Contract):
    field: str
    message: str


class ErrorInfo(Contract):
    code: Code
    message: str
    retryable: bool
    details: list[FaultDetail] = Field(default_factory=list)


class Timings(Contract):
    """Seconds. ``load``: the wait for the pipeline to load; ``total``: from claim to commit, without ``load``."""

    queue: float = 0
    load: float = 0
    text: float = 0
    denoise: float = 0
    decode: float = 0
    encode: float = 0
    upload: float = 0
    total: float = 0


Outcome = Literal["completed", "failed", "cancelled", "released", "suspended", "expired"]


class PastAttempt(Contract):
    """How an attempt ended. ``released``: by a retryable fault; ``suspended``: its host was going; ``expired``: its
    lease ran out, and ``ended_at`` is when that was noticed.
    """

    number: int
    owner: str
    started_at: When
    ended_at: When
    outcome: Outcome
    code: Code | None = None
    message: str | None = None


class Record(Contract):
    """``status.json``, the only source of a task's state. ``sequence`` grows by 1 with every write.

    Unknown fields are ignored, because during a rolling deployment two versions write the same records.
    """

    model_config = ConfigDict(extra="ignore")

    task_id: TaskId
    tenant: str | None = Field(None, description="Whose it is; None without tenants")
    status: Status
    sequence: int
    request: GenerationRequest | None = Field(None, description="None where the message held no valid request")
    origin: TaskId | None = Field(None, description="The task that this one repeats")
    fingerprint: str | None = None
    model: ModelRef | None = None
    created_at: When
    started_at: When | None = None
    completed_at: When | None = None
    queued_at: When | None = Field(None, description="When a message for it was last sent, as far as the record knows")
    attempt: int = 0
    attempts: list[PastAttempt] = Field(default_factory=list, description="Those that ended, the last 50 of them")
    lease: Lease | None = None
    progress: Progress | None = None
    input: Input | None = Field(None, description="Which input image the task draws from")
    preview: str | None = Field(None, description="Key of a thumbnail of the unfinished picture")
    images: list[Image] = Field(default_factory=list)
    error: ErrorInfo | None = None
    timings: Timings | None = None
    batch_size: int | None = None
    cold_start: bool | None = None
    expires_at: When

    def to_json(self) -> bytes:
        return self.model_dump_json().encode()

    @classmethod
    def from_json(cls, body: bytes) -> Record:
        return cls.model_validate_json(body)

    @property
    def faults(self) -> int:
        """How many attempts ended by a retryable fault."""
        return sum(one.outcome == "released" for one in self.attempts)

    def asks_for(self, request: GenerationRequest) -> bool:
        """Whether ``request`` is this task's: as its caller sent it, or with seed and defaults filled in, as a requeued
        message has it.
        """
        known = {self.fingerprint, self.request.fingerprint() if self.request else None}
        return request.fingerprint() in known

    def next(self, **changes: Any) -> Record:
        """A copy with ``changes`` and the next ``sequence``."""
        return self.model_copy(update={"sequence": self.sequence + 1, **changes})
