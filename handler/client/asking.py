"""What callers pass as a request, and the JSON made of it. It is validated by the service, not here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from ..contract.ids import MAX_UPLOAD
from ..contract.request import GenerationRequest
from ..errors import FieldError, InvalidRequest

if TYPE_CHECKING:
    from typing import TypeAlias

Asked: TypeAlias = str | Mapping[str, Any] | GenerationRequest
"""A request as callers pass it: a prompt, a mapping of fields, or a GenerationRequest."""


class Parameters(TypedDict, total=False):
    """The fields of a :class:`~handler.contract.request.GenerationRequest` except the prompt."""

    negative_prompt: str
    num_inference_steps: int
    guidance_scale: float
    seed: int
    width: int
    height: int
    num_images: int
    image: str
    strength: float
    output_format: Literal["png", "jpeg", "webp"]
    quality: int
    task_id: str
    tags: list[str]


def fields_of(asked: Asked, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """A request's fields: those of ``asked``, and of ``parameters`` for those that it lacks."""
    if isinstance(asked, GenerationRequest):
        fields = asked.model_dump(mode="json", exclude_none=True, exclude_unset=True)
    else:
        fields = {"prompt": asked} if isinstance(asked, str) else dict(asked)
    return {**parameters, **fields}


def to_json(body: Mapping[str, Any]) -> bytes:
    """The request's body. Raises TypeError for values that JSON cannot represent."""
    return json.dumps(body).encode()


def content_type_of(image: bytes) -> str:
    """The content type of an image file, by its first bytes. Raises InvalidRequest, before anything is sent, if it is
    no PNG, JPEG or WebP or is larger than MAX_UPLOAD.
    """
    if len(image) > MAX_UPLOAD:
        raise InvalidRequest([FieldError("image", f"must have at most {MAX_UPLOAD:,} bytes, has {len(image):,}")])
    if image.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if image.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if image.startswith(b"RIFF") and image[8:12] == b"WEBP":
        return "image/webp"
    raise InvalidRequest([FieldError("image", "must be a PNG, JPEG or WebP file")])
