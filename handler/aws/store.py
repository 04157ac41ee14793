"""TaskStore: records, images and checkpoints in S3. The only module that knows S3 keys.

Keys begin with ``tasks/``, ``index/`` and so on, a tenant's with ``tenants/{tenant}/tasks/`` and so on: the same
task_id in two tenants names two tasks. ``health/`` is shared by all.

Every write of a record is conditional, and a put is atomic: a crash during one leaves the old object.
"""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

import obstore

from ..contract.ids import MAX_UPLOAD, TASK_ID, TENANT
from ..errors import FieldError, InvalidRequest, NotFound, ServiceFault
from ..logs import logger
from . import s3
from .clock import S3Clock
from .events import Bus
from .listing import AGAIN, ENDED, NO_TENANT, TOLD, OpenTask, index_name
from .s3 import Stored, connect, translated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from datetime import date

    from obstore.store import S3Store

    from ..contract.record import Record
    from ..settings import Settings

HEALTH_KEY = "health/available.json"
UNAVAILABLE_KEY = "health/unavailable.json"
OLD_HEALTH_KEY = "health/model.json"
"""Where version 0.1.0 wrote either report."""
DOCTOR_KEY = "health/doctor.json"
MOST_SCANNED = 400
"""The most records that are read for one filtered page: about a second, and a fiftieth of a cent."""
READ_AT_ONCE = 32
MAX_REQUEST = 256 * 1024
"""As contract.request.MAX_BODY, which would bring pydantic."""
NAME = re.compile(TASK_ID)


@dataclass(frozen=True)
class Upload:
    """An uploaded input image: its size in bytes, and its content (empty if it is larger than MAX_UPLOAD)."""

    size: int
    body: bytes


@dataclass(frozen=True)
class HealthReport:
    """What a worker told of its model, and when S3 wrote it: by S3's own clock. ``old``: version 0.1.0 wrote it."""

    body: dict[str, Any]
    at: datetime
    old: bool = False


