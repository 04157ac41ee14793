"""The whole path with the real built-in pipeline: from a message to the pixels behind a presigned URL."""

from __future__ import annotations

import io
import json
import threading
import urllib.request
from hashlib import sha256
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from handler.contract.request import GenerationRequest
from handler.engine.compute import Compute
from handler.engine.loading import DTYPES, cores, load_pipeline, tune
from handler.engine.running import PipelineEngine
from handler.engine.starting import start
from handler.engine.warmup import warm_up
from handler.errors import ModelUnavailable, Suspended
from handler.settings import BUILT_IN_MODEL, Settings
from handler.work.serving import Generate
from handler.worker import Worker

from ..support import answer_of, http_event

if TYPE_CHECKING:
    from pathlib import Path

    from handler.api.results import Status
    from handler.aws.queue import TaskQueue
    from handler.aws.store import TaskStore
    from handler.engine import Running

APPLE = {"prompt": "a red apple on a blue background", "num_inference_steps": 20, "seed": 7}


class Quiet:
    def begins(self, running: object) -> None:
        """Keeps nothing."""

    def at_step(self, step: int, steps: int) -> None:
        """Watches nothing."""


def work_until_done(
    generate: Generate, queue: TaskQueue, settings: Settings, status: Status, task_id: str
) -> dict[str, Any]:
    worker = Worker(generate, queue, settings, poll_seconds=1)
    thread = threading.Thread(target=worker.run, daemon=True)
    thread.start()
    try:
        for _ in range(600):
            code, result = answer_of(status.handle(http_event("GET", f"/results/{task_id}"), None))
            if code == 200 and result["status"] in {"completed", "failed"}:
                return dict(result)
            threading.Event().wait(0.05)
        raise AssertionError("the task did not end")
    finally:
        worker.stop()
        thread.join()


def fetch(result: dict[str, Any]) -> list[bytes]:
    bodies = []
    for image in result["images"]:
        with urllib.request.urlopen(image["url"]) as reply:
            bodies.append(reply.read())
    return bodies


@pytest.fixture
def real(settings: Settings, store: TaskStore, queue: TaskQueue, engine: PipelineEngine) -> Generate:
    return Generate(settings, store, queue, lambda _: engine)


def draw(engine: PipelineEngine, **request: Any) -> list[bytes]:
    asked = engine.card.resolve(GenerationRequest.model_validate(request))
    return [image.body for image in engine.encode(engine.develop(asked, Quiet()), asked)]


def pixels(body: bytes) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(body)).convert("RGB")).astype(int)


def test_from_a_message_to_a_picture(real: Generate, queue: TaskQueue, settings: Settings, status: Status) -> None:
    task_id = queue.send(json.dumps(APPLE))
    result = work_until_done(real, queue, settings, status, task_id)
    assert result["status"] == "completed"
    (image,) = result["images"]
    (body,) = fetch(result)
    picture = Image.open(io.BytesIO(body))
    picture.load()
    assert (picture.format, picture.size) == ("PNG", (64, 64))
    assert (image["width"], image["height"], image["bytes"]) == (64, 64, len(body))
    assert image["sha256"] == sha256(body).hexdigest()
    assert result["request"]["guidance_scale"] == 4.0  # the card's
    assert result["model"]["pipeline"] == "StableDiffusionPipeline"
    assert 0 < result["timings"]["denoise"] <= result["timings"]["total"]
    assert queue.receive(wait=1) == []
    # An apple on blue: red in the middle, blue in the corners.
    seen = pixels(body)
    red, green, _ = seen[28:40, 24:40].mean(axis=(0, 1))
    assert red > 150 > green
    assert seen[:6, :6].mean(axis=(0, 1))[2] > 150


def test_the_same_seed_draws_the_same_bytes(engine: PipelineEngine) -> None:
    assert draw(engine, **APPLE) == draw(engine, **APPLE)
    assert draw(engine, **APPLE) != draw(engine, **{**APPLE, "seed": 8})


