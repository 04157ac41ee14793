"""How environment variables are read: a field, one value, and whether AWS's shared files would be looked into."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Mapping

T = TypeVar("T")
HOST_CREDENTIALS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)


def setting(
    default: T,
    text: str,
    *,
    least: float | None = None,
    most: float | None = None,
    one_of: tuple[str, ...] = (),
    secret: bool = False,
) -> T:
    """A field of the settings: its default, what it is for, and its limits. A ``secret`` one is not printed."""
    metadata = {"text": text, "least": least, "most": most, "one_of": one_of}
    value: Any = field(default=default, metadata=metadata, repr=not secret)
    return value  # type: ignore[no-any-return]


def shared(environ: Mapping[str, str]) -> tuple[bool, bool]:
    """Whether AWS would look into the shared files at all, and for credentials: a named profile first, then the host's
    keys or role, then the files.
    """
    profile = bool(environ.get("AWS_PROFILE") or environ.get("AWS_DEFAULT_PROFILE"))
    home = Path(environ.get("HOME", "~")).expanduser() / ".aws"
    config = environ.get("AWS_CONFIG_FILE") or home / "config"
    credentials = environ.get("AWS_SHARED_CREDENTIALS_FILE") or home / "credentials"
    files = profile or any(Path(file).expanduser().is_file() for file in (config, credentials))
    return files, profile or (files and not any(environ.get(name) for name in HOST_CREDENTIALS))


def parse(text: str, kind: type, limits: Mapping[str, Any]) -> object:
    """The value of a setting of this ``kind``. Raises ValueError with what it must be."""
    if kind is bool:
        if text.lower() not in (limits["one_of"] or {"0", "1", "true", "false"}):
            raise ValueError(f"must be {' or '.join(limits['one_of'] or '01')}")
        return text.lower() in {"1", "true"}
    if limits["one_of"] and text not in limits["one_of"]:
        raise ValueError(f"must be one of {', '.join(limits['one_of'])}")
    if kind is str:
        return text
    least, most = limits["least"], limits["most"]
    try:
        number = kind(text)
    except ValueError:
        number = None
    if number is None or not least <= number <= most:
        raise ValueError(f"must be a {'whole ' if kind is int else ''}number from {least:g} to {most:g}")
    return number
