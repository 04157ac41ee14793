"""Warm-up after loading: measures how many tasks to run at a time and tests whether they may share forwards."""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from ..contract.health import Measured
from ..contract.request import GenerationRequest
from ..logs import logger
from .preview import fit_previewer

if TYPE_CHECKING:
    from ..settings import Settings
    from . import Developed
    from .running import PipelineEngine

SIZES = (1, 2, 4, 8, 16)
WORTH = 1.05
"""A larger batch size is taken if its rows per second are at least this many times those of the best smaller one."""
ROUNDS = 4
SLOW_FORWARD = 0.5
"""Seconds. No batch size is tried after one whose forward took longer: loading would take minutes."""
ROUNDING = {"float32": 1 / 255, "float16": 16 / 255, "bfloat16": 32 / 255}
"""Largest pixel difference (0 to 1) that the dtype's rounding explains after STEPS steps."""
STEPS = 3
MEETINGS = 4
"""Tries to get two tasks into one forward."""


class NoObserver:
    """An Observer that does nothing, for warm-up runs."""

    def begins(self, running: object) -> None:
        """Ignored."""

    def at_step(self, step: int, steps: int) -> None:
        """Ignored."""


def warm_up(engine: PipelineEngine, settings: Settings) -> None:
    """Runs the pipeline so that no task pays for first use; tests merging; sets ``capacity`` and ``measured``."""
    asked: dict[str, Any] = {"num_inference_steps": STEPS}
    if "image" in engine.card.required:
        defaults, least = engine.card.defaults, 8 * engine.card.size_multiple
        size = {"width": defaults.width or least, "height": defaults.height or least}
        asked |= {"image": "any", "strength": 1.0, **size}  # with less strength none of these few steps would be run
    asked = {name: value for name, value in asked.items() if name in engine.card.parameters}
    request = engine.card.resolve(GenerationRequest(prompt="a", seed=0, **asked))
    pair = [request, request.model_copy(update={"prompt": "b", "seed": 1})]
    drawn = [_draw(engine, one) for one in pair]
    engine.measured = timed(drawn[-1], request)  # the second: the first one paid for first use
    alone = [_pixels(one) for one in drawn]
    worst = prove(engine, pair, alone)
    for _ in range(MEETINGS - 1):
        if worst != float("inf"):
            break
        # On a busy machine the first may be done before the second begins, which proves nothing. Without another try
        # this worker would never merge.
        worst = prove(engine, pair, alone)
    allowed = ROUNDING[engine.card.dtype]
    if worst > allowed:
        engine.batcher.merging = False
        logger.warning("merging is off: it changes this pipeline's pictures", difference=worst, allowed=allowed)
    if settings.previews:
        engine.previewer = fit_previewer(
            partial(engine.run, observer=NoObserver()), _arguments(engine, pair[0]), alone[0]
        )
    if settings.max_batch:
        engine.capacity = settings.max_batch
    elif engine.batcher.merging:
        engine.capacity = measure(engine)
    logger.info("tasks at a time", capacity=engine.capacity, merging=engine.batcher.merging)


def prove(engine: PipelineEngine, pair: list[GenerationRequest], alone: list[Any]) -> float:
    """Largest pixel difference (0 to 1) between two tasks run together and the same two run ``alone``.

    Infinity if they fail together or never shared a forward: merging stays off unless it was tested.
    """
    together: list[Any] = [None, None]
    batcher = engine.batcher
    before, usual = batcher.calls - batcher.forwards, (batcher.patience, batcher.most_patience)
    batcher.patience, batcher.most_patience = 100.0, 5.0  # they must share a forward, however slow this machine is now

    def draw(at: int) -> None:
        try:
            together[at] = _pixels(_draw(engine, pair[at]))
        except Exception as fault:
            logger.warning("two tasks together failed where each alone did not", fault=str(fault))

    threads = [threading.Thread(target=draw, args=(at,), name="proof") for at in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    batcher.patience, batcher.most_patience = usual
    if any(picture is None for picture in together) or batcher.calls - batcher.forwards == before:
        return float("inf")
    return max(float(np.abs(one - other).max()) for one, other in zip(together, alone, strict=True))


def timed(developed: Developed, request: GenerationRequest) -> Measured | None:
    """The speed of one task alone, for quotes; None if its steps or size are unknown."""
    if not (request.steps and request.width and request.height):
        return None
    step = developed.denoise / request.steps
    return Measured(round(step, 6), round(developed.text + developed.decode, 6), request.width * request.height)


def _draw(engine: PipelineEngine, request: GenerationRequest) -> Developed:
    return engine.run(_arguments(engine, request) | {"output_type": "np"}, NoObserver())


def _pixels(developed: Developed) -> Any:
    return np.asarray(developed.pictures, dtype=np.float32)


def _arguments(engine: PipelineEngine, request: GenerationRequest) -> dict[str, Any]:
    """The pipeline's arguments, with a synthetic input image if the pipeline needs one."""
    if request.image is None or request.width is None or request.height is None:
        return engine.arguments(request)
    size = (request.width, request.height)
    return engine.arguments(request, Image.linear_gradient("L").convert("RGB").resize(size))


def measure(engine: PipelineEngine) -> int:
    """The most useful batch size (see WORTH), found by timing forwards of copies of the last recorded call.

    The sizes take turns and each counts with its fastest round, so that a noisy moment does not decide.
    """
    recorded = engine.batcher.last_call
    if recorded is None:
        return 1
    fastest: dict[int, float] = {}
    for _ in range(ROUNDS):
        for size in SIZES:
            try:
                spent = engine.compute.run(partial(engine.batcher.time_forward, recorded, size))
            except torch.OutOfMemoryError:
                break
            fastest[size] = min(spent, fastest.get(size, spent))
            if spent > SLOW_FORWARD:
                break
    best, best_rate = 1, 0.0
    for size, spent in fastest.items():
        if not best_rate or size / spent >= best_rate * WORTH:
            best, best_rate = size, size / spent
    return best
