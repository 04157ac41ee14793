"""Starts the engine: loads the pipeline and warms it up."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..errors import ModelUnavailable, NotFinite
from ..logs import logger
from .compute import Compute
from .running import PipelineEngine

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..contract.card import ModelCard
    from ..settings import Settings
    from .loading import Fetch


WIDER = {"float16": "bfloat16", "bfloat16": "float32"}
"""What to try where the numbers of a model overflow; bfloat16 has float32's range."""


def start(settings: Settings, fetch: Fetch | None = None) -> PipelineEngine:
    """An engine that is ready. Loads in the compute thread, imports of torch and diffusers included.

    With ``DTYPE=auto`` a model whose numbers overflow is loaded again in a wider dtype. ``fetch`` downloads a model
    whose id begins with ``s3://``. Raises ModelUnavailable.
    """
    wanted = settings.dtype
    while True:
        tried: list[str] = []
        try:
            return _start(replace(settings, dtype=wanted), fetch, tried.append)
        except NotFinite as fault:
            wider = WIDER.get(tried[0]) if settings.dtype == "auto" else None
            if wider is None:
                raise ModelUnavailable(f"{settings.model_name} cannot be drawn with: {fault.message}") from fault
            logger.warning("the model's numbers overflow; it is loaded in another dtype", dtype=tried[0], wider=wider)
            wanted = wider


def _start(settings: Settings, fetch: Fetch | None, tried: Callable[[str], None]) -> PipelineEngine:
    """``tried`` is told of the dtype. Raises NotFinite, too."""
    compute = Compute()
    began = time.perf_counter()

    def load() -> tuple[Any, ModelCard]:
        from .loading import load_pipeline

        return load_pipeline(settings, fetch)

    try:
        pipe, card = compute.run(load)
        tried(card.dtype)
        engine = PipelineEngine(pipe, card, compute)
        from .warmup import warm_up

        warm_up(engine, settings)
    except BaseException:
        compute.close()
        raise
    engine.load_seconds = time.perf_counter() - began
    return engine
