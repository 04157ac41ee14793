"""Draws requests one after the other, alone and undisturbed, with the engine that the workers have.

A process of its own (see zygote.py): reads ``requests.json`` in ``CHAOS_FOLDER``, writes ``{number}.npy``, uint8 pixels
[image, height, width, 3], and ``steps.json``, the denoiser calls of each.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from handler.contract.request import GenerationRequest
from handler.engine.starting import start
from handler.settings import Settings

if TYPE_CHECKING:
    from handler.engine import Running

FOLDER = "CHAOS_FOLDER"


class Alone:
    def begins(self, running: Running) -> None:
        """Nothing stops it."""

    def at_step(self, step: int, steps: int) -> None:
        """Nothing disturbs it."""


def main() -> None:
    folder = Path(os.environ[FOLDER])
    engine = start(Settings.load())
    steps = []
    for number, asked in enumerate(json.loads((folder / "requests.json").read_text())):
        before = engine.batcher.calls
        developed = engine.develop(engine.card.resolve(GenerationRequest.model_validate(asked)), Alone())
        steps.append(engine.batcher.calls - before)
        np.save(folder / f"{number}.npy", np.stack([np.asarray(one.convert("RGB")) for one in developed.pictures]))
    (folder / "steps.json").write_text(json.dumps(steps))


if __name__ == "__main__":
    main()
