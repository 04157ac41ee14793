"""Input images as strangers send them: what is none, what would fill the memory, what telephones and scanners write."""

from __future__ import annotations

import io
import struct
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from handler.contract.request import GenerationRequest
from handler.engine.imaging import MAX_PIXELS, decode_input, encode_image
from handler.errors import InvalidRequest

from ..forms import picture
from ..support import CARD

if TYPE_CHECKING:
    from handler.contract.card import ModelCard
    from handler.contract.request import OutputFormat

FORMS: tuple[OutputFormat, ...] = ("png", "webp", "jpeg")


def read(body: bytes, card: ModelCard = CARD, **asked: Any) -> Image.Image:
    return decode_input(body, GenerationRequest(prompt="fox", image="any", **asked), card)


def refused(body: bytes, **asked: Any) -> str:
    with pytest.raises(InvalidRequest) as fault:
        read(body, **asked)
    (detail,) = fault.value.details
    assert detail.field == "image"
    return detail.message


def saved(made: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    made.save(out, form, **options)
    return out.getvalue()


def png(width: int, height: int, rows: bytes) -> bytes:
    """A PNG (8 bits of grey) of that size on paper, with whatever rows."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_a_clear_picture_is_on_white_as_jpeg_and_clear_in_other_forms() -> None:
    """Qwen-Image 2.1 draws pictures with an alpha channel."""
    clear = Image.new("RGBA", (16, 16), (255, 0, 0, 0))
    drawn = {form: Image.open(io.BytesIO(encode_image(clear, form, None, 1).body)) for form in FORMS}
    assert {form: made.mode for form, made in drawn.items()} == {"png": "RGBA", "webp": "RGBA", "jpeg": "RGB"}
    assert min(np.asarray(drawn["jpeg"])[8, 8]) > 250


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_it_comes_in_its_own_size(form: str) -> None:
    made = read(picture(64, 48, form))
    assert (made.size, made.mode) == ((64, 48), "RGB")
    red, green, _ = np.asarray(made)[24, 32]
    assert red > 200
    assert green < 50


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"GIF89a",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n",
        picture()[:-30],
        picture(form="JPEG")[:200],
        picture(form="WEBP")[:60],
        saved(Image.new("RGB", (64, 64)), "GIF"),
        saved(Image.new("RGB", (64, 64)), "TIFF"),
        saved(Image.new("RGB", (64, 64)), "BMP"),
        png(64, 64, b"short"),
    ],
)
def test_what_is_none_of_the_three_formats_is_refused(body: bytes) -> None:
    assert "is not a PNG, JPEG or WebP image" in refused(body)


@pytest.mark.parametrize("size", [(4097, 4096), (20000, 20000), (2**31 - 1, 2**31 - 1), (MAX_PIXELS + 1, 1)])
def test_a_decompression_bomb_is_not_unpacked(size: tuple[int, int]) -> None:
    """Half a kilobyte that would be gigabytes; its rows are not even there."""
    assert "pixels" in refused(png(*size, b""), width=64, height=64)


def test_the_largest_is_taken() -> None:
    body = saved(Image.new("L", (4096, 4096), 128))
    assert len(body) < 100_000
    assert read(body, width=64, height=64).size == (64, 64)


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ((60, 64), "its width of 60 is not a multiple of 8"),
        ((64, 60), "its height of 60 is not a multiple of 8"),
        ((64, 8), "its height of 8 is not within 16 to 4096"),
        ((4104, 64), "its width of 4104 is not within 16 to 4096"),
    ],
)
def test_a_size_that_the_model_does_not_draw_is_refused(size: tuple[int, int], words: str) -> None:
    message = refused(picture(*size))
    assert words in message
    assert "with width and height in the request" in message
    assert read(picture(*size), width=64, height=64).size == (64, 64)


def test_scaled_it_is_cut_and_not_squeezed() -> None:
    wide = Image.new("RGB", (300, 100), "blue")
    wide.paste("red", (100, 0, 200, 100))
    made = np.asarray(read(saved(wide), width=64, height=64))
    assert (made[:, 8:-8, 0] > 200).all()


def test_one_side_given_leaves_the_other_its_own() -> None:
    card = CARD.model_copy(update={"defaults": CARD.defaults.model_copy(update={"width": None, "height": None})})
    assert read(picture(100, 64), card, width=96).size == (96, 64)
    assert "height of 100" in refused(picture(64, 100), width=96)


def test_a_photo_is_turned_upright() -> None:
    """Telephones write the picture as it lies and say in the file which way is up."""
    lying = Image.new("RGB", (96, 64), "blue")
    lying.paste("red", (0, 0, 48, 64))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    made = read(saved(lying, "JPEG", exif=exif, quality=95))
    assert made.size == (64, 96)
    assert np.asarray(made)[10, 32, 0] > 200
    assert np.asarray(made)[85, 32, 2] > 200


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_lies_on_white(mode: str) -> None:
    made = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    made.paste((0, 0, 255, 255), (0, 0, 32, 64))
    options: dict[str, Any] = {"transparency": 0} if mode == "P" else {}
    if mode == "P":
        flat = Image.new("P", (64, 64), 0)
        flat.putpalette([255, 0, 0, 0, 0, 255])
        flat.paste(1, (0, 0, 32, 64))
        made = flat
    seen = np.asarray(read(saved(made if mode == "P" else made.convert(mode), **options)))
    assert (seen[32, 48] == 255).all()
    assert seen[32, 8, 0] < 100


def test_sixteen_bits_of_grey_keep_their_upper_eight() -> None:
    deep = Image.fromarray(np.full((64, 64), 0x80FF, np.uint16))
    assert (np.asarray(read(saved(deep))) == 0x80).all()


@pytest.mark.parametrize("mode", ["1", "L", "CMYK"])
def test_other_modes_become_colours(mode: str) -> None:
    form = "JPEG" if mode == "CMYK" else "PNG"
    assert read(saved(Image.new("RGB", (64, 64), "white").convert(mode), form)).mode == "RGB"


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a telephone"
    return exif


WHOLE = [picture(form=form, exif=exif) for form in ("PNG", "JPEG", "WEBP") for exif in (Image.Exif(), turned())]


def only_the_image_is_blamed(body: bytes) -> bool:
    try:
        return read(body, width=64, height=64).size == (64, 64)
    except InvalidRequest as fault:
        return [one.field for one in fault.details] == ["image"]


@given(st.sampled_from(WHOLE), st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=12))
def test_no_broken_file_breaks_more_than_its_task(body: bytes, changes: list[tuple[int, int]]) -> None:
    torn = bytearray(body)
    for at, value in changes:
        torn[at % len(torn)] = value
    assert only_the_image_is_blamed(bytes(torn))


@given(st.sampled_from(WHOLE), st.binary(max_size=200), st.integers(0, 60))
def test_a_file_with_foreign_parts(body: bytes, foreign: bytes, at: int) -> None:
    assert only_the_image_is_blamed(body[:at] + foreign + body[at + len(foreign) :])