def test_the_pixels_are_the_pipelines_own(engine: PipelineEngine) -> None:
    pipe = DiffusionPipeline.from_pretrained(BUILT_IN_MODEL, dtype=DTYPES[engine.card.dtype], use_safetensors=True)
    pipe.set_progress_bar_config(disable=True)
    tune(pipe, engine.card.dtype)
    seed = torch.Generator("cpu").manual_seed(7)
    direct = pipe(APPLE["prompt"], num_inference_steps=20, guidance_scale=4.0, generator=seed).images[0]
    assert (np.asarray(direct) == pixels(draw(engine, **APPLE)[0])).all()


def test_only_the_compute_thread_keeps_a_team(engine: PipelineEngine) -> None:
    """A second OpenMP team, such as a task's thread would make when it scales its picture, slows every forward."""
    found: list[int] = []
    other = threading.Thread(target=lambda: found.append(torch.get_num_threads()), daemon=True)
    other.start()
    other.join()
    assert engine.compute.run(torch.get_num_threads) == cores()
    assert found == [1]


def test_image_i_of_a_task_is_the_image_of_its_seed() -> None:
    """In float32: how far bfloat16 rounds apart in batches of other sizes is each processor's own."""
    pipe, card = load_pipeline(Settings(dtype="float32"))
    engine = PipelineEngine(pipe, card, Compute())
    try:
        together = draw(engine, prompt="fox", seed=5, num_images=3)
        alone = draw(engine, prompt="fox", seed=7)
    finally:
        engine.close()
    assert len(together) == 3
    assert np.abs(pixels(together[2]) - pixels(alone[0])).max() <= 1


def test_other_sizes(engine: PipelineEngine) -> None:
    (body,) = draw(engine, prompt="fox", width=96, height=64, num_inference_steps=2, seed=1)
    assert Image.open(io.BytesIO(body)).size == (96, 64)


def test_the_card_of_the_built_in_model(engine: PipelineEngine) -> None:
    baked = json.loads((BUILT_IN_MODEL / "model_card.json").read_text())
    assert engine.card.model_dump(mode="json") | {"dtype": "auto"} == baked


def test_steps_are_told(engine: PipelineEngine) -> None:
    seen: list[tuple[int, int]] = []

    class Counting(Quiet):
        def at_step(self, step: int, steps: int) -> None:
            seen.append((step, steps))

    engine.develop(engine.card.resolve(GenerationRequest(prompt="fox", seed=1, num_inference_steps=3)), Counting())
    assert seen == [(0, 3), (1, 3), (2, 3)]


def test_a_decode_can_be_put_off_with_all_steps_saved(engine: PipelineEngine) -> None:
    """The next attempt only replays and decodes; it is asked before its decode, too."""
    request = engine.card.resolve(GenerationRequest(prompt="fox", seed=1, num_inference_steps=3))
    asked: list[int] = []

    class Putting(Quiet):
        saved = b""

        def begins(self, running: object) -> None:
            self.running = cast("Running", running)

        def at_step(self, step: int, steps: int) -> None:
            asked.append(step)

        def all_drawn(self, steps: int) -> None:
            assert self.running.saved_steps() == steps == 3
            self.saved = self.running.snapshot()
            raise Suspended("enough")

    saved = b""
    for _ in range(2):
        putting = Putting()
        with pytest.raises(Suspended):
            engine.develop(request, putting, saved)
        saved = putting.saved
    assert asked == [0, 1, 2]
    rest = engine.develop(request, Quiet(), saved)
    assert rest.resumed_steps == 3
    assert np.array_equal(np.asarray(rest.pictures[0]), np.asarray(engine.develop(request, Quiet()).pictures[0]))


