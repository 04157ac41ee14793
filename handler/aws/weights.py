"""Downloads models from S3 into a local cache."""

from __future__ import annotations

import hashlib
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import PermissionDeniedError

from ..errors import NotFound
from .s3 import connect, translated

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import S3Store

    from ..settings import Settings


def fetch_model(url: str, settings: Settings) -> tuple[Path, str]:
    """Downloads ``s3://bucket/prefix`` unless it is cached. Returns its folder and a revision that identifies it. The
    prefix may be one object's key.

    The revision is a hash of keys and ETags, so a replaced model is downloaded anew. The folder gets its name by a
    rename at the end, so a crash in the middle leaves no partial model. Raises NotFound and ServiceFault.
    """
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    store, prefix = connect(bucket, settings, timeout="1h"), prefix.strip("/")
    with translated(f"fetch {url}"):
        # Empty objects are the markers that consoles make of folders.
        objects = [meta for chunk in obstore.list(store, prefix or None) for meta in chunk if meta["size"]]
        if not objects:
            objects = [_single(store, prefix, url)]
        names = sorted(f"{meta['path']} {meta['e_tag']}" for meta in objects)
        revision = hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]
        folder = Path(settings.cache_dir) / revision
        if folder.exists():
            return folder, revision
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            for meta in objects:
                name = meta["path"].removeprefix(prefix).lstrip("/") or prefix.rpartition("/")[2]
                target = Path(scratch, "model", name)
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("wb") as out:
                    for part in obstore.get(store, meta["path"]).stream():
                        out.write(part)
            with suppress(FileExistsError, OSError):  # another process was faster: its folder holds the same
                Path(scratch, "model").rename(folder)
    return folder, revision


def _single(store: S3Store, key: str, url: str) -> ObjectMeta:
    try:
        return obstore.head(store, key)
    except (FileNotFoundError, PermissionDeniedError, ValueError) as fault:  # none that it may read, or no name
        raise NotFound(f"there is nothing at {url}") from fault
