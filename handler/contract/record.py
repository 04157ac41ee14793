"""The record of a task, as it lies in S3: its parts and what each means. How it moves is :mod:`handler.task.moves`."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from ..errors import Code
from .pointer import Pointer
from .request import FORMULA, Contract, GenerationRequest, TaskId, fingerprint_0_1_0
from .statuses import Status

When = Annotated[datetime, Field(strict=False)]  # a string in JSON


class Kept(Contract):
    """Base of what Darkroom wrote itself. Fields that it does not know are kept and passed over: while a deployment
    rolls, two versions write the same records.
    """

    model_config = ConfigDict(extra="allow")


class KeptRequest(GenerationRequest):
    """A request as a record holds it."""

    model_config = ConfigDict(extra="allow")


class ModelRef(Kept):
    """Which model drew the picture; ``dtype`` because another one draws (slightly) other pixels."""

    id: str
    revision: str | None = None
    pipeline: str
    dtype: str


class Lease(Kept):
    """``message_id`` is the message under which the owner holds the task: any other one is a duplicate.

    ``seconds``: how long it is believed from each sign of life on. ``saved_step`` and ``spent_seconds`` are the
    record's as the attempt found them.
    """

    owner: str
    expires_at: When
    seconds: float | None = None
    message_id: str | None = None
    saved_step: int = 0
    spent_seconds: float = 0.0


class Progress(Kept):
    """``fraction`` from 0 to 1; ``eta_seconds`` None until a step was measured."""

    step: int
    steps: int
    fraction: float
    eta_seconds: float | None = None


class Input(Kept):
    """The input image as the first attempt found it: ``bytes`` long, ``sha256`` of them in hex.

    An upload may be replaced; a task's picture is drawn from one and the same input whatever becomes of its attempts.
    """

    bytes: int
    sha256: str


class Image(Kept):
    """An image in the bucket: ``bytes`` long, ``sha256`` of them in hex.

    Of one that is ``unsafe`` nothing was kept: key and sum are empty, and it has no bytes.
    """

    key: str
    seed: int
    width: int
    height: int
    content_type: str
    bytes: int
    sha256: str
    unsafe: bool = False


class Remark(Kept):
    """What a caller should know of how a task was drawn. ``field``: of the request, if it is about one."""

    field: str | None = None
    message: str


class FaultDetail(Kept):
    field: str
    message: str


class ErrorInfo(Kept):
    code: Code
    message: str
    retryable: bool
    details: list[FaultDetail] = Field(default_factory=list)


class Timings(Kept):
    """Seconds. ``load`` is what this task waited for the pipeline; ``total`` runs from claim to commit, without it."""

    queue: float = 0
    load: float = 0
    text: float = 0
    denoise: float = 0
    decode: float = 0
    encode: float = 0
    upload: float = 0
    total: float = 0


Outcome = Literal["completed", "failed", "cancelled", "released", "suspended", "expired"]


class PastAttempt(Kept):
    """What became of an attempt. ``released``: a passing fault; ``suspended``: its host went; ``expired``: it was not
    heard of again, and ``ended_at`` is when that was noticed.
    """

    number: int
    owner: str
    started_at: When
    ended_at: When
    outcome: Outcome
    code: Code | None = None
    message: str | None = None


class Record(Kept):
    """``status.json``, the only truth about a task. ``sequence`` grows by 1 with every write.

    ``sends``: messages that were sent for it; ``tries``: attempts that ended by the task's own fault, or without a step
    saved; ``spent_seconds``: of drawing, from each attempt's first step to its end or last sign of life;
    ``saved_step``: steps that a checkpoint holds; ``warnings``: what its caller should know of how it was drawn.
    """

    task_id: TaskId
    tenant: str | None = Field(None, description="Whose it is; None without tenants")
    status: Status
    sequence: int
    request: KeptRequest | None = Field(None, description="None where the message held no valid request")
    body: str | None = Field(None, description="What such a message held, its first 4 KB")
    origin: TaskId | None = Field(None, description="The task that this one repeats")
    fingerprint: str | None = None
    model: ModelRef | None = None
    created_at: When
    started_at: When | None = None
    completed_at: When | None = None
    queued_at: When | None = Field(None, description="When a message for it was last sent, as far as the record knows")
    sends: int = 0
    tries: int = 0
    spent_seconds: float = 0.0
    saved_step: int = 0
    warnings: list[Remark] = Field(default_factory=list)
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
    purged: bool = Field(False, description="Whether its caller had what was asked for and drawn deleted")
    expires_at: When

    def to_json(self) -> bytes:
        return self.model_dump_json().encode()

    @classmethod
    def from_json(cls, body: bytes) -> Record:
        return cls.model_validate_json(body)

    def asks_for(self, request: GenerationRequest) -> bool:
        """Whether the record is that of ``request``. 0.1.0 sent requests with seed and defaults resolved, too."""
        if self.fingerprint is None:
            return False
        if request.is_named_by(self.fingerprint):
            return True
        of_0_1_0 = not self.fingerprint.startswith(FORMULA)
        return of_0_1_0 and self.request is not None and request.is_named_by(fingerprint_0_1_0(self.request))

    def pointer(self) -> str:
        """The body of a message for this task. Needs a fingerprint."""
        return Pointer(
            task_id=self.task_id, tenant=self.tenant, fingerprint=self.fingerprint or "", send=self.sends
        ).to_json()

    def next(self, **changes: Any) -> Record:
        """This record, moved on."""
        return self.model_copy(update={"sequence": self.sequence + 1, **changes})