def test_an_observer_can_stop_a_task_and_the_next_one_runs(engine: PipelineEngine) -> None:
    class Stopping(Quiet):
        def at_step(self, step: int, steps: int) -> None:
            if step == 2:
                raise InterruptedError("enough")

    with pytest.raises(InterruptedError):
        engine.develop(engine.card.resolve(GenerationRequest(prompt="fox", seed=1)), Stopping())
    assert draw(engine, **APPLE)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda folder: (folder / "unet/diffusion_pytorch_model.safetensors").unlink(), "safetensors"),
        (lambda folder: (folder / "model_index.json").write_text("{"), "JSON"),
        (
            lambda folder: (folder / "unet/diffusion_pytorch_model.safetensors").write_bytes(b"torn"),
            "Unable to load weights",
        ),
    ],
)
def test_a_model_that_cannot_be_loaded_says_why(tmp_path: Path, change: Any, reason: str) -> None:
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(BUILT_IN_MODEL, folder)
    change(folder)
    with pytest.raises(ModelUnavailable, match=reason):
        load_pipeline(Settings(model_id=str(folder)))


def test_a_model_that_is_nowhere(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="cannot load"):
        load_pipeline(Settings(model_id=str(tmp_path / "nothing")))


@pytest.mark.parametrize(
    ("quota", "expected"), [("max 100000", None), ("100000 100000", 1), ("50000 100000", 1), ("", None)]
)
def test_the_cores_are_those_of_the_container(tmp_path: Path, quota: str, expected: int | None) -> None:
    (tmp_path / "cpu.max").write_text(quota)
    here = cores(tmp_path / "nowhere")
    assert cores(tmp_path / "cpu.max") == (expected or here)


def test_what_a_model_cannot_merge_is_not_merged() -> None:
    """A denoiser whose rows see each other: two tasks together would draw other pictures than each alone."""
    pipe, card = load_pipeline(Settings(dtype="float32"))
    forward = pipe.unet.forward

    def contagious(sample: Any, timestep: Any, *args: Any, **kwargs: Any) -> Any:
        output = forward(sample, timestep, *args, **kwargs)
        return (output[0] + sample.mean(),) if len(sample) > 2 else output

    pipe.unet.forward = contagious
    engine = PipelineEngine(pipe, card, Compute())
    try:
        warm_up(engine, Settings())
        assert engine.batcher.merging is False
        assert engine.capacity == 1
        assert draw(engine, prompt="fox", seed=1, num_inference_steps=2)
    finally:
        engine.close()


def test_two_tasks_that_miss_each_other_are_tried_again() -> None:
    """On a busy machine one may be done before the other begins, which says nothing about merging."""
    pipe, card = load_pipeline(Settings(dtype="float32"))
    engine = PipelineEngine(pipe, card, Compute())
    run, late = engine.run, [True]

    def sometimes_late(call: dict[str, Any], *others: Any) -> Any:
        if call["prompt"] == "b" and threading.current_thread().name == "proof" and late:
            late.pop()
            threading.Event().wait(2)
        return run(call, *others)

    vars(engine)["run"] = sometimes_late
    try:
        warm_up(engine, Settings(max_batch=2))
        assert not late
        assert engine.batcher.merging
    finally:
        engine.close()


def test_capacity_is_a_setting(engine: PipelineEngine) -> None:
    assert engine.batcher.merging
    own = engine.capacity
    assert own in {2, 4, 8, 16}
    warm_up(engine, Settings(max_batch=3))
    assert engine.capacity == 3
    engine.capacity = own


def test_a_preview_shows_what_is_coming() -> None:
    """Of an apple on blue, half way: small, and already red on blue."""

    class Looking(Quiet):
        running: Running
        seen = b""

        def begins(self, running: object) -> None:
            self.running = cast("Running", running)

        def at_step(self, step: int, steps: int) -> None:
            if step == steps // 2:
                self.seen = self.running.preview()

    engine = start(Settings(previews=True, max_batch=1))
    looking = Looking()
    engine.develop(engine.card.resolve(GenerationRequest.model_validate(APPLE)), looking)
    seen = pixels(looking.seen)
    assert seen.shape == (128, 128, 3)
    red, _, blue = seen[56:80, 48:80].mean(axis=(0, 1))
    assert red > blue
    red, _, blue = seen[:12, :12].mean(axis=(0, 1))
    assert blue > red
    engine.close()
