"""Compiled code that another worker made, in one file: what ``torch.compiler.save_cache_artifacts`` returns.

It is code, and whoever can write it can run anything in a worker. So it is loaded from two places alone: from the
package itself, where an image's build puts it, and from beside the weights where ``COMPILED_SHA256`` names this file.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..logs import logger

if TYPE_CHECKING:
    from ..settings import Settings

FILE = "compiled.bin"
BAKED = Path(__file__).parent.parent / "baked"
"""What an image's build has proven, measured and compiled on a device like the image's own."""


def beside(settings: Settings) -> list[Path]:
    """Folders of weights on this machine: the model's own, and those that were fetched from S3."""
    return [Path(settings.model_source), *Path(settings.cache_dir).glob("*")]


def take(settings: Settings) -> None:
    """Gives torch what was compiled elsewhere, if there is something that may be loaded. Call it before compiling.

    What was compiled with other libraries or for another device is not used; torch compiles it anew.
    """
    if (BAKED / FILE).is_file():
        _load(BAKED / FILE)
    elif wanted := settings.compiled_sha256.lower():
        found = {one / FILE: digest(one / FILE) for one in beside(settings) if (one / FILE).is_file()}
        files = [file for file, name in found.items() if name == wanted]
        if files:
            _load(files[0])
        else:
            logger.warning(
                "no compiled code is loaded: no file beside the weights is the one that COMPILED_SHA256 names",
                wanted=wanted,
                found=sorted(found.values()),
            )


def write(folder: Path) -> Path | None:
    """Writes what this process has compiled, or loaded as compiled. Returns the file; None if there is nothing."""
    artifacts = torch.compiler.save_cache_artifacts()
    if artifacts is None:
        return None
    file = folder / FILE
    file.write_bytes(artifacts[0])
    return file


def digest(file: Path) -> str:
    """SHA-256, in hex."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


@cache
def _load(file: Path) -> None:
    """Once for a process. A file that torch cannot read costs a compilation, not the start."""
    try:
        loaded = torch.compiler.load_cache_artifacts(file.read_bytes())
    except Exception as fault:  # of a format that is torch's own
        logger.warning("compiled code could not be loaded", file=str(file), fault=f"{type(fault).__name__}: {fault}")
        return
    if loaded is None:
        logger.warning("compiled code could not be loaded", file=str(file), fault="torch cannot read it")
    else:
        logger.info("compiled code is loaded", file=str(file), parts=sum(map(len, loaded.artifacts.values())))
