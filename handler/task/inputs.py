"""A task's input image: read at the claim, told in the record, the same for every attempt."""

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
    """The record with what is known of its input image, and the image; the first attempt that finds one decides.

    Nothing is raised for an image that will not do: that ends the task, and only an attempt that holds it may.
    """
    if claimed.request is None or claimed.request.image is None:
        return claimed, None
    upload = store.read_upload(claimed.request.image)
    if upload is None or claimed.input is not None:
        return claimed, upload
    known = Input(bytes=upload.size, sha256=sha256(upload.body).hexdigest())
    return claimed.model_copy(update={"input": known}), upload


def bytes_of(record: Record, upload: Upload | None) -> bytes:
    """The input image's bytes; empty for a task without one. Raises InvalidRequest."""
    if record.request is None or record.request.image is None:
        return b""
    if upload is None:
        raise _unfit("there is no such upload; it is sent before the task is")
    if upload.size > MAX_UPLOAD:
        raise _unfit(f"has {upload.size} bytes; at most {MAX_UPLOAD} are taken")
    if record.input is None or sha256(upload.body).hexdigest() != record.input.sha256:
        # Two halves of two pictures, or two attempts that tell different ones: neither is what was asked for.
        raise _unfit("was replaced by another after the task had begun")
    return upload.body


def _unfit(reason: str) -> InvalidRequest:
    return InvalidRequest([FieldError("image", reason)])
