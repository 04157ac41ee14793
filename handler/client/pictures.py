"""Pictures out of presigned URLs, each checked against the sha256 in its record."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from re import fullmatch
from typing import TYPE_CHECKING

from ..contract.ids import TASK_ID
from ..errors import Internal, NotFound, ServiceFault
from .patience import Retryable, with_retries

if TYPE_CHECKING:
    from ..contract.responses import ResultImage, ResultResponse
    from .net import HttpClient
    from .patience import Clock

EXTENSIONS = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp"}


class Stale(NotFound):
    """The URL is no longer good, or its image has gone."""


@dataclass(frozen=True)
class Picture:
    """``body``: the file as the worker wrote it, of ``about.content_type``; ``name``: a file name of its own."""

    name: str
    body: bytes
    about: ResultImage

    def save(self, folder: str | Path) -> Path:
        """Writes it into ``folder``, which is made where it is missing. Whole or not at all, whatever happens."""
        path = Path(folder) / self.name
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        part.write_bytes(self.body)
        return part.replace(path)


def fetch(result: ResultResponse, http: HttpClient, within: float, clock: Clock) -> list[Picture]:
    """All pictures of a completed task. Raises Stale, ServiceFault, and Internal for other bytes than the record's."""
    if not fullmatch(TASK_ID, result.task_id):
        raise Internal("the service names a task as none can be named")
    several = len(result.images) > 1
    return [
        Picture(
            name=f"{result.task_id}{f'-{index}' if several else ''}.{EXTENSIONS.get(image.content_type, 'bin')}",
            body=with_retries(lambda left, image=image: _get(image, http, left), within, clock),  # type: ignore[misc]
            about=image,
        )
        for index, image in enumerate(result.images)
    ]


def _get(image: ResultImage, http: HttpClient, left: float) -> bytes:
    status, body = http.plain("GET", image.url, left)
    if status in {403, 404, 410}:
        raise Stale("the image is no longer kept, or its URL has expired")
    if status != 200:
        raise Retryable(ServiceFault(f"the image was not given out: {status}"))
    if sha256(body).hexdigest() != image.sha256:
        # Torn or mangled on its way: another try may bring the right one.
        raise Retryable(Internal("the image that came back is not the one that was written"))
    return body
