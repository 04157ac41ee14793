"""OpenAI's images API as far as it means something here (platform.openai.com, API reference, "Images" and "Models")."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from .request import Contract, OutputFormat

ONLY_THEIRS = (
    *("background", "complexity", "frame_count", "frame_duration_ms", "moderation", "partial_images"),
    *("quality", "safety_identifier", "stream", "style", "svg"),
)
"""Fields of theirs that mean nothing here: they are taken as null, which is as good as left out, and refused else."""
SIZE = re.compile(r"([1-9]\d{0,3})x([1-9]\d{0,3})")


class ImagesRequest(Contract):
    """The body of `POST /v1/images/generations`. What other fields of OpenAI's would do, nothing here does: they are
    refused by name.
    """

    prompt: str = Field(min_length=1, max_length=2000, pattern=r"\S", description="What to draw")
    model: str | None = Field(None, max_length=256, description="The deployment's own, or absent")
    n: int | None = Field(None, ge=1, le=8, description="Images; 1 if left out")
    size: Annotated[str, StringConstraints(pattern=f"^(auto|{SIZE.pattern})$")] | None = Field(
        None, description="`512x512`, width and height in pixels; `auto` or left out: the model's own"
    )
    response_format: Literal["url", "b64_json"] | None = Field(None, description="`url` if left out")
    output_format: OutputFormat | None = Field(None, description="`png` if left out")
    output_compression: int | None = Field(
        None, ge=1, le=100, description="For jpeg and webp: their quality, 100 is the best"
    )
    user: str | None = Field(None, min_length=1, max_length=64, description="Kept as a tag of the task")

    def generation(self) -> dict[str, Any]:
        """The same as a GenerationRequest's fields."""
        size = SIZE.fullmatch(self.size or "")
        asked = {
            "prompt": self.prompt,
            "num_images": self.n,
            "width": int(size[1]) if size else None,
            "height": int(size[2]) if size else None,
            "output_format": self.output_format,
            "quality": self.output_compression,
            "tags": [self.user] if self.user else None,
        }
        return {name: value for name, value in asked.items() if value is not None}


class OpenAiImage(Contract):
    """``url`` or ``b64_json``, as it was asked for."""

    url: str | None = None
    b64_json: str | None = None


class ImagesResponse(Contract):
    """``created``: seconds since 1970. ``task_id`` is ours: the task's name under `/results`."""

    created: int
    data: list[OpenAiImage]
    output_format: OutputFormat
    size: str | None
    task_id: str


class OpenAiModel(Contract):
    id: str
    object: Literal["model"] = "model"
    created: int = Field(0, description="Not known")
    owned_by: str = "darkroom"


class OpenAiModels(Contract):
    object: Literal["list"] = "list"
    data: list[OpenAiModel]


class OpenAiError(Contract):
    """Their envelope of errors; ``code`` is ours."""

    class Body(Contract):
        message: str
        type: Literal["invalid_request_error", "rate_limit_error", "server_error"]
        param: str | None
        code: str

    error: Body
