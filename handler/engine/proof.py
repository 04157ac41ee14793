"""What is proven of a pipeline when it is loaded: that the engine draws its pictures, alone and together."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ModelUnavailable
from ..logs import logger
from .merging import mergeable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .running import PipelineEngine

    Call = dict[str, Any]
    """A pipeline's arguments, made anew each time: a generator that has drawn is another one."""

ROUNDING = {"float32": 0.25 / 255, "float16": 16 / 255, "bfloat16": 32 / 255}
"""Largest pixel difference (0 to 1) that the dtype's rounding explains after a few steps; after more it is larger."""
NEVER_MET = "two together failed, or never shared a forward: on a machine that is less busy they may"
UNMERGEABLE = "its calls hold what no two tasks can share: a list of tensors, or a cache of their own"
SLOW = "one task's forward keeps this device busy: several together would win nothing"
MEETINGS = 4
"""Tries to get two tasks into one forward."""


def unproven(engine: PipelineEngine, pair: Sequence[Callable[[], Call]], alone: Sequence[Any]) -> str:
    """Why tasks must be drawn one at a time; empty if two together were proven to draw what each draws ``alone``.

    ``pair``: two tasks, or one where merging would win nothing; ``alone``: the pixels (0 to 1) that the engine drew of
    each. Raises ModelUnavailable for a pipeline whose pictures the engine changes, or whose steps it does not see.
    """
    kind, allowed = engine.card.pipeline, ROUNDING[engine.card.dtype]
    if not engine.batcher.calls:
        raise ModelUnavailable(f"{kind} draws without a call of its {type(engine.batcher.denoiser).__name__}")
    if reason := _unlike_itself(engine, pair[0], alone[0], allowed):
        return reason
    if engine.changes:
        return f"it changes its networks while it draws: {', '.join(sorted(engine.changes))}"
    if len(pair) == 1:
        return SLOW
    worst = float("inf")
    for _ in range(MEETINGS):
        # On a busy machine the first may be done before the second begins, which proves nothing. Without another try
        # this worker would never merge.
        worst = _together(engine, pair, alone)
        if worst != float("inf"):
            break
    if worst == float("inf"):
        last = engine.batcher.last_call
        return NEVER_MET if last is None or mergeable(last) else UNMERGEABLE
    if worst <= allowed:
        return ""
    return f"two together differ from each alone by {255 * worst:.3g} of 255; rounding explains {255 * allowed:.3g}"


def decode_together(engine: PipelineEngine) -> bool:
    """Whether two pictures decoded together were proven to be what each is alone; they are merged from now on."""
    range_of_latents = 2  # a decoder's pictures are of -1 to 1
    return engine.decoder is not None and engine.decoder.prove(range_of_latents * ROUNDING[engine.card.dtype])


def _unlike_itself(engine: PipelineEngine, call: Callable[[], Call], drawn: Any, allowed: float) -> str:
    """Compares a picture with the untouched pipeline's. Why that proves nothing, empty if it is the same."""
    try:
        first = pixels(engine.untouched(call()))
        if (difference := _difference(first, drawn)) <= allowed:
            return ""
        again = pixels(engine.untouched(call()))
    except Exception as fault:
        logger.warning("the pipeline by itself draws nothing to compare with", fault=str(fault))
        return f"the pipeline by itself cannot draw what the engine has drawn: {type(fault).__name__}"
    if _difference(first, again) > allowed:
        return "the pipeline by itself draws another picture each time"
    raise ModelUnavailable(
        f"{engine.card.pipeline} is another picture through the engine than by itself: {255 * difference:.3g} of 255"
    )


def _together(engine: PipelineEngine, pair: Sequence[Callable[[], Call]], alone: Sequence[Any]) -> float:
    """Largest pixel difference (0 to 1) between two tasks run together and the same two run ``alone``.

    Infinity if they fail together or never shared a forward: merging stays off unless it was tested.
    """
    together: list[Any] = [None, None]
    batcher = engine.batcher
    before, usual = batcher.calls - batcher.forwards, (batcher.patience, batcher.most_patience)
    batcher.patience, batcher.most_patience = 100.0, 5.0  # they must share a forward, however slow this machine is now

    def draw(at: int) -> None:
        try:
            together[at] = pixels(engine.run(pair[at](), NoObserver()).pictures)
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
    return max(_difference(one, other) for one, other in zip(together, alone, strict=True))


class NoObserver:
    """An Observer that does nothing, for what is drawn at load."""

    def begins(self, running: object) -> None:
        """Ignored."""

    def at_step(self, step: int, steps: int) -> None:
        """Ignored."""


def pixels(pictures: Any) -> Any:
    """float32 [N, H, W, 3] in 0 to 1, of a pipeline's output of type ``np``."""
    return np.asarray(pictures, dtype=np.float32)


def _difference(one: Any, other: Any) -> float:
    return float(np.abs(one - other).max()) if one.shape == other.shape else float("inf")
