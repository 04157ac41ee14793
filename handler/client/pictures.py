"""Downloads pictures from presigned URLs and checks each against the sha256 of its record."""

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
    """The URL has expired, or its image was deleted."""


@dataclass(frozen=True)
class Picture:
    """A downloaded image. ``body``: the file, of type ``about.content_type``; ``name``: a file name made of its
    task_id.
    """

    name: str
    body: bytes
    about: ResultImage

    def save(self, folder: str | Path) -> Path:
        """Writes the file into ``folder``, created if missing, and returns its path. Atomic: by a rename at the end.

        Raises OSError, and leaves nothing behind then.
        """
        path = Path(folder) / self.name
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        try:
            part.write_bytes(self.body)
            return part.replace(path)
        except OSError:
            part.unlink(missing_ok=True)
            raise


def fetch(result: ResultResponse, http: HttpClient, within: float, clock: Clock) -> list[Picture]:
    """All pictures of a completed task but the unsafe ones. Raises Stale, ServiceFault, and Internal if a sha256 does
    not match.
    """
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
        if image.url is not None
    ]


def _get(image: ResultImage, http: HttpClient, left: float) -> bytes:
    status, body = http.plain("GET", image.url or "", left)
    if status in {403, 404, 410}:
        raise Stale("the image is no longer kept, or its URL has expired")
    if status != 200:
        raise Retryable(ServiceFault(f"the image was not given out: {status}"))
    if sha256(body).hexdigest() != image.sha256:
        # Truncated or corrupted on its way: another try may succeed.
        raise Retryable(Internal("the image that came back is not the one that was written"))
    return body
