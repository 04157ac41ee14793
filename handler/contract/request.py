"""GenerationRequest, and its validation from untrusted bytes."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator
from pydantic_core import from_json, to_json

from ..errors import FieldError, InvalidRequest
from .ids import TASK_ID

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_BODY = 256 * 1024
"""Most bytes of a request's body: far more than any valid one has, and no more than an SQS message may have."""
MAX_SEED = 2**63 - 1

TaskId = Annotated[str, StringConstraints(pattern=f"^{TASK_ID}$")]
Tag = Annotated[str, StringConstraints(min_length=1, max_length=64)]
Side = Annotated[int, Field(ge=16, le=4096)]
OutputFormat = Literal["png", "jpeg", "webp"]
C = TypeVar("C", bound="Contract")


class Contract(BaseModel):
    """Base of all models that cross a boundary: strict types, unknown fields refused, immutable."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, defer_build=True)


class GenerationRequest(Contract):
    """One request for images. What is left out comes from the model card of the pipeline that will run it."""

    prompt: str = Field(min_length=1, max_length=2000, pattern=r"\S", description="What to draw")
    negative_prompt: str | None = Field(None, max_length=2000, description="What to keep out of the picture")
    num_inference_steps: int | None = Field(None, ge=1, le=200, description="Denoising steps")
    guidance_scale: float | None = Field(None, ge=0, le=50, description="How closely to follow the prompt")
    seed: int | None = Field(None, ge=0, le=MAX_SEED, description="Same seed, same picture; drawn if left out")
    width: Side | None = Field(None, description="Pixels")
    height: Side | None = Field(None, description="Pixels")
    num_images: int = Field(1, ge=1, le=8, description="Picture i of a task has the seed `seed + i`")
    image: TaskId | None = Field(None, description="Input image: the `upload_id` that POST /uploads gave; never a URL")
    strength: float | None = Field(None, ge=0, le=1, description="How far to go from the input image; 1 forgets it")
    output_format: OutputFormat = "png"
    quality: int | None = Field(None, ge=1, le=100, description="For jpeg and webp; 90 if left out")
    task_id: TaskId | None = Field(None, description="Names the task; the same id and body runs once")
    tags: list[Tag] = Field(default_factory=list, max_length=16, description="Yours, kept in the record")

    @model_validator(mode="after")
    def _quality_has_a_use(self) -> Self:
        if self.quality is not None and self.output_format == "png":
            raise ValueError("quality: png has none; ask for jpeg or webp")
        return self

    @model_validator(mode="after")
    def _strength_has_a_use(self) -> Self:
        if self.strength is not None and self.image is None:
            raise ValueError("strength: has no use without image")
        return self

    @property
    def steps(self) -> int | None:
        """Denoising steps that are actually run: with an input image ``strength`` of them. None while unknown."""
        if self.num_inference_steps is None or self.image is None or self.strength is None:
            return self.num_inference_steps
        return int(self.num_inference_steps * self.strength)

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the request's fields except ``task_id``; independent of their order in the JSON."""
        return hashlib.sha256(to_json(self._canonical(exclude={"task_id"}))).hexdigest()

    def message(self, task_id: str) -> str:
        """This request as an SQS message body.

        ASCII only, because SQS refuses or replaces some characters that are valid in JSON.
        """
        return json.dumps(self._canonical() | {"task_id": task_id})

    def _canonical(self, exclude: set[str] | None = None) -> dict[str, Any]:
        return dict(sorted(self.model_dump(exclude=exclude, exclude_none=True).items()))

    def seeds(self) -> list[int]:
        """The seed of each image, with which it can be drawn again alone. Raises ValueError if ``seed`` is None."""
        if self.seed is None:
            raise ValueError("the seed is not resolved yet")
        return [(self.seed + index) % (MAX_SEED + 1) for index in range(self.num_images)]


@dataclass(frozen=True)
class Parsed:
    """A parsed body: the request or its faults, and its task_id if that is valid."""

    request: GenerationRequest | None
    faults: tuple[FieldError, ...]
    task_id: str | None

    def accept(self) -> GenerationRequest:
        """The request. Raises InvalidRequest with every fault."""
        if self.request is None or self.faults:
            raise InvalidRequest(self.faults)
        return self.request


class CardChecks(Protocol):
    """The part of a model card that checks requests."""

    def faults(self, values: Mapping[str, Any]) -> list[FieldError]:
        """Every reason for which the model refuses a request's ``values``."""


def parse(body: str | bytes, card: CardChecks | None = None) -> Parsed:
    """Parses a request and checks it against the contract and, if known, the model's card. Never raises."""
    try:
        data = json_object(body.encode("utf-8", "surrogatepass") if isinstance(body, str) else body)
    except InvalidRequest as fault:
        return Parsed(None, fault.details, None)
    request, faults = None, []
    try:
        request = validated(GenerationRequest, data)
    except InvalidRequest as fault:
        faults = list(fault.details)
    if card is not None:
        at_fault = {fault.field.partition(".")[0] for fault in faults}
        refused = card.faults({name: value for name, value in data.items() if name not in at_fault})
        faults += [fault for fault in refused if fault.field not in at_fault]
    bad_id = any(fault.field == "task_id" for fault in faults)
    return Parsed(request, tuple(faults), None if bad_id else data.get("task_id"))


def json_object(raw: bytes) -> dict[str, Any]:
    """Parses a body as a JSON object. Raises InvalidRequest."""
    if len(raw) > MAX_BODY:
        raise InvalidRequest([FieldError("body", f"has {len(raw)} bytes; at most {MAX_BODY} are taken")])
    try:
        data = from_json(raw, allow_inf_nan=False)
    except ValueError as fault:
        raise InvalidRequest([FieldError("body", f"is not JSON: {fault}")]) from fault
    if not isinstance(data, dict):
        raise InvalidRequest([FieldError("body", "must be a JSON object")])
    return data


def validated(contract: type[C], data: dict[str, Any]) -> C:
    """``data`` validated as ``contract``. Raises InvalidRequest with every fault."""
    try:
        return contract.model_validate(data)
    except ValidationError as failed:
        faults = [_fault(dict(error)) for error in failed.errors(include_url=False, include_input=False)]
        raise InvalidRequest(faults) from failed


def _fault(error: dict[str, Any]) -> FieldError:
    path = ".".join(str(part) for part in error["loc"])
    message = {"extra_forbidden": "unknown field", "missing": "is required"}.get(error["type"], error["msg"])
    if error["type"] == "value_error":
        path, _, message = str(error["ctx"]["error"]).partition(": ")
    return FieldError(path or "body", message)
