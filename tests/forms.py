"""Input images, and how a browser sends one: the fields of a form and then the file, as multipart/form-data."""

from __future__ import annotations

import io
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Mapping


def picture(width: int = 64, height: int = 64, form: str = "PNG", **options: Any) -> bytes:
    """A file with an image: dark above, light below, and red in its middle."""
    made = Image.linear_gradient("L").convert("RGB").resize((width, height))
    made.paste("red", (width // 4, height // 4, 3 * width // 4, 3 * height // 4))
    out = io.BytesIO()
    made.save(out, form, **options)
    return out.getvalue()


def send_form(url: str, fields: Mapping[str, str], file: bytes) -> int:
    """Posts the form; the status that comes back."""
    limit = uuid4().hex
    parts = [f'--{limit}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{fields[name]}\r\n' for name in fields]
    head = f'--{limit}\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
    body = "".join([*parts, head]).encode() + file + f"\r\n--{limit}--\r\n".encode()
    kind = {"Content-Type": f"multipart/form-data; boundary={limit}"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, kind, method="POST")) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code
