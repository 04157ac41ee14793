"""What commands write: words on stderr, and files, whole or not at all."""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from pathlib import Path


def say(text: str) -> None:
    """A line for a person, on stderr."""
    typer.echo(text, err=True)


def can_be_written(folder: Path) -> None:
    """Makes a folder and tries it, before anything is drawn for it. Raises OSError, which names it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"\0" * 4096)
    except OSError as fault:
        raise OSError(fault.errno, fault.strerror, str(folder)) from fault


def save(file: Path, body: bytes) -> Path:
    """Writes a file under a temporary name beside it, and renames it. Raises OSError, which names it."""
    part = file.with_name(f".{file.name}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(body)
        return part.replace(file)
    except OSError as fault:
        part.unlink(missing_ok=True)
        raise OSError(fault.errno, fault.strerror, str(file)) from fault
