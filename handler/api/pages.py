"""``GET /`` and ``GET /page/{file}``: the web page, static files of this package, and its security headers."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ..errors import NotFound, ServiceFault
from . import freshness
from .routing import Call, Reply

if TYPE_CHECKING:
    from collections.abc import Callable

    from .routing import Route

FOLDER = Path(__file__).parent / "page"
INDEX = "index.html"
CONTENT_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
INLINE = re.compile(r"<script>(.*?)</script>", re.DOTALL)


class Pages:
    """Serves the page's files, which are read once. ``sign`` returns some presigned URL: the page's
    Content-Security-Policy allows images and requests from its origin.
    """

    def __init__(self, sign: Callable[[], str]) -> None:
        self._sign = sign
        self._pictures: str | None = None

    @property
    def routes(self) -> dict[str, Route]:
        """The routes of the page."""
        return {"GET /": lambda call: self._file(INDEX, call), "GET /page/{file}": self._part}

    def _part(self, call: Call, file: str) -> Reply:
        if file == INDEX:
            raise NotFound("the page is at the root")  # its relative URLs would not resolve from here
        return self._file(file, call)

    def _file(self, name: str, call: Call) -> Reply:
        """The file, or 304 if the caller has it. Raises NotFound."""
        if name not in self._files:
            raise NotFound("the page has no such file")
        body, etag = self._files[name]
        # Revalidated every time, mostly by a 304: a page of one version with a script of another would break.
        headers = {"Cache-Control": "no-cache", "ETag": etag}
        if name == INDEX:
            headers["Content-Security-Policy"] = self._policy()
            headers["Cross-Origin-Opener-Policy"] = "same-origin"
            headers["Referrer-Policy"] = "no-referrer"
        if freshness.matches(call.headers.get("If-None-Match"), etag):
            return Reply(304, headers=headers)
        return Reply(200, body, CONTENT_TYPES[Path(name).suffix], headers)

    @cached_property
    def _files(self) -> dict[str, tuple[str, str]]:
        """Text and ETag of each file. Only these are ever served, so that a path cannot lead out of the folder."""
        texts = {file.name: file.read_text() for file in FOLDER.iterdir() if file.suffix in CONTENT_TYPES}
        return {name: (text, f'"{_digest(text).hex()[:20]}"') for name, text in texts.items()}

    def _policy(self) -> str:
        """The Content-Security-Policy: the page's own files, this API and images from the bucket, nothing else."""
        scripts = [
            f"'sha256-{base64.b64encode(_digest(text)).decode()}'" for text in INLINE.findall(self._files[INDEX][0])
        ]
        pictures = self._origin()
        return "; ".join(
            [
                "default-src 'none'",
                f"script-src 'self' {' '.join(scripts)}",
                "style-src 'self'",
                f"img-src 'self' data: blob: {pictures}",
                f"connect-src 'self' {pictures}",
                "base-uri 'none'",
                "form-action 'none'",
                "frame-ancestors 'none'",
            ]
        )

    def _origin(self) -> str:
        """The origin of presigned URLs; any https origin if there are no credentials to sign one with."""
        if self._pictures is None:
            try:
                url = urlsplit(self._sign())
            except ServiceFault:
                return "https:"
            self._pictures = f"{url.scheme}://{url.netloc}"
        return self._pictures


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
