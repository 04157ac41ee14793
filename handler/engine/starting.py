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
    from ..contract.card import ModelCard
    from ..settings import Settings
    from .loading import Fetch, Tried


def start(settings: Settings, fetch: Fetch | None = None) -> PipelineEngine:
    """An engine that is ready. Loads in the compute thread, imports of torch and diffusers included.

    With ``DTYPE=auto`` a model whose numbers overflow is loaded again in a wider dtype, and by later starts in that one
    at once. ``fetch`` downloads a model whose id begins with ``s3://``. Raises ModelUnavailable.
    """
    wanted = settings
    while True:
        tried: list[tuple[str, str]] = []
        try:
            return _start(wanted, fetch, tried.append)
        except NotFinite as fault:
            from . import kept
            from .loading import WIDER

            dtype, name = tried[0]
            wider = WIDER.get(dtype) if settings.dtype == "auto" else None
            if wider is None:
                raise ModelUnavailable(f"{settings.model_name} cannot be drawn with: {fault.message}") from fault
            logger.warning("the model's numbers overflow; it is loaded in another dtype", dtype=dtype, wider=wider)
            kept.keep_overflow(name, dtype, settings)
            wanted = replace(settings, dtype=wider)


def _start(settings: Settings, fetch: Fetch | None, tried: Tried) -> PipelineEngine:
    """``tried`` is told of the dtype. Raises NotFinite, too."""
    compute = Compute()
    began = time.perf_counter()

    def load() -> tuple[Any, ModelCard]:
        from .loading import load_pipeline

        return load_pipeline(settings, fetch, tried)

    try:
        pipe, card = compute.run(load)
        engine = PipelineEngine(pipe, card, compute)
        from .warmup import warm_up

        warm_up(engine, settings)
    except BaseException:
        compute.close()
        raise
    engine.load_seconds = time.perf_counter() - began
    return engine
