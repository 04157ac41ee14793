"""Encodes pictures as PNG, JPEG or WebP, and decodes input images. The same picture always gives the same bytes."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps

from ..errors import FieldError, InvalidRequest
from . import EncodedImage

if TYPE_CHECKING:
    from ..contract.card import ModelCard
    from ..contract.request import GenerationRequest, OutputFormat
    from . import Developed

DEFAULT_QUALITY = 90
FORMATS = ("PNG", "JPEG", "WEBP")
"""The only formats that Pillow may read here: some of its other readers start external programs."""
MAX_PIXELS = 4096 * 4096
"""The most pixels of an input image: 64 MB in memory as RGBA."""


def encode_image(picture: Image.Image, output_format: OutputFormat, quality: int | None, seed: int) -> EncodedImage:
    """Encodes one picture; ``quality`` (1 to 100) is ignored for png."""
    options: dict[str, Any] = {} if output_format == "png" else {"quality": quality or DEFAULT_QUALITY}
    flat = _flat(picture) if output_format == "jpeg" else picture
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


def encode_images(developed: Developed, request: GenerationRequest) -> list[EncodedImage]:
    """Encodes a task's pictures as it asked for; of those that are unsafe nothing but the size is kept."""
    pairs = zip(developed.pictures, request.seeds(), strict=True)
    images = [encode_image(picture, request.output_format, request.quality, seed) for picture, seed in pairs]
    unsafe = developed.unsafe
    return [replace(image, body=b"", unsafe=True) if index in unsafe else image for index, image in enumerate(images)]


def decode_input(body: bytes, request: GenerationRequest, card: ModelCard) -> Image.Image:
    """The input image as RGB, rotated as its EXIF data says, scaled to cover the request's ``width`` and ``height`` and
    cropped at the centre; in its own size if the request has neither. Raises InvalidRequest.
    """
    try:
        # Only the header is read here: an image that would fill the memory is refused before it is decoded.
        picture = Image.open(io.BytesIO(body), formats=FORMATS)
        if picture.width * picture.height > MAX_PIXELS:
            raise _unfit(f"has {picture.width} by {picture.height} pixels; at most {MAX_PIXELS} in all are taken")
        upright = _flat(ImageOps.exif_transpose(picture))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as fault:
        raise _unfit(f"has too many pixels; at most {MAX_PIXELS} are taken") from fault
    except (InvalidRequest, MemoryError):
        raise
    except Exception as fault:  # Pillow's readers raise anything on malformed bytes; it is the caller's fault
        raise _unfit("is not a PNG, JPEG or WebP image, or a broken one") from fault
    size = (request.width or upright.width, request.height or upright.height)
    for name, value in zip(("width", "height"), size, strict=True):
        if reason := card.over(name, value):
            raise _unfit(f"its {name} of {reason}; with width and height in the request it is scaled to these")
    return upright if size == upright.size else ImageOps.fit(upright, size, Image.Resampling.LANCZOS)


def _flat(picture: Image.Image) -> Image.Image:
    """As RGB: transparency on white, 16-bit channels reduced to their upper 8 bits."""
    if picture.mode.startswith("I"):
        picture = Image.fromarray((np.asarray(picture).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    layers = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), layers).convert("RGB")


def _unfit(reason: str) -> InvalidRequest:
    return InvalidRequest([FieldError("image", reason)])
