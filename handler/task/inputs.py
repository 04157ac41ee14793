"""A task's input image: read at the claim; its hash in the record makes sure that every attempt uses the same."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

from ..contract.ids import MAX_UPLOAD
from ..contract.record import Input
from ..errors import FieldError, InvalidRequest

if TYPE_CHECKING:
    from ..aws.store import TaskStore, Upload
    from ..contract.record import Record


def read_input(store: TaskStore, claimed: Record) -> tuple[Record, Upload | None]:
    """Reads the upload that a claimed record's request names, if any. The first attempt to find it adds its size and
    hash to the record, which is returned.

    An unusable image raises nothing here: it fails the task, which only the attempt that holds it may do.
    """
    if claimed.request is None or claimed.request.image is None:
        return claimed, None
    upload = store.read_upload(claimed.request.image)
    if upload is None or claimed.input is not None:
        return claimed, upload
    known = Input(bytes=upload.size, sha256=sha256(upload.body).hexdigest())
    return claimed.model_copy(update={"input": known}), upload


def bytes_of(record: Record, upload: Upload | None) -> bytes:
    """The input image's bytes; empty for a task without one. Raises InvalidRequest if it is missing, too large or was
    replaced.
    """
    if record.request is None or record.request.image is None:
        return b""
    if upload is None:
        raise _unfit("there is no such upload; it is sent before the task is")
    if upload.size > MAX_UPLOAD:
        raise _unfit(f"has {upload.size} bytes; at most {MAX_UPLOAD} are taken")
    if record.input is None or sha256(upload.body).hexdigest() != record.input.sha256:
        # The picture would be drawn partly from each of two images, or differ between attempts.
        raise _unfit("was replaced by another after the task had begun")
    return upload.body


def _unfit(reason: str) -> InvalidRequest:
    return InvalidRequest([FieldError("image", reason)])
