"""The running engine: one pipeline, one compute thread, tasks one at a time.

Everything that computes (loading included) goes through one thread for the life of the process: a second thread that
enters a parallel region makes every forward on a CPU 2.5 times slower; on a GPU one thread keeps the stream in order.
"""

from __future__ import annotations

import copy
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import BoundedSemaphore
from typing import TYPE_CHECKING, Any

from ..errors import OutOfMemory, UnsafeContent
from . import Developed, EncodedImage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..card import ModelCard
    from ..request import GenerationRequest
    from ..settings import Settings
    from . import Observer


def start(settings: Settings) -> PipelineEngine:
    """Loads the pipeline in the compute thread, imports of torch and diffusers included. Raises ModelUnavailable."""
    compute = ThreadPoolExecutor(1, thread_name_prefix="compute")
    began = time.perf_counter()
    try:
        pipe, card = compute.submit(_load, settings).result()
    except BaseException:
        compute.shutdown()
        raise
    return PipelineEngine(pipe, card, compute, time.perf_counter() - began)


def _load(settings: Settings) -> tuple[Any, ModelCard]:
    from .loading import load

    return load(settings)


class PipelineEngine:
    """Implements :class:`handler.engine.Engine` around an unmodified diffusers pipeline."""

    capacity = 1

    def __init__(self, pipe: Any, card: ModelCard, compute: ThreadPoolExecutor, load_seconds: float) -> None:
        self.card, self.load_seconds = card, load_seconds
        self._pipe, self._compute = pipe, compute
        self._places = BoundedSemaphore(self.capacity)

    @contextmanager
    def place(self) -> Iterator[None]:
        with self._places:
            yield

    def develop(self, request: GenerationRequest, observer: Observer) -> Developed:
        return self._compute.submit(self._run, request, observer).result()

    def encode(self, developed: Developed, request: GenerationRequest) -> list[EncodedImage]:
        from .imaging import encode

        pairs = zip(developed.pictures, request.seeds(), strict=True)
        return [encode(picture, request.output_format, request.quality, seed) for picture, seed in pairs]

    def close(self) -> None:
        self._compute.shutdown()

    def _run(self, request: GenerationRequest, observer: Observer) -> Developed:
        import torch

        from .loading import denoiser_name

        pipe = copy.copy(self._pipe)  # shares the weights; a scheduler holds one task's state, so each task has its own
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
        denoiser = getattr(pipe, denoiser_name(pipe))
        watch = _Watch(pipe.scheduler, observer)
        hooks = [
            denoiser.register_forward_pre_hook(watch.before, prepend=True),
            denoiser.register_forward_hook(watch.after),
        ]
        try:
            with torch.inference_mode():
                began = time.perf_counter()
                output = pipe(**arguments(request, self.card))
                ended = time.perf_counter()
        except torch.OutOfMemoryError as fault:
            raise OutOfMemory("the device has too little memory for this size") from fault
        finally:
            for hook in hooks:
                hook.remove()
        if any(getattr(output, "nsfw_content_detected", None) or []):
            raise UnsafeContent("the model's safety checker refused the picture")
        first, last = watch.first or began, watch.last or began
        return Developed(output.images, text=first - began, denoise=last - first, decode=ended - last, batch_size=1)


class _Watch:
    """Counts the calls of the denoiser and tells the observer before each."""

    def __init__(self, scheduler: Any, observer: Observer) -> None:
        self._scheduler, self._observer = scheduler, observer
        self._calls = 0
        self.first: float | None = None
        self.last: float | None = None

    def before(self, *_: object) -> None:
        self.first = self.first or time.perf_counter()
        self._observer.at_step(self._calls, max(len(self._scheduler.timesteps), self._calls + 1))

    def after(self, *_: object) -> None:
        self._calls += 1
        self.last = time.perf_counter()


def arguments(request: GenerationRequest, card: ModelCard) -> dict[str, Any]:
    """The pipeline's arguments: what the request holds and the card says is taken. One generator for each image, on
    the CPU, so that a seed draws the same noise on every device.
    """
    import torch

    from .loading import ARGUMENTS

    values: dict[str, Any] = {"prompt": request.prompt}
    for field in card.parameters:
        value = getattr(request, field)
        if field == "seed":
            drawn = [torch.Generator("cpu").manual_seed(seed) for seed in request.seeds()]
            value = drawn if len(drawn) > 1 else drawn[0]
        if value is not None:
            values[ARGUMENTS[field]] = value
    return values
