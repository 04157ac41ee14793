"""Pictures to files: PNG, JPEG, WebP. The same picture always becomes the same bytes."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from . import EncodedImage

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..request import OutputFormat

DEFAULT_QUALITY = 90


def encode(picture: Image, output_format: OutputFormat, quality: int | None, seed: int) -> EncodedImage:
    """Encodes one picture; ``quality`` (1 to 100) is for jpeg and webp."""
    options: dict[str, Any] = {} if output_format == "png" else {"quality": quality or DEFAULT_QUALITY}
    flat = picture.convert("RGB") if output_format == "jpeg" else picture
    out = io.BytesIO()
    flat.save(out, output_format.upper(), **options)
    return EncodedImage(
        body=out.getvalue(),
        content_type=f"image/{output_format}",
        extension="jpg" if output_format == "jpeg" else output_format,
        seed=seed,
        width=picture.width,
        height=picture.height,
    )
