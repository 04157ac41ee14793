"""What a caller asks for: GenerationRequest, read from bytes that nobody has vouched for."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator
from pydantic_core import from_json, to_json

from ..errors import FieldError, InvalidRequest
from .ids import TASK_ID

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

MAX_BODY = 256 * 1024
"""Bytes that a request may have: far more than its largest valid form, far less than SQS carries."""
MAX_SEED = 2**63 - 1
FORMULA = "2-"
"""What a fingerprint of this release begins with; those of 0.1.0 are bare hex."""
FIELDS_0_1_0 = frozenset(
    [
        "prompt",
        "negative_prompt",
        "num_inference_steps",
        "guidance_scale",
        "seed",
        "width",
        "height",
        "num_images",
        "output_format",
        "quality",
        "tags",
    ]
)

TaskId = Annotated[str, StringConstraints(pattern=f"^{TASK_ID}$")]
Tag = Annotated[str, StringConstraints(min_length=1, max_length=64)]
Side = Annotated[int, Field(ge=16, le=4096)]
OutputFormat = Literal["png", "jpeg", "webp"]
C = TypeVar("C", bound="Contract")


@dataclass(frozen=True)
class Rule:
    """Says when ``field`` has no use because of the field ``beside`` it."""

    field: str
    beside: str
    message: str
    broken: Callable[[Mapping[str, Any]], bool]


RULES = (
    Rule(
        "quality",
        "output_format",
        "png has none; ask for jpeg or webp",
        lambda values: values.get("quality") is not None and values.get("output_format", "png") == "png",
    ),
    Rule(
        "strength",
        "image",
        "has no use without image",
        lambda values: values.get("strength") is not None and values.get("image") is None,
    ),
)
"""Between two fields. The API's description has the same in :mod:`handler.contract.described`."""


class Contract(BaseModel):
    """Base of all that crosses a boundary: unknown fields refused, nothing converted, nothing changed later."""

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
    def _fields_fit_together(self) -> Self:
        if misfits := faults_between(dict(self)):
            raise ValueError("; ".join(f"{fault.field}: {fault.message}" for fault in misfits))
        return self

    @property
    def steps(self) -> int | None:
        """Denoising steps that are run: with an input image those for which ``strength`` leaves room."""
        if self.num_inference_steps is None or self.image is None or self.strength is None:
            return self.num_inference_steps
        return int(self.num_inference_steps * self.strength)

    def fingerprint(self) -> str:
        """SHA-256 of what was asked for, whatever the task is called and however the JSON was written.

        Left out, null and equal to the default are the same, so that a field which is added later, with a default,
        changes no fingerprint.
        """
        fields = type(self).model_fields
        asked = {
            name: value
            for name, value in sorted(self.model_dump(exclude={"task_id"}).items())
            if name not in fields or value != fields[name].get_default(call_default_factory=True)
        }
        return FORMULA + hashlib.sha256(to_json(asked)).hexdigest()

    def is_named_by(self, fingerprint: str) -> bool:
        """Whether a fingerprint is this request's, by the formula that it was made with."""
        if fingerprint.startswith(FORMULA):
            return fingerprint == self.fingerprint()
        return fingerprint == fingerprint_0_1_0(self)

    def seeds(self) -> list[int]:
        """The seed of each image, so that picture i can be had again alone. Needs ``seed`` resolved."""
        if self.seed is None:
            raise ValueError("the seed is not resolved yet")
        return [(self.seed + index) % (MAX_SEED + 1) for index in range(self.num_images)]


def fingerprint_0_1_0(request: GenerationRequest) -> str:
    """As release 0.1.0 computed it, defaults included; what that release did not know counts where it was asked for."""
    fields = type(request).model_fields
    asked = {
        name: value
        for name, value in sorted(request.model_dump(exclude={"task_id"}, exclude_none=True).items())
        if name in FIELDS_0_1_0 or name not in fields or value != fields[name].get_default(call_default_factory=True)
    }
    return hashlib.sha256(to_json(asked)).hexdigest()


def faults_between(values: Mapping[str, Any], at_fault: Collection[str] = ()) -> list[FieldError]:
    """Every fault that no field has alone. ``at_fault``: fields with a fault of their own, whose rules are passed over.

    ``values`` may be incomplete; those not at fault have valid types.
    """
    return [
        FieldError(rule.field, rule.message)
        for rule in RULES
        if rule.field not in at_fault and rule.beside not in at_fault and rule.broken(values)
    ]


@dataclass(frozen=True)
class Parsed:
    """A body that was read: a request, or all that is wrong with it; and the task it names, where that is safe."""

    request: GenerationRequest | None
    faults: tuple[FieldError, ...]
    task_id: str | None

    def accept(self) -> GenerationRequest:
        """Raises InvalidRequest with every fault."""
        if self.request is None or self.faults:
            raise InvalidRequest(self.faults)
        return self.request


class CardChecks(Protocol):
    """What is known of the model that will run a request: its card."""

    def faults(self, values: Mapping[str, Any], at_fault: Collection[str] = ()) -> list[FieldError]:
        """What that model refuses in a request's ``values``, apart from fields that are ``at_fault`` already."""


def parse(body: str | bytes, card: CardChecks | None = None) -> Parsed:
    """Reads a request and checks it against the contract and, where known, the card of the model that will run it.

    ``null`` is as good as left out, of every field that may be. All faults are found at once: of each field, and
    between fields that have none of their own.
    """
    try:
        data = json_object(body.encode("utf-8", "surrogatepass") if isinstance(body, str) else body)
    except InvalidRequest as fault:
        return Parsed(None, fault.details, None)
    data = without_null(GenerationRequest, data)
    request, faults = None, []
    try:
        request = GenerationRequest.model_validate(data)
    except ValidationError as failed:
        faults = _faults(failed)
    if card is not None:
        faults += card.faults(data, _fields(faults))
    faults += faults_between(data, _fields(faults))
    bad_id = any(fault.field == "task_id" for fault in faults)
    return Parsed(request, tuple(faults), None if bad_id else data.get("task_id"))


def without_null(contract: type[Contract], data: Mapping[str, Any]) -> dict[str, Any]:
    """The data without the nulls of fields that may be left out."""
    optional = {name for name, one in contract.model_fields.items() if not one.is_required()}
    return {name: value for name, value in data.items() if value is not None or name not in optional}


def json_object(raw: bytes) -> dict[str, Any]:
    """The JSON object that a body is. Raises InvalidRequest."""
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
    """``data`` as that contract; ``null`` is as good as left out. Raises InvalidRequest with every fault."""
    try:
        return contract.model_validate(without_null(contract, data))
    except ValidationError as failed:
        raise InvalidRequest(_faults(failed)) from failed


def _faults(failed: ValidationError) -> list[FieldError]:
    """Those of single fields. pydantic looks between fields only where it finds none, so ``faults_between`` does."""
    errors = failed.errors(include_url=False, include_input=False)
    return [_fault(dict(error)) for error in errors if error["type"] != "value_error"]


def _fault(error: dict[str, Any]) -> FieldError:
    path = ".".join(str(part) for part in error["loc"])
    message = {"extra_forbidden": "unknown field", "missing": "is required"}.get(error["type"], error["msg"])
    return FieldError(path or "body", message)


def _fields(faults: list[FieldError]) -> set[str]:
    return {fault.field.partition(".")[0] for fault in faults}
