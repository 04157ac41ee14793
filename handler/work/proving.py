"""Proves a model for others: what a worker tells of it at its first start, as files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..aws.weights import fetch_model

if TYPE_CHECKING:
    from pathlib import Path

    from ..settings import Settings


def prove(settings: Settings, folder: Path) -> dict[Path, str]:
    """Writes what a worker proves, measures and compiles at its first start. Returns the files, and the digest that
    ``COMPILED_SHA256`` wants for what is code (empty for others). Raises ModelUnavailable.
    """
    from ..engine import kept, portable
    from ..engine.starting import start

    engine = start(settings, fetch_model)
    try:
        files = kept.write(engine, folder)
    finally:
        engine.close()
    return {file: portable.digest(file) if file.name == portable.FILE else "" for file in files}
