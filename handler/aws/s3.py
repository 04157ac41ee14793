"""S3 through obstore: connecting, reading, conditional writes, presigned POSTs; its errors as ours.

obstore rather than botocore: a client in 15 ms rather than 170, with the same credentials. It reads the environment,
web identity, container and instance metadata by itself; for profiles and SSO boto3 is loaded.
"""

from __future__ import annotations

import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import S3Store

from ..errors import DarkroomError, LostRace, ServiceFault, SettingsError
from . import endpoints

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime

    from obstore import GetResult, UpdateVersion

    from ..settings import Settings

TRY_AGAIN_WITHIN = 5.0
"""Seconds. A write that took longer to fail is not repeated: its task's lease runs out meanwhile."""


@dataclass(frozen=True)
class Stored:
    """An object as it was read: its bytes, and its ETag as the condition of a later write."""

    body: bytes
    etag: str
    modified: datetime | None = field(default=None, compare=False)
    """When S3 wrote it, by its own clock, in whole seconds; None for what this process has just written."""


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Turns obstore's errors into LostRace (a failed condition) or ServiceFault: the only place that does.

    ``doing`` completes the message "S3 failed to …".
    """
    try:
        yield
    except DarkroomError:
        raise
    except (AlreadyExistsError, PreconditionError) as fault:
        raise LostRace("the record has moved since it was read") from fault
    except (BaseError, OSError, ValueError) as fault:
        raise ServiceFault(f"S3 failed to {doing}") from fault  # the cause names keys and hosts: for the log alone


def get(s3: S3Store, key: str) -> Stored | None:
    """The object, or None if there is none."""
    with translated("read"):
        response = _open(s3, key)
        if response is None:
            return None
        return Stored(bytes(response.bytes()), response.meta["e_tag"] or "", response.meta["last_modified"])


def get_up_to(s3: S3Store, key: str, most: int) -> tuple[int, bytes] | None:
    """An object's size, and its bytes if there are at most ``most`` (else b""); None if there is no object."""
    with translated("read"):
        response = _open(s3, key)
        if response is None:
            return None
        size = response.meta["size"]
        return size, bytes(response.bytes()) if size <= most else b""


def get_dated(s3: S3Store, key: str) -> tuple[bytes, datetime] | None:
    """An object's bytes, and when S3 wrote it (``Last-Modified``); None if there is no object."""
    with translated("read"):
        found = _open(s3, key)
        return None if found is None else (bytes(found.bytes()), found.meta["last_modified"])


def _open(s3: S3Store, key: str) -> GetResult | None:
    """The response, its body not read yet; None if there is no object.

    A missing bucket is a fault, and so is every 403: every role may list the bucket, so a missing key is a 404, and
    whatever is refused must not look like a missing task.
    """
    try:
        return obstore.get(s3, key)
    except FileNotFoundError as fault:
        if "NoSuchBucket" in str(fault):
            raise ServiceFault("S3 failed to read: there is no such bucket") from fault
        return None


def put(s3: S3Store, key: str, body: bytes, doing: str, attributes: Mapping[str, str] | None = None) -> None:
    """Writes an object unconditionally. ``attributes`` are its headers."""
    with translated(doing):
        obstore.put(s3, key, body, attributes=dict(attributes or {}), use_multipart=False)


def delete(s3: S3Store, key: str, doing: str) -> None:
    """Deletes an object; none at this key is no error."""
    with translated(doing), suppress(FileNotFoundError):
        obstore.delete(s3, key)


def put_if(s3: S3Store, key: str, body: bytes, mode: Literal["create"] | UpdateVersion) -> Stored:
    """A conditional put of JSON: ``create`` if there is no object yet, else if its ETag matches. Raises LostRace when
    the condition fails.

    After a failed condition it reads the object. If it holds these very bytes, an earlier try succeeded and only its
    response was lost. If there is none, S3 answered 409 (concurrent writes), and a ``create`` is tried again. So
    repeating is safe here, although a broken connection leaves open whether S3 has written.
    """
    began = time.monotonic()
    for pause in (0.05, 0.2, 0.8, None):
        try:
            with translated("write the record"):
                attributes = {"Content-Type": "application/json"}
                result = obstore.put(s3, key, body, attributes=attributes, mode=mode, use_multipart=False)
            return Stored(body, result["e_tag"] or "")
        except LostRace:
            there = get(s3, key)
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


def connect(bucket: str, settings: Settings, timeout: str = "20s", *, public: bool = False) -> S3Store:
    """A client for one bucket. Time and retries are bounded: a call that hangs would outlast its task's lease.

    ``timeout``: of one request, its body included. ``public``: for signing only, at PUBLIC_ENDPOINT_URL. Raises
    SettingsError for an unknown profile, and for credentials or an endpoint that it cannot take.
    """
    session = endpoints.session_of(settings)
    place = endpoints.of_bucket(bucket, settings, session, public=public)
    plain = place.url.startswith("http:")
    options: dict[str, Any] = {
        "client_options": {"timeout": timeout, "connect_timeout": "3s", "allow_http": plain},
        "retry_config": {
            "max_retries": 4,
            "retry_timeout": timedelta(seconds=30),
            "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=5), "base": 2},
        },
        "region": place.region,
        # By this name, for obstore lets the variable AWS_ENDPOINT_URL_S3 override an `endpoint` that it is given.
        "aws_endpoint_url_s3": place.url,
        "virtual_hosted_style_request": place.virtual,
        "aws_endpoint_url_sts": place.sts,
    }
    if session and settings.shared_credentials:
        options["credential_provider"] = _credentials(session)
    try:
        return S3Store(bucket, **options)
    except (BaseError, ValueError) as fault:  # half a set of credentials, an endpoint that is no URL
        raise SettingsError(f"S3 cannot be used: {str(fault).splitlines()[0]}") from fault


class PresignedPosts:
    """Makes presigned POSTs (SigV4) with botocore, because obstore cannot. For the bucket of the settings.

    Signed with this process's credentials; with temporary ones a form expires when they do. Making the client takes
    70 ms, at the first form.
    """

    def __init__(self, settings: Settings) -> None:
        import botocore.session

        self._settings = settings
        self._session = botocore.session.Session(profile=settings.aws_profile or None)
        with _signing():
            self._session.get_credentials()
        self._s3: Any = None

    def sign(self, key: str, content_type: str, most_bytes: int, seconds: int) -> tuple[str, dict[str, str]]:
        """The URL and form fields with which anybody may write this object for ``seconds``: with this content type,
        and 1 to ``most_bytes`` bytes. Raises ServiceFault.
        """
        with _signing():
            self._s3 = self._s3 or endpoints.client(
                "s3", self._settings, self._session, public=True, signature_version="s3v4"
            )
            form = self._s3.generate_presigned_post(
                self._settings.bucket,
                key,
                Fields={"Content-Type": content_type},
                Conditions=[{"Content-Type": content_type}, ["content-length-range", 1, most_bytes]],
                ExpiresIn=seconds,
            )
        return form["url"], form["fields"]


@contextmanager
def _signing() -> Iterator[None]:
    from botocore.exceptions import BotoCoreError

    try:
        yield
    except BotoCoreError as fault:
        raise ServiceFault("the credentials to sign a form with cannot be had") from fault


def _credentials(session: Any) -> Any:
    """Credentials of a profile or of SSO, which obstore alone cannot get."""
    import boto3
    from obstore.auth.boto3 import Boto3CredentialProvider

    return Boto3CredentialProvider(boto3.Session(botocore_session=session))
