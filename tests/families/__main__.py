"""``python -m tests.families [NAME ...]``: build, save, read again and draw with the stock pipelines; a line each."""

from __future__ import annotations

import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import numpy as np
import torch
import transformers

from tests.families import FAMILIES

if TYPE_CHECKING:
    from tests.families.family import Family


def try_out(family: Family, folder: Path) -> str:
    """What the family weighs and takes, and how much its pictures depend on prompt and seed."""
    torch.manual_seed(0)
    built = family.build()
    built.save_pretrained(folder, safe_serialization=True)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, use_safetensors=True)
    pipe.set_progress_bar_config(disable=True)
    built.set_progress_bar_config(disable=True)
    first = draw(pipe, family)
    begin = time.perf_counter()
    again = draw(pipe, family)
    seconds = time.perf_counter() - begin
    words, seed = draw(pipe, family, prompt="two owls at night"), draw(pipe, family, seed=1)
    unlike = [f"{255 * np.abs(other - first).max():.0f}" for other in (words, seed, again, draw(built, family))]
    finite = all(np.isfinite(picture).all() for picture in (first, words, seed))
    return (
        f"{size / 1e6:.1f} MB, {seconds:.2f} s, {first.shape[2]}x{first.shape[1]}, 255ths that differ: prompt "
        f"{unlike[0]}, seed {unlike[1]}, again {unlike[2]}, unsaved {unlike[3]}, {'finite' if finite else 'NOT FINITE'}"
    )


def draw(pipe: Any, family: Family, **changed: Any) -> Any:
    return np.asarray(pipe(**family.call(**changed))[0])


def main(names: list[str]) -> None:
    warnings.simplefilter("ignore")
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    for family in FAMILIES:
        if names and family.name not in names:
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                line = try_out(family, Path(folder))
            except Exception as error:
                where = traceback.extract_tb(error.__traceback__)[-1]
                line = f"{type(error).__name__}: {str(error)[:300]!r} at {where.filename}:{where.lineno}"
        print(f"{family.name}: {line}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
