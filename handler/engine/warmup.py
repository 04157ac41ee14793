"""Warm-up after loading: draws for the first time, proves what may be drawn together, measures how many at a time."""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from PIL import Image

from ..contract.health import Measured
from ..contract.request import GenerationRequest
from ..errors import DarkroomError, ModelUnavailable, NotFinite
from ..logs import logger
from . import kept
from .choosing import Choice, choose, first_choice, is_large
from .preview import fit_previewer
from .proof import NEVER_MET, NoObserver, decode_together, pixels, unproven

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..settings import Settings
    from . import Developed
    from .running import PipelineEngine

T = TypeVar("T")
SIZES = (1, 2, 4, 8, 16)
WORTH = 1.05
"""A larger batch size is taken if its rows per second are at least this many times those of the best smaller one."""
ROUNDS = 4
SLOW_FORWARD = 0.5
"""Seconds. Of a large network no batch size is tried after one whose forward took longer: loading would take minutes.
Where one task's forward does, nothing is won by merging, and none is proven. A small one that takes so long is on a
machine that is busy just now, which says nothing."""
BUSY = 0.75
"""The least share of its threads' time that a forward has of the processors on a machine that is not busy: 0.86 to 1.05
were measured there, and 0.4 to 0.6 beside three other processes on two cores."""
MOST_IMAGES_WARM = 4
"""Tasks of several images have as many rows as several tasks, so these sizes come even where tasks are drawn alone."""
STEPS = 3
CHOICE_SECONDS = 12.0
"""After so many of choosing nothing else is tried: compilation, the last, takes some ten more."""
CHOICE_SIZES, CHOICE_ROUNDS = (1, 4), 5
"""Tasks in the forwards that choices are timed with, and how often each: a recording is made in the third round."""


def warm_up(engine: PipelineEngine, settings: Settings) -> None:
    """Runs the pipeline so that no task pays for first use; chooses what makes it fast; tests merging; sets
    ``capacity`` and ``measured``.

    What an earlier start has proven and kept is not proven again. A measurement that fails is left out. Raises
    ModelUnavailable for a pipeline that cannot be drawn with, NotFinite for one whose numbers overflow.
    """
    name = kept.name_of(engine, settings)
    known = kept.read(name, settings)
    first = first_choice(engine.batcher.denoiser, settings, engine.batcher.device, engine.card.dtype)
    choice = engine.use(known.choice if known else first, settings)
    request, drawn = _first_picture(engine)
    if known is None and (better := _chosen(engine, settings, choice)) != choice:
        choice = better
        request, drawn = _first_picture(engine)
    picture = pixels(drawn.pictures)
    limits = engine.card.limits.model_copy(update={"prompt_tokens": drawn.prompt_tokens})
    engine.card = engine.card.model_copy(update={"limits": limits})
    request = _of_size(engine, request, picture)
    proof = known or _prove(engine, settings, request, drawn, choice)
    engine.measured = proof.measured
    if proof.alone:
        engine.draw_alone()
        logger.warning("tasks are drawn one at a time", reason=proof.alone)
    else:
        engine.capacity = proof.capacity or 1
        if engine.decoder is not None:
            engine.decoder.batcher.merging = proof.decodes
        if not settings.max_batch:
            engine.batcher.bound(engine.capacity)
    if choice.compiled:
        _if_it_can("the first forwards of some sizes compile anew", lambda: _meet_sizes(engine))
    if proof.capacity and proof.alone != NEVER_MET:
        engine.kept = name, proof
        if known is None and not _if_it_can("it is kept all the same", lambda: _busy(engine)):
            kept.keep(name, proof, settings)
    if settings.previews:
        run = partial(engine.run, observer=NoObserver())
        engine.previewer = _if_it_can(
            "there are no previews", lambda: fit_previewer(run, _arguments(engine, request), picture)
        )
    logger.info(
        "tasks at a time",
        capacity=engine.capacity,
        merging=engine.batcher.merging,
        chosen=", ".join(name for name, value in asdict(choice).items() if value),
        proven_before=known is not None,
    )


def _prove(
    engine: PipelineEngine,
    settings: Settings,
    request: GenerationRequest,
    drawn: Developed,
    choice: Choice,
) -> kept.Proof:
    """``drawn``: what the engine drew of the ``request``, with this ``choice``."""
    pair, pictures = [request], [drawn]
    if settings.max_batch or not _if_it_can("two are proven together", lambda: _slow(engine)):
        pair.append(request.model_copy(update={"prompt": "b", "seed": 1}))
        pictures.append(_drawn(engine, pair[1]))
    # the second's time, if there is one: the first one paid for first use
    measured = _if_it_can("its speed is not known", lambda: timed(pictures[-1], pair[-1]))
    reason = unproven(engine, [partial(_call, engine, one) for one in pair], [pixels(one.pictures) for one in pictures])
    if reason:
        return kept.Proof(reason, 1, measured, choice)
    capacity = settings.max_batch or _if_it_can("one task at a time", lambda: measure(engine))
    decodes = _if_it_can("pictures are decoded one at a time", lambda: decode_together(engine))
    return kept.Proof("", capacity, measured, choice, bool(decodes))


def _slow(engine: PipelineEngine) -> bool:
    """Whether one task's forward keeps the device busy for so long that several together would win nothing."""
    recorded = engine.batcher.last_call
    if recorded is None or not is_large(engine.batcher.denoiser):
        return False
    return engine.compute.run(lambda: engine.batcher.time_forward(recorded, 1)) > SLOW_FORWARD