class TaskStore:
    """One tenant's part of a bucket (or the part without a tenant). Keys outside it are neither read nor signed.

    Methods raise LostRace when a conditional write fails and ServiceFault when S3 fails, never obstore's errors.
    """

    def __init__(self, settings: Settings) -> None:
        """The part without a tenant; see ``for_tenant``. Raises SettingsError without BUCKET."""
        self._settings = settings.require("bucket")
        self._s3 = connect(settings.bucket, settings)
        self._public = connect(settings.bucket, settings, public=True) if settings.public_endpoint_url else self._s3
        self._clock = S3Clock(lambda: self._sign(self._s3, HEALTH_KEY, "HEAD"))  # which this process calls itself
        self.bus = Bus(settings)
        self.tenant: str | None = None
        self._prefix = ""

    def now(self) -> datetime:
        """S3's own time, to about a second. Raises ServiceFault."""
        return self._clock.now()

    def age(self, stored: Stored) -> float:
        """Seconds since S3 wrote the object, by its own clock; 0 for what this process has just written.

        Raises ServiceFault.
        """
        return (self.now() - stored.modified).total_seconds() if stored.modified else 0.0

    def for_tenant(self, tenant: str | None) -> TaskStore:
        """The same bucket's part of ``tenant``. Raises InvalidRequest for an invalid tenant name."""
        if tenant is not None and not re.fullmatch(TENANT, tenant):
            raise InvalidRequest([FieldError("tenant", f"must match {TENANT}")])
        other = copy(self)
        other.tenant = tenant
        other._prefix = f"tenants/{tenant}/" if tenant is not None else ""
        return other

    def all_tenants(self) -> Iterator[TaskStore]:
        """The store without a tenant, then each tenant's: one request for 1,000 tenants."""
        yield self.for_tenant(None)
        with translated("list the tenants"):
            prefixes = obstore.list_with_delimiter(self._s3, "tenants")["common_prefixes"]
        names = [prefix.rstrip("/").removeprefix("tenants/") for prefix in prefixes]
        yield from (self.for_tenant(name) for name in names if re.fullmatch(TENANT, name))

    def record_key(self, task_id: str) -> str:
        return self._key(task_id, "status.json")

    def image_key(self, task_id: str, attempt: int, index: int, extension: str) -> str:
        """Each attempt has its own prefix, so that one that lost its lease cannot overwrite the next one's images."""
        return self._key(task_id, f"{attempt}/{index}.{extension}")

    def checkpoint_key(self, task_id: str, name: str = "") -> str:
        """One key for all attempts whose steps are of the same picture: ``name`` (hex) tells it, the dtype included, so
        that a worker of another dtype overwrites no longer checkpoint of the first.
        """
        return self._key(task_id, f"checkpoint-{name}" if name else "checkpoint")

    def preview_key(self, task_id: str) -> str:
        return self._key(task_id, "preview.jpg")

    def _key(self, task_id: str, name: str) -> str:
        """A key under the task's prefix. Raises NotFound for an invalid task_id: none may become part of a key."""
        if not NAME.fullmatch(task_id):
            raise NotFound("there is no task of this name")
        return f"{self._prefix}tasks/{task_id}/{name}"

    def _relative(self, key: str) -> str:
        """A task's key without the tenant's prefix. Raises NotFound for a key outside it."""
        if not key.startswith(f"{self._prefix}tasks/"):
            raise NotFound("there is nothing of this tenant's at this key")
        return key.removeprefix(self._prefix)

    def read(self, task_id: str) -> Stored | None:
        """The record, or None if there is none."""
        return s3.get(self._s3, self.record_key(task_id))

    def create(self, record: Record) -> Stored:
        """Writes a new record. Raises LostRace if there is one already."""
        stored = s3.put_if(self._s3, self.record_key(record.task_id), record.to_json(), "create")
        self.bus.committed(record)
        return stored

    def change(self, stored: Stored, record: Record) -> Stored:
        """Replaces the record that was read as ``stored``. Raises LostRace if it has changed since."""
        stored = s3.put_if(self._s3, self.record_key(record.task_id), record.to_json(), {"e_tag": stored.etag})
        # A crash here, before an end is told: its task is still listed, in a place that does not say that it was.
        self.bus.committed(record)
        return stored

    def announce(self, record: Record) -> None:
        """Lists the task twice, side by side: among all of its tenant's, and among those that are open.

        Call it before ``create``: a crash between them leaves entries without a record, which ``newest`` skips and the
        doctor removes.
        """
        name = index_name(record.task_id, record.created_at)
        with ThreadPoolExecutor(1) as beside:
            opened = beside.submit(self.open, record.task_id)
            s3.put(self._s3, f"{self._prefix}index/{name}", b"", "index the task")
            opened.result()

    def open(self, task_id: str, *, again: bool = False) -> None:
        """Lists the task as one that somebody has to come for, from now on.

        ``again``: it had ended, and is listed under a second name: whoever ended it may be late in taking it off the
        list, and must not take off what has begun since.
        """
        s3.put(self._s3, self._open_key(task_id) + AGAIN * again, b"", "list the open task")

    def close(self, task_id: str, *, again: bool = False, left: bool = False) -> None:
        """The task has ended: takes it off the list. One that may have ``left`` something behind stays for the doctor,
        who clears up, as do those whose end the event bus did not take. A failure leaves the entry to the doctor as
        well, as all that are listed ``again`` are left to it.
        """
        key = self._open_key(task_id) + AGAIN * again
        try:
            if self.bus.missed(self.tenant, task_id):
                return
            if not left:
                s3.delete(self._s3, key, "take the task off the list")
            else:  # a mark, by which a listing tells it from those that are open
                s3.put(self._s3, key, TOLD if self.bus.on else ENDED, "note that the task has ended")
        except ServiceFault as fault:
            logger.warning("an ended task stays listed as open", task_id=task_id, fault=fault.message)

    def _open_key(self, task_id: str) -> str:
        if not NAME.fullmatch(task_id):
            raise NotFound("there is no task of this name")
        return f"open/{self.tenant or NO_TENANT}/{task_id}"

    def open_tasks(self, after: str | None = None) -> Iterator[OpenTask]:
        """Every tenant's open tasks, behind the ``name`` of one: one request for 1,000."""
        with translated("list the open tasks"):
            for chunk in obstore.list(self._s3, "open/", offset=f"open/{after}" if after else None, chunk_size=1000):
                for meta in chunk:
                    name = str(meta["path"]).removeprefix("open/")
                    yield OpenTask.named(name, meta["last_modified"], meta["size"])

    def open_here(self) -> Iterator[str]:
        """The names of this tenant's open tasks, each once, without those that are marked as ended: one request for
        1,000. Some may have ended all the same.
        """
        prefix, seen = f"open/{self.tenant or NO_TENANT}/", set[str]()
        with translated("list the open tasks"):
            for chunk in obstore.list(self._s3, prefix, chunk_size=1000):
                for meta in chunk:
                    name = str(meta["path"]).removeprefix(prefix).removesuffix(AGAIN)
                    if not meta["size"] and name not in seen:
                        seen.add(name)
                        yield name

    def objects_of(self, task_id: str) -> dict[str, datetime]:
        """The keys of a task's objects beside its record, and when each was written."""
        record = self.record_key(task_id)
        with translated("list a task's objects"):
            found = [meta for chunk in obstore.list(self._s3, self._key(task_id, "")) for meta in chunk]
        return {str(meta["path"]): meta["last_modified"] for meta in found if meta["path"] != record}

    def attempt_of(self, key: str) -> int:
        """The attempt that wrote an object of a task, as its key tells; 0 for what all of them write."""
        part = self._relative(key).split("/")[2]
        return int(part) if part.isdigit() else 0

    def delete_objects(self, keys: Iterable[str]) -> None:
        """Deletes a task's objects, by the keys that ``objects_of`` gave."""
        for key in keys:
            self._relative(key)
            s3.delete(self._s3, key, "delete what was left behind")

    def read_doctors_place(self) -> str | None:
        """Where the doctor's next round begins: behind this name. None: at the beginning."""
        stored = s3.get(self._s3, DOCTOR_KEY)
        return json.loads(stored.body)["after"] if stored else None

    def write_doctors_place(self, after: str | None) -> None:
        s3.put(self._s3, DOCTOR_KEY, json.dumps({"after": after}).encode(), "write the doctor's place")

    def newest(
        self, limit: int, cursor: str | None = None, wanted: Callable[[dict[str, Any]], bool] | None = None
    ) -> tuple[list[Stored], str | None]:
        """Up to ``limit`` records, newest first, and the cursor of the next page (None on the last).

        Index entries without a matching record are skipped. With the filter ``wanted`` at most MOST_SCANNED entries are
        read, so a page may be short, or even empty, although its cursor leads on.
        """
        most = limit if wanted is None else MOST_SCANNED
        names = self._index(cursor, most + 1)
        page: list[Stored] = []
        seen = 0
        with ThreadPoolExecutor(8) as pool:
            while seen < min(most, len(names)) and len(page) < limit:
                some = names[seen : min(most, seen + max(limit, READ_AT_ONCE))]
                for stored in pool.map(lambda name: self._listed(name, wanted), some):
                    seen += 1
                    page += [stored] if stored is not None else []
                    if len(page) == limit:
                        break
        return page, (names[seen - 1] if seen < len(names) else None)

    def _index(self, cursor: str | None, most: int) -> list[str]:
        """Up to ``most`` index names after ``cursor``."""
        names: list[str] = []
        entries = f"{self._prefix}index/"
        offset = f"{entries}{cursor}" if cursor else None
        with translated("list the tasks"):
            for chunk in obstore.list(self._s3, entries, offset=offset, chunk_size=most):
                names += [str(meta["path"]).removeprefix(entries) for meta in chunk]
                if len(names) >= most:
                    break
        return names[:most]

    def _listed(self, name: str, wanted: Callable[[dict[str, Any]], bool] | None) -> Stored | None:
        stored = self.read(name[14:])
        if stored is None:
            return None
        record = json.loads(stored.body)
        current = index_name(name[14:], datetime.fromisoformat(record["created_at"])) == name
        return stored if current and (wanted is None or wanted(record)) else None

    def put_image(self, key: str, body: bytes, content_type: str) -> None:
        """Writes an image. Its headers let a browser show it, and save it under a name that contains the task_id."""
        name = "-".join(self._relative(key).split("/")[1:])
        headers = {"Content-Type": content_type, "Content-Disposition": f'inline; filename="{name}"'}
        s3.put(self._s3, key, body, "write an image", headers)

    def read_image(self, key: str) -> bytes:
        """Raises NotFound when the image has been deleted, as after its retention."""
        self._relative(key)
        stored = s3.get(self._s3, key)
        if stored is None:
            raise NotFound("the image is no longer kept")
        return stored.body

    def delete_image(self, key: str) -> None:
        self._relative(key)
        s3.delete(self._s3, key, "delete an image")

    def put_checkpoint(self, task_id: str, body: bytes, name: str = "") -> None:
        s3.put(self._s3, self.checkpoint_key(task_id, name), body, "write a checkpoint")

    def read_checkpoint(self, task_id: str, name: str = "") -> bytes:
        """The checkpoint; empty if there is none."""
        stored = s3.get(self._s3, self.checkpoint_key(task_id, name))
        return stored.body if stored else b""

    def delete_checkpoint(self, task_id: str, name: str = "") -> None:
        s3.delete(self._s3, self.checkpoint_key(task_id, name), "delete a checkpoint")

    def upload_key(self, upload_id: str) -> str:
        """The key of an input image, which any number of requests may use. Raises NotFound for an invalid id."""
        if not NAME.fullmatch(upload_id):
            raise NotFound("there is no upload of this name")
        return f"{self._prefix}uploads/{upload_id}"

    def put_upload(self, upload_id: str, body: bytes, content_type: str) -> None:
        """Writes an input image with this process's own credentials, rather than through a presigned POST."""
        s3.put(self._s3, self.upload_key(upload_id), body, "write an upload", {"Content-Type": content_type})

    def read_upload(self, upload_id: str) -> Upload | None:
        """The input image, or None. The bytes of one that is too large are not read, to save memory."""
        upload = s3.get_up_to(self._s3, self.upload_key(upload_id), MAX_UPLOAD)
        return Upload(*upload) if upload else None

    def read_request(self, bucket: str, key: str) -> bytes | None:
        """A file that holds a request; None for one that is gone, larger than any request, or in another bucket."""
        if bucket != self._settings.bucket:
            return None
        found = s3.get_up_to(self._s3, key, MAX_REQUEST)
        return found[1] if found and found[0] <= MAX_REQUEST else None

    def presign(self, key: str) -> str:
        """A GET URL, valid for ``URL_LIFETIME`` seconds and no longer than the credentials that sign it."""
        self._relative(key)
        return self._sign(self._public, key)

    def _sign(self, at: S3Store, key: str, method: Literal["GET", "HEAD"] = "GET") -> str:
        with translated("sign a URL"):
            return obstore.sign(at, method, key, timedelta(seconds=self._settings.url_lifetime))

    def presign_any(self) -> str:
        """Some presigned URL, from which a caller can tell the origin of them all."""
        return self._sign(self._public, HEALTH_KEY)

    def read_reports(self) -> list[HealthReport]:
        """The workers' last report that the model is loaded, and their last one that it cannot be: those there are."""
        found = [self._report(key) for key in (HEALTH_KEY, UNAVAILABLE_KEY)]
        if found == [None, None]:
            found = [self._report(OLD_HEALTH_KEY, old=True)]
        return [report for report in found if report is not None]

    def _report(self, key: str, *, old: bool = False) -> HealthReport | None:
        """None, with a log line, also for what is no JSON object."""
        found = s3.get_dated(self._s3, key)
        if found is None:
            return None
        try:
            body = json.loads(found[0])
        except ValueError:
            body = None
        if not isinstance(body, dict):
            logger.warning("a report of the model's health cannot be read", key=key)
            return None
        return HealthReport(body, found[1], old)

    def read_health(self) -> dict[str, Any] | None:
        """What was reported last; None if nothing was."""
        reports = self.read_reports()
        return max(reports, key=lambda report: report.at).body if reports else None

    def write_health(self, health: Mapping[str, Any]) -> None:
        """Each status has its own object: a worker that fails says nothing of those that work."""
        key = UNAVAILABLE_KEY if health["model_status"] == "unavailable" else HEALTH_KEY
        body = json.dumps(health).encode()
        s3.put(self._s3, key, body, "write the model's health", {"Content-Type": "application/json"})

    def read_spending(self, day: date) -> Stored | None:
        """A tenant's counted spending of a day (UTC), None if there is none."""
        return s3.get(self._s3, f"{self._prefix}spend/{day.isoformat()}.json")

    def write_spending(self, day: date, body: bytes, stored: Stored | None) -> Stored:
        """Replaces what was read as ``stored`` (None: there was none). Raises LostRace if it has changed since."""
        key = f"{self._prefix}spend/{day.isoformat()}.json"
        return s3.put_if(self._s3, key, body, {"e_tag": stored.etag} if stored else "create")
