"""TaskStore: records and images in S3. The only place that spells S3 keys.

Every write of a record is conditional, and a put is atomic: a crash during one leaves the old object.
"""

from __future__ import annotations

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, Protocol

import obstore
from obstore.exceptions import PermissionDeniedError

from .errors import LostRace, NotFound, ServiceFault
from .s3 import connect, translated
from .world import TASK_ID

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from obstore import UpdateVersion

    from .settings import Settings

HEALTH_KEY = "health/model.json"
FAR_FUTURE_MS = 9_999_999_999_999
"""Index keys count down from it (to the year 2286), because S3 lists in ascending order only."""
TRY_AGAIN_WITHIN = 5.0
"""Seconds: a write that took longer to fail was slow, or tried again by obstore; its task's lease goes on meanwhile."""
CURSOR = re.compile(rf"\d{{13}}-{TASK_ID}")


def record_key(task_id: str) -> str:
    return f"tasks/{task_id}/status.json"


def image_key(task_id: str, attempt: int, index: int, extension: str) -> str:
    """Attempts write apart, so that one which lost its lease cannot touch the images of the next."""
    return f"tasks/{task_id}/{attempt}/{index}.{extension}"


def checkpoint_key(task_id: str) -> str:
    """One for all attempts: what any of them stores is a beginning of the same picture."""
    return f"tasks/{task_id}/checkpoint"


def preview_key(task_id: str) -> str:
    return f"tasks/{task_id}/preview.jpg"


def index_name(task_id: str, created_at: datetime) -> str:
    return f"{FAR_FUTURE_MS - _milliseconds(created_at):013d}-{task_id}"


def _milliseconds(when: datetime) -> int:
    return int(when.timestamp() * 1000)


class Document(Protocol):
    """What the store needs to know of a record."""

    @property
    def task_id(self) -> str: ...
    @property
    def created_at(self) -> datetime: ...
    def to_json(self) -> bytes: ...


@dataclass(frozen=True)
class Stored:
    """An object as it was read: its bytes and the ETag that a later write must match."""

    body: bytes
    etag: str


@dataclass
class Traces:
    """What lies in the bucket of one task: keys, and when each was written."""

    task_id: str
    recorded_at: datetime | None = None
    checkpoint: datetime | None = None
    images: dict[str, datetime] = field(default_factory=dict)

    @property
    def attempts(self) -> set[str]:
        """The attempts that wrote images, as in their keys."""
        return {key.split("/")[2] for key in self.images}


