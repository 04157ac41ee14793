"""Models from S3, kept on this machine."""

from __future__ import annotations

import hashlib
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import obstore

from ..errors import NotFound
from .s3 import connect, translated

if TYPE_CHECKING:
    from ..settings import Settings


def fetch_model(url: str, settings: Settings) -> tuple[Path, str]:
    """Downloads ``s3://bucket/prefix`` into the cache. Returns the folder and a revision that names its content.

    The revision is a hash over keys and ETags, so a model that was replaced is fetched anew; the folder appears
    under its name by a rename, so a crash in the middle leaves nothing that could be taken for a model.
    """
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    store, prefix = connect(bucket, settings, timeout="1h"), prefix.strip("/")
    with translated(f"fetch {url}"):
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
