"""TaskStore: records and images in S3. The only place that spells S3 keys and sees an S3 client.

obstore rather than botocore: a ready client in 15 ms in place of 170, with the same credentials. It reads the
environment, web identity, containers' and instances' metadata by itself; profiles and SSO come from boto3, which is
then loaded. Every write of a record is conditional, and a put is atomic: a crash during one leaves the old object.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PermissionDeniedError, PreconditionError
from obstore.store import S3Store

from .errors import DarkroomError, LostRace, NotFound, ServiceFault, SettingsError
from .world import TASK_ID

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from obstore import UpdateVersion

    from .settings import Settings

HEALTH_KEY = "health/model.json"
FAR_FUTURE_MS = 9_999_999_999_999
"""Index keys count down from it (to the year 2286), because S3 lists in ascending order only."""
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


class TaskStore:
    """One bucket. Raises LostRace when a condition fails and ServiceFault when S3 does; nothing of obstore leaks."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings.require("bucket")
        self._s3 = _connect(settings.bucket, settings)

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
        with _translated("index the task"):
            obstore.put(self._s3, f"index/{name}", b"", use_multipart=False)

    def newest(self, limit: int, cursor: str | None = None) -> tuple[list[Stored], str | None]:
        """Up to ``limit`` records, newest first, and the cursor of the next page (None on the last).

        Each entry is checked against its record, so a stale index entry is passed over, never shown.
        """
        names: list[str] = []
        offset = f"index/{cursor}" if cursor else None
        with _translated("list the tasks"):
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
        with _translated("write an image"):
            obstore.put(self._s3, key, body, attributes=attributes, use_multipart=False)

    def read_image(self, key: str) -> bytes:
        """Raises NotFound when the image has gone, as after its retention."""
        stored = self._get(key)
        if stored is None:
            raise NotFound("the image is no longer kept")
        return stored.body

    def put_checkpoint(self, task_id: str, body: bytes) -> None:
        with _translated("write a checkpoint"):
            obstore.put(self._s3, checkpoint_key(task_id), body, use_multipart=False)

    def read_checkpoint(self, task_id: str) -> bytes:
        """Empty where there is none."""
        stored = self._get(checkpoint_key(task_id))
        return stored.body if stored else b""

    def delete_checkpoint(self, task_id: str) -> None:
        with _translated("delete a checkpoint"), suppress(FileNotFoundError):
            obstore.delete(self._s3, checkpoint_key(task_id))

    def presign(self, key: str) -> str:
        """A GET URL, valid for ``URL_LIFETIME`` seconds and no longer than the credentials that sign it."""
        with _translated("sign a URL"):
            return obstore.sign(self._s3, "GET", key, timedelta(seconds=self._settings.url_lifetime))

    def read_health(self) -> dict[str, Any] | None:
        stored = self._get(HEALTH_KEY)
        return json.loads(stored.body) if stored else None

    def write_health(self, health: Mapping[str, Any]) -> None:
        with _translated("write the model's health"):
            attributes = {"Content-Type": "application/json"}
            obstore.put(self._s3, HEALTH_KEY, json.dumps(health).encode(), attributes=attributes)

    def _get(self, key: str) -> Stored | None:
        with _translated("read"):
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
        client's retry then meets it as a 412); nothing there means a 409, S3's word for writes at the same moment.
        """
        for pause in (0.05, 0.2, 0.8, None):
            try:
                with _translated("write the record"):
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
        raise AssertionError("the last round returns or raises")


@contextmanager
def _translated(doing: str) -> Iterator[None]:
    """The one point at which obstore's errors become ours."""
    try:
        yield
    except DarkroomError:
        raise
    except (AlreadyExistsError, PreconditionError) as fault:
        raise LostRace("the record has moved since it was read") from fault
    except (BaseError, OSError, ValueError) as fault:
        raise ServiceFault(f"S3 failed to {doing}") from fault  # the cause names keys and hosts: for the log alone


def _connect(bucket: str, settings: Settings, timeout: str = "20s") -> S3Store:
    """Bounded in time and retries: a call that hangs would outlive its task's lease. ``timeout`` counts the body in."""
    endpoint = settings.aws_endpoint_url
    options: dict[str, Any] = {
        "client_options": {"timeout": timeout, "connect_timeout": "3s", "allow_http": endpoint.startswith("http:")},
        "retry_config": {
            "max_retries": 4,
            "retry_timeout": timedelta(seconds=30),
            "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=5), "base": 2},
        },
        # Path style for emulators, which have no wildcard DNS names.
        "virtual_hosted_style_request": not endpoint,
    }
    if endpoint:
        options["endpoint"] = endpoint
    if settings.aws_region:
        options["region"] = settings.aws_region
    if settings.shared_credentials:
        return _with_profile(bucket, settings, options)
    options.setdefault("region", "us-east-1")
    return S3Store(bucket, **options)


def _with_profile(bucket: str, settings: Settings, options: dict[str, Any]) -> S3Store:
    import boto3
    from botocore.exceptions import BotoCoreError
    from obstore.auth.boto3 import Boto3CredentialProvider

    try:
        session = boto3.Session(profile_name=settings.aws_profile or None)
    except BotoCoreError as fault:
        raise SettingsError(f"AWS_PROFILE={settings.aws_profile!r}: {fault}") from fault
    options.setdefault("region", session.region_name or "us-east-1")
    return S3Store(bucket, credential_provider=Boto3CredentialProvider(session), **options)


def fetch_model(url: str, settings: Settings) -> tuple[Path, str]:
    """Downloads ``s3://bucket/prefix`` into the cache. Returns the folder and a revision that names its content.

    The revision is a hash over keys and ETags, so a model that was replaced is fetched anew; the folder appears
    under its name by a rename, so a crash in the middle leaves nothing that could be taken for a model.
    """
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    store, prefix = _connect(bucket, settings, timeout="1h"), prefix.strip("/")
    with _translated(f"fetch {url}"):
        # Empty objects are the markers that consoles make of folders.
        found = [meta for chunk in obstore.list(store, prefix or None) for meta in chunk if meta["size"]]
        if not found:
            raise NotFound(f"there is nothing at {url}")
        names = sorted(f"{meta['path']} {meta['e_tag']}" for meta in found)
        revision = hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]
        folder = Path(settings.cache_dir) / revision
        if folder.exists():
            return folder, revision
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            for meta in found:
                target = Path(scratch, "model", meta["path"].removeprefix(prefix).lstrip("/"))
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("wb") as out:
                    for part in obstore.get(store, meta["path"]).stream():
                        out.write(part)
            with suppress(FileExistsError, OSError):  # another process was faster: its folder holds the same
                Path(scratch, "model").rename(folder)
    return folder, revision
