"""Every family through the engine, as ``start()`` loads it, held against the untouched pipeline."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from handler.contract.health import CARD_FILE
from handler.contract.request import GenerationRequest
from handler.engine.calls import SavedOutputs
from handler.engine.starting import start
from handler.errors import ModelUnavailable, Suspended
from handler.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

    from handler.engine import Running
    from handler.engine.running import PipelineEngine

    from .family import Family

PLACES = 8
WORDS = (
    "a red fox",
    "two owls at night",
    "the sea",
    "snow",
    "a house",
    "one cat",
    "a green tree on a hill",
    "an apple",
)
MADE_BY = {"format": "matrix"}


@dataclass
class Row:
    """What became of a family. Differences are the largest of a pixel, of 255."""

    name: str
    state: str = ""
    reason: str = ""
    alone: float = float("nan")
    together: float = float("nan")
    resumed: str = ""
    steps: str = ""
    images: str = ""
    preview: str = ""
    without_effect: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def line(self) -> str:
        """As ``make families`` prints it."""
        if self.state == "refused":
            return f"{self.name:32} refused   {self.reason}"
        resumed, images = f"resumed {self.resumed}", f"{self.images} images"
        figures = f"{self.alone:5.2g} alone  {self.together:8.2g} together"
        preview = f"preview {self.preview:5}{self.seconds:5.1f} s"
        return f"{self.name:32} {self.state:9}{figures}  {resumed:18} {images}  {preview}"


class Watch:
    """An observer that notes every step. ``stop_at``: the step before which it saves and stops its task."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.stop_at = stop_at
        self.seen: list[tuple[int, int]] = []
        self.running: Running | None = None
        self.saved = self.preview = b""

    def begins(self, running: Running) -> None:
        self.running = running

    def at_step(self, step: int, steps: int) -> None:
        self.seen.append((step, steps))
        assert self.running is not None
        self.preview = self.preview or self.running.preview()
        if step == self.stop_at:
            self.saved = self.running.snapshot()
            raise Suspended("stopped")


def row_of(family: Family, folder: Path) -> Row:
    """Builds and saves the family, loads it with ``start()`` and tries everything that a task may do."""
    began = time.perf_counter()
    row = Row(family.name)
    torch.manual_seed(0)
    family.build().save_pretrained(folder, safe_serialization=True)
    width, height = family.size  # many would be drawn for the first time at 1024 pixels a side
    (folder / CARD_FILE).write_text(json.dumps({"defaults": {"width": width, "height": height}}))
    settings = Settings(model_id=str(folder), dtype="float32", max_batch=PLACES, previews=True)
    try:
        engine = start(settings)
    except ModelUnavailable as fault:
        row.state, row.reason = "refused", fault.message.removeprefix(f"cannot load {folder}: ")
    else:
        row.state = "together" if engine.batcher.merging else "alone"
        try:
            _try_out(engine, family, row)
        finally:
            engine.close()
    row.seconds = time.perf_counter() - began
    return row


def _try_out(engine: PipelineEngine, family: Family, row: Row) -> None:
    assert engine.card.required == []
    one = asked(engine, family, WORDS[0], seed=1)
    watch = Watch()
    drawn = draw(engine, one, watch)
    row.alone = unlike(drawn, np.asarray(engine.untouched(call_of(engine, one))))
    row.steps = _progress(watch)
    row.preview = "yes" if watch.preview else "none"
    row.together = _together(engine, family)
    row.resumed = _resumed(engine, one, drawn, len(watch.seen))
    row.images = _images(engine, family, drawn)
    row.without_effect = [name for name in FIELDS if _has_no_effect(engine, one, drawn, name)]


def asked(engine: PipelineEngine, family: Family, prompt: str, **more: Any) -> GenerationRequest:
    """A request for a picture of the family's size, with its card's defaults."""
    width, height = family.size
    given = {"width": width, "height": height, "num_inference_steps": family.steps, **more}
    return engine.card.resolve(
        GenerationRequest(
            prompt=prompt, **{name: value for name, value in given.items() if name in engine.card.parameters}
        )
    )