class TaskStore:
    """One bucket. Raises LostRace when a condition fails and ServiceFault when S3 does; nothing of obstore leaks."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings.require("bucket")
        self._s3 = connect(settings.bucket, settings)

    def read(self, task_id: str) -> Stored | None:
        """The record, or None where there is none (403 counts too: that is S3's answer without ListBucket)."""
        return self._get(record_key(task_id))

    def create(self, record: Document) -> Stored:
        """Writes a record that must not exist yet. Raises LostRace if it does."""
        return self._put_if(record_key(record.task_id), record.to_json(), "create")

    def change(self, stored: Stored, record: Document) -> Stored:
        """Replaces exactly the record that was read as ``stored``. Raises LostRace if it has moved since."""
        return self._put_if(record_key(record.task_id), record.to_json(), {"e_tag": stored.etag})

    def index(self, record: Document) -> None:
        """Lists the task. Called before ``create``: a crash between leaves an entry that ``newest`` passes over."""
        name = index_name(record.task_id, record.created_at)
        with translated("index the task"):
            obstore.put(self._s3, f"index/{name}", b"", use_multipart=False)

    def newest(self, limit: int, cursor: str | None = None) -> tuple[list[Stored], str | None]:
        """Up to ``limit`` records, newest first, and the cursor of the next page (None on the last).

        Each entry is checked against its record, so a stale index entry is passed over, never shown.
        """
        names: list[str] = []
        offset = f"index/{cursor}" if cursor else None
        with translated("list the tasks"):
            for chunk in obstore.list(self._s3, "index", offset=offset, chunk_size=limit + 1):
                names += [str(meta["path"]).removeprefix("index/") for meta in chunk]
                if len(names) > limit:
                    break
        page = names[:limit]
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(self._listed, page))
        return [stored for stored in found if stored is not None], (page[-1] if len(names) > limit else None)

    def _listed(self, name: str) -> Stored | None:
        stored = self.read(name[14:])
        if stored is None:
            return None
        created_at = datetime.fromisoformat(json.loads(stored.body)["created_at"])
        return stored if index_name(name[14:], created_at) == name else None

    def put_image(self, key: str, body: bytes, content_type: str) -> None:
        """Writes an image. A browser shows it, and saves it under a name that tells its task."""
        name = "-".join(key.split("/")[1:])
        attributes = {"Content-Type": content_type, "Content-Disposition": f'inline; filename="{name}"'}
        with translated("write an image"):
            obstore.put(self._s3, key, body, attributes=attributes, use_multipart=False)

    def read_image(self, key: str) -> bytes:
        """Raises NotFound when the image has gone, as after its retention."""
        stored = self._get(key)
        if stored is None:
            raise NotFound("the image is no longer kept")
        return stored.body

    def put_checkpoint(self, task_id: str, body: bytes) -> None:
        with translated("write a checkpoint"):
            obstore.put(self._s3, checkpoint_key(task_id), body, use_multipart=False)

    def read_checkpoint(self, task_id: str) -> bytes:
        """Empty where there is none."""
        stored = self._get(checkpoint_key(task_id))
        return stored.body if stored else b""

    def delete_checkpoint(self, task_id: str) -> None:
        with translated("delete a checkpoint"), suppress(FileNotFoundError):
            obstore.delete(self._s3, checkpoint_key(task_id))

    def presign(self, key: str) -> str:
        """A GET URL, valid for ``URL_LIFETIME`` seconds and no longer than the credentials that sign it."""
        with translated("sign a URL"):
            return obstore.sign(self._s3, "GET", key, timedelta(seconds=self._settings.url_lifetime))

    def read_health(self) -> dict[str, Any] | None:
        stored = self._get(HEALTH_KEY)
        return json.loads(stored.body) if stored else None

    def write_health(self, health: Mapping[str, Any]) -> None:
        with translated("write the model's health"):
            attributes = {"Content-Type": "application/json"}
            obstore.put(self._s3, HEALTH_KEY, json.dumps(health).encode(), attributes=attributes)

    def survey(self) -> Iterator[Traces]:
        """What lies in the bucket, task by task: one request for 1,000 keys."""
        traces: Traces | None = None
        with translated("list the tasks"):
            for chunk in obstore.list(self._s3, "tasks", chunk_size=1000):
                for meta in chunk:
                    _, task_id, *rest = str(meta["path"]).split("/")
                    if traces is None or traces.task_id != task_id:
                        if traces is not None:
                            yield traces
                        traces = Traces(task_id)
                    if rest == ["status.json"]:
                        traces.recorded_at = meta["last_modified"]
                    elif rest == ["checkpoint"]:
                        traces.checkpoint = meta["last_modified"]
                    elif len(rest) == 2:
                        traces.images[str(meta["path"])] = meta["last_modified"]
        if traces is not None:
            yield traces

    def delete_image(self, key: str) -> None:
        with translated("delete an image"), suppress(FileNotFoundError):
            obstore.delete(self._s3, key)

    def _get(self, key: str) -> Stored | None:
        with translated("read"):
            try:
                result = obstore.get(self._s3, key)
                return Stored(bytes(result.bytes()), result.meta["e_tag"] or "")
            except FileNotFoundError:
                return None
            except PermissionDeniedError as fault:
                if "AccessDenied" not in str(fault):
                    raise  # bad or expired credentials must not look like a missing task
                return None

    def _put_if(self, key: str, body: bytes, mode: Literal["create"] | UpdateVersion) -> Stored:
        """A conditional put.

        Refused, it looks again: its own bytes there mean that the write was done and only the answer was lost (the
        next try then meets it as a 412); nothing there means a 409, S3's word for writes at the same moment. That is
        why it may try again where obstore does not: a connection that broke tells not whether S3 acted.
        """
        began = time.monotonic()
        for pause in (0.05, 0.2, 0.8, None):
            try:
                with translated("write the record"):
                    attributes = {"Content-Type": "application/json"}
                    result = obstore.put(self._s3, key, body, attributes=attributes, mode=mode, use_multipart=False)
                return Stored(body, result["e_tag"] or "")
            except LostRace:
                there = self._get(key)
                if there is not None and there.body == body:
                    return there
                if there is not None or mode != "create" or pause is None:
                    raise
                time.sleep(pause)
            except ServiceFault:
                if pause is None or time.monotonic() - began > TRY_AGAIN_WITHIN:
                    raise
                time.sleep(pause)
        raise AssertionError("the last round returns or raises")
