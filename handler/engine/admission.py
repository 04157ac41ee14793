"""How many tasks at a time, and whether they may share forwards: measured and proven when the pipeline has loaded."""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..logs import logger
from ..request import GenerationRequest
from .running import arguments

if TYPE_CHECKING:
    from ..settings import Settings
    from .running import PipelineEngine

SIZES = (1, 2, 4, 8, 16)
WORTH = 1.05
"""A larger batch must bring at least this many times the rows a second of the one before."""
SLOW_FORWARD = 1.0
"""Seconds. Where a single forward takes longer than this, two at a time are enough to tell, and to run."""
ROUNDING = {"float32": 1 / 255, "float16": 16 / 255, "bfloat16": 32 / 255}
"""Largest difference of a pixel (0 to 1) that a type's rounding explains after the few steps of the proof."""
STEPS = 3


class _Unwatched:
    def begins(self, snapshot: object) -> None:
        """Nothing of these is worth keeping."""

    def at_step(self, step: int, steps: int) -> None:
        """Nobody waits for these pictures."""


def settle(engine: PipelineEngine, settings: Settings) -> None:
    """Warms the pipeline up, so that no task pays for first use; proves merging; sets the engine's capacity."""
    request = engine.card.resolve(GenerationRequest(prompt="a", seed=0, num_inference_steps=STEPS))
    if "num_inference_steps" not in engine.card.parameters:
        request = request.model_copy(update={"num_inference_steps": None})
    pair = [request, request.model_copy(update={"prompt": "a b", "seed": 1})]
    alone = [_draw(engine, one) for one in pair]
    worst = prove(engine, pair, alone)
    allowed = ROUNDING[engine.card.dtype]
    if worst > allowed:
        engine.forwards.merging = False
        logger.warning("merging is off: it changes this pipeline's pictures", difference=worst, allowed=allowed)
    if settings.max_batch:
        engine.capacity = settings.max_batch
    elif engine.forwards.merging:
        engine.capacity = measure(engine)
    logger.info("tasks at a time", capacity=engine.capacity, merging=engine.forwards.merging)


def prove(engine: PipelineEngine, pair: list[GenerationRequest], alone: list[Any]) -> float:
    """Largest difference (0 to 1) between two tasks' pictures drawn together and those drawn ``alone``.

    infinity where together they fail.
    """
    together: list[Any] = [None, None]

    def draw(at: int) -> None:
        try:
            together[at] = _draw(engine, pair[at])
        except Exception as fault:
            logger.warning("two tasks together failed where each alone did not", fault=str(fault))

    threads = [threading.Thread(target=draw, args=(at,), name="proof") for at in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if any(picture is None for picture in together):
        return float("inf")
    return max(float(np.abs(one - other).max()) for one, other in zip(together, alone, strict=True))


def _draw(engine: PipelineEngine, request: GenerationRequest) -> Any:
    call = arguments(request, engine.card) | {"output_type": "np"}
    return np.asarray(engine.run(call, _Unwatched()).pictures, dtype=np.float32)


def measure(engine: PipelineEngine) -> int:
    """The largest batch that is still worth it, by timing forwards of the denoiser on a recorded call."""
    recorded = engine.forwards.last_call
    if recorded is None:
        return 1
    best, best_rate = 1, 0.0
    for size in SIZES:
        try:
            spent = engine.compute.run(partial(engine.forwards.time, recorded, size))
        except torch.OutOfMemoryError:
            break
        rate = size / spent
        if best_rate and rate < best_rate * WORTH:
            break
        best, best_rate = size, rate
        if spent > SLOW_FORWARD * size:
            break
    return best
