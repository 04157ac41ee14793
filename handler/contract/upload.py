"""The body of ``POST /uploads``."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field

from .request import Contract

ContentType = Literal["image/png", "image/jpeg", "image/webp"]
CONTENT_TYPES: tuple[str, ...] = get_args(ContentType)


class UploadRequest(Contract):
    """The input image that is going to be uploaded; an empty body means a PNG."""

    content_type: ContentType = Field("image/png", description="The form takes this type and no other")