def call_of(engine: PipelineEngine, request: GenerationRequest) -> dict[str, Any]:
    return engine.arguments(request) | {"output_type": "np"}


def draw(engine: PipelineEngine, request: GenerationRequest, watch: Any, saved: SavedOutputs | None = None) -> Any:
    return np.asarray(engine.run(call_of(engine, request), watch, saved).pictures)


def unlike(one: Any, other: Any) -> float:
    """The largest difference of a pixel, of 255."""
    if one.shape != other.shape:
        return float("inf")
    return float(255 * np.abs(one.astype(np.float64) - other).max())


def _progress(watch: Watch) -> str:
    """``3`` if each of three steps was told once and in order; else what was told."""
    steps = {of for _, of in watch.seen}
    if len(steps) == 1 and [step for step, _ in watch.seen] == list(range(*steps)):
        return str(*steps)
    return " ".join(f"{step}/{of}" for step, of in watch.seen)


def _together(engine: PipelineEngine, family: Family) -> float:
    """Eight tasks at once with other prompts, steps, guidance and times of arrival against each alone."""
    requests = [
        asked(engine, family, words, seed=number, **_varied(engine, family, number))
        for number, words in enumerate(WORDS)
    ]
    alone = [draw(engine, request, Watch()) for request in requests]
    met: list[Any] = [None] * len(requests)

    def run(number: int) -> None:
        time.sleep(0.01 * number)
        with engine.slot(60):
            met[number] = draw(engine, requests[number], Watch())

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return max(float("inf") if one is None else unlike(one, other) for one, other in zip(met, alone, strict=True))


def _varied(engine: PipelineEngine, family: Family, number: int) -> dict[str, Any]:
    varied: dict[str, Any] = {}
    if number % 2 and engine.card.defaults.guidance_scale is not None:
        varied["guidance_scale"] = engine.card.defaults.guidance_scale + 1.5
    if number % 3 == 0 and not family.fixed_steps:
        varied["num_inference_steps"] = family.steps + 2
    return varied


def _resumed(engine: PipelineEngine, request: GenerationRequest, whole: Any, steps: int) -> str:
    """``same``: stopped half way and gone on with, the picture is the same in every bit."""
    if steps < 2:
        return "one step"
    watch = Watch(stop_at=steps // 2)
    try:
        engine.run(call_of(engine, request), watch, SavedOutputs(MADE_BY))
    except Suspended:
        if not watch.saved:
            return "not saved"
        again = draw(engine, request, Watch(), SavedOutputs(MADE_BY, watch.saved))
        return "same" if np.array_equal(again, whole) else f"differs by {unlike(again, whole):.3g}"
    return "did not stop"


def _images(engine: PipelineEngine, family: Family, one: Any) -> str:
    """``2`` if two images are drawn of which the first is that of its seed alone."""
    if "num_images" not in engine.card.parameters:
        return "1"
    two = draw(engine, asked(engine, family, WORDS[0], seed=1, num_images=2), Watch())
    if len(two) != 2:
        return f"{len(two)} of 2"
    different = unlike(two[1:], one)
    return "2" if unlike(two[:1], one) <= 1 < different else f"2, unlike by {unlike(two[:1], one):.3g}"


FIELDS = {"negative_prompt": "dark, blurry", "guidance_scale": 9.0, "num_inference_steps": 5, "seed": 77}


def _has_no_effect(engine: PipelineEngine, request: GenerationRequest, drawn: Any, name: str) -> bool:
    """Whether a field that the card lists changes nothing. One that is refused for this picture has one."""
    if name not in engine.card.parameters:
        return False
    if name == "guidance_scale" and "negative_prompt" in engine.card.parameters:
        request = request.model_copy(update={"negative_prompt": "dark"})  # without it some are not guided at all
        drawn = draw(engine, request, Watch())
    changed = request.model_copy(update={name: FIELDS[name]})
    try:
        return unlike(draw(engine, changed, Watch()), drawn) == 0
    except (TypeError, ValueError):
        return False
