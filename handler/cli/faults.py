"""What went wrong, in one line for a person: what was tried, where, why it failed, and what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..aws.credentials import NONE
from ..errors import DarkroomError, Internal, ModelUnavailable, ServiceFault, SettingsError
from ..settings import Settings
from .deployment import MODELS

if TYPE_CHECKING:
    from collections.abc import Iterator

HINTS = (
    (("NoSuchBucket",), "there is no bucket {bucket}: BUCKET names it"),
    (("NonExistentQueue", "QueueDoesNotExist"), "there is no queue {queue_url}: QUEUE_URL names it"),
    (("Unable to locate credentials", "169.254.169.254"), NONE),
    (
        (
            "AccessDenied",
            "InvalidAccessKeyId",
            "SignatureDoesNotMatch",
            "ExpiredToken",
            "InvalidClientTokenId",
            "403 Forbidden",
        ),
        "AWS refuses these credentials for bucket {bucket}: look at AWS_PROFILE or AWS_ACCESS_KEY_ID",
    ),
    (
        (
            "Connection refused",
            "Could not connect",
            "dns error",
            "error sending request",
            "timed out",
            "ConnectTimeout",
        ),
        "nothing answers at {endpoint}",
    ),
)
"""What a cause's text holds, and what that means. The first that fits."""
MOST = 300
"""Characters of a cause."""


def told(fault: DarkroomError, *, verbose: bool = False) -> str:
    """One line; with ``verbose`` the causes in the library's own words, too."""
    causes = list(_causes(fault))
    line = fault.message if fault.code == "INTERNAL" else f"{fault.code} {fault.message}"
    if isinstance(fault, ModelUnavailable) and isinstance(fault.__cause__, DarkroomError):  # it loads in this process
        line = f"{fault.code} {fault.__cause__.message}; {MODELS}"
    if isinstance(fault, ServiceFault) and (hint := _hint(" ".join(causes))):
        line += f"; {hint}"
    return "\n".join([line, *(f"  because of {cause}" for cause in causes if verbose)])


def of_the_system(fault: OSError) -> DarkroomError:
    """A file or folder that cannot be read or written."""
    return Internal(f"{fault.filename}: {fault.strerror}" if fault.filename else str(fault))


def _causes(fault: BaseException) -> Iterator[str]:
    cause = fault.__cause__
    while cause is not None:
        yield f"{type(cause).__name__}: {' '.join(str(cause).split())[:MOST]}"
        cause = cause.__cause__


def _hint(text: str) -> str | None:
    try:
        settings = Settings.load()
    except SettingsError:
        return None
    endpoint = " or ".join(settings.other_aws.values()) or f"AWS in {settings.aws_region or 'us-east-1'}"
    for words, means in HINTS:
        if any(word in text for word in words):
            return means.format(bucket=settings.bucket, queue_url=settings.queue_url, endpoint=endpoint)
    return None
