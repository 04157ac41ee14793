"""Starts the engine: loads the pipeline and warms it up."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from .compute import Compute
from .running import PipelineEngine

if TYPE_CHECKING:
    from ..contract.card import ModelCard
    from ..settings import Settings
    from .loading import Fetch


def start(settings: Settings, fetch: Fetch | None = None) -> PipelineEngine:
    """An engine that is ready. Loads in the compute thread, imports of torch and diffusers included.

    ``fetch`` downloads a model whose id begins with ``s3://``. Raises ModelUnavailable.
    """
    compute = Compute()
    began = time.perf_counter()

    def load() -> tuple[Any, ModelCard]:
        from .loading import load_pipeline

        return load_pipeline(settings, fetch)

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