def _meet_sizes(engine: PipelineEngine) -> None:
    """Runs forwards of as many rows as will come, so that each is compiled now and none while a task waits for it.

    A first start meets most of them when it measures; one that begins with what was kept would meet them in its tasks.
    """
    recorded = engine.batcher.last_call
    if recorded is not None and recorded.merges:
        for size in SIZES:
            if size <= max(engine.capacity, MOST_IMAGES_WARM):
                engine.compute.run(partial(engine.batcher.time_forward, recorded, size))


def _busy(engine: PipelineEngine) -> bool:
    """Whether others have so much of the processors just now that what was measured says little of this machine: then
    it is not kept, for every later start would quote and batch by it.
    """
    recorded = engine.batcher.last_call
    if engine.batcher.device.type != "cpu" or recorded is None or is_large(engine.batcher.denoiser):
        return False
    threads = engine.compute.run(torch.get_num_threads)
    fastest, share = math.inf, 1.0
    for _ in range(ROUNDS):
        spent = time.process_time()
        took = engine.compute.run(partial(engine.batcher.time_forward, recorded, 1))
        if took < fastest:
            fastest, share = took, (time.process_time() - spent) / took / threads
    if share < BUSY:
        logger.warning("this machine is busy: what was measured of the model is not kept", share=round(share, 2))
    return share < BUSY


def _chosen(engine: PipelineEngine, settings: Settings, first: Choice) -> Choice:
    """The fastest choice, in use from now on."""

    began = time.perf_counter()

    def seconds(choice: Choice) -> float | None:
        if time.perf_counter() - began > CHOICE_SECONDS:
            return None
        try:
            engine.use(choice, settings)
            return pace(engine)
        except Exception as fault:
            logger.info("this cannot be used here", choice=str(choice), fault=f"{type(fault).__name__}: {fault}")
            return None

    return engine.use(choose(first, engine.batcher, settings, seconds), settings)


def pace(engine: PipelineEngine) -> float | None:
    """Seconds of forwards of the last recorded call: the geometric mean of one task's and of four tasks' together.

    None if there was no call. Each counts with its fastest round.
    """
    recorded = engine.batcher.last_call
    if recorded is None:
        return None
    timer, sizes = engine.batcher.time_forward, CHOICE_SIZES if recorded.merges else CHOICE_SIZES[:1]
    fastest = [min(engine.compute.run(partial(timer, recorded, size)) for _ in range(CHOICE_ROUNDS)) for size in sizes]
    return math.prod(fastest) ** (1 / len(fastest))


def _first_picture(engine: PipelineEngine) -> tuple[GenerationRequest, Developed]:
    """A request and what the engine drew of it: of few steps, or of as many as the pipeline wants."""
    request = _request(engine, STEPS)
    try:
        return request, _drawn(engine, request)
    except ModelUnavailable:
        request = _request(engine, None)
        return request, _drawn(engine, request)


def _drawn(engine: PipelineEngine, request: GenerationRequest) -> Developed:
    """Raises ModelUnavailable with the reason if the pipeline draws nothing, NotFinite if its numbers overflow."""
    try:
        return engine.run(_call(engine, request), NoObserver())
    except NotFinite:
        raise
    except Exception as fault:
        message = fault.message if isinstance(fault, DarkroomError) else str(fault)
        raise ModelUnavailable(f"{engine.card.pipeline} draws no picture: {message}") from fault


def _request(engine: PipelineEngine, steps: int | None) -> GenerationRequest:
    asked: dict[str, Any] = {"num_inference_steps": steps}
    if "image" in engine.card.required:
        defaults, least = engine.card.defaults, 8 * engine.card.size_multiple
        size = {"width": defaults.width or least, "height": defaults.height or least}
        asked |= {"image": "any", "strength": 1.0, **size}  # with less strength none of these few steps would be run
    asked = {name: value for name, value in asked.items() if name in engine.card.parameters}
    return engine.card.resolve(GenerationRequest(prompt="a", seed=0, **asked))


def _of_size(engine: PipelineEngine, request: GenerationRequest, drawn: Any) -> GenerationRequest:
    """The request with the size of what was ``drawn`` of it, which goes onto the card where that does not know it."""
    if "width" in engine.card.parameters and engine.card.defaults.width is None and request.image is None:
        size = {"width": drawn.shape[2], "height": drawn.shape[1]}
        engine.card = engine.card.model_copy(update={"defaults": engine.card.defaults.model_copy(update=size)})
    return engine.card.resolve(request)


def _call(engine: PipelineEngine, request: GenerationRequest) -> dict[str, Any]:
    return _arguments(engine, request) | {"output_type": "np"}


def _if_it_can(otherwise: str, do: Callable[[], T]) -> T | None:
    """None, and a line in the log that says so, if it fails: tasks can be drawn all the same."""
    try:
        return do()
    except Exception as fault:
        logger.warning(f"a measurement failed: {otherwise}", fault=f"{type(fault).__name__}: {fault}")
        return None


def timed(developed: Developed, request: GenerationRequest) -> Measured | None:
    """The speed of one task alone, for quotes; None if its steps or size are unknown."""
    if not (request.steps and request.width and request.height):
        return None
    step = developed.denoise / request.steps
    return Measured(round(step, 6), round(developed.text + developed.decode, 6), request.width * request.height)


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
            if spent > SLOW_FORWARD and is_large(engine.batcher.denoiser):
                break
    best, best_rate = 1, 0.0
    for size, spent in fastest.items():
        if not best_rate or size / spent >= best_rate * WORTH:
            best, best_rate = size, size / spent
    return best
