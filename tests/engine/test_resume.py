"""Exact resume: a task that was stopped and goes on elsewhere draws the picture of an uninterrupted run, bit by bit."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import diffusers
import numpy as np
import pytest

from handler.contract.request import GenerationRequest
from handler.engine import checkpoint
from handler.engine.batcher import Batcher
from handler.engine.calls import TaskCalls
from handler.engine.compute import Compute
from handler.engine.loading import load_pipeline
from handler.engine.running import PipelineEngine
from handler.errors import Suspended
from handler.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from handler.engine import Developed, Running

STEPS = 12
SCHEDULERS = [
    "EulerAncestralDiscreteScheduler",  # draws noise at every step
    "DPMSolverMultistepScheduler",
    "LCMScheduler",  # draws noise at every step
    "PNDMScheduler",  # calls twice in its first step
    "UniPCMultistepScheduler",
    "DDIMScheduler",
    "HeunDiscreteScheduler",  # calls twice at every step
]


class Watch:
    """Counts the steps that were computed, and stops before step ``stop_at``."""

    def __init__(self, stop_at: int | None = None, meet: threading.Barrier | None = None) -> None:
        self.stop_at, self.meet, self.steps = stop_at, meet, 0
        self.running: Running | None = None

    def begins(self, running: Running) -> None:
        self.running = running
        if self.meet is not None:
            self.meet.wait(20)

    def snapshot(self) -> bytes:
        assert self.running is not None
        return self.running.snapshot()

    def at_step(self, step: int, steps: int) -> None:
        if step == self.stop_at:
            raise Suspended("enough")
        self.steps += 1


@pytest.fixture(scope="module")
def exact() -> Iterator[PipelineEngine]:
    """The built-in model in float32."""
    pipe, card = load_pipeline(Settings(dtype="float32"))
    engine = PipelineEngine(pipe, card, Compute(), capacity=4)
    yield engine
    engine.close()


def task(engine: PipelineEngine, **given: Any) -> GenerationRequest:
    request = {"prompt": "fox", "seed": 5, "num_inference_steps": STEPS, "guidance_scale": 3.0, **given}
    return engine.card.resolve(GenerationRequest.model_validate(request))


def pixels(developed: Developed) -> Any:
    return np.stack([np.asarray(picture) for picture in developed.pictures])


def stop(engine: PipelineEngine, request: GenerationRequest, at: int, body: bytes = b"") -> bytes:
    watch = Watch(stop_at=at)
    with pytest.raises(Suspended):
        engine.develop(request, watch, body)
    return watch.snapshot()


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_resumed_picture_is_bit_identical(exact: PipelineEngine, name: str) -> None:
    own = exact.pipe.scheduler
    known = {"prediction_type", "beta_start", "beta_end", "beta_schedule", "timestep_spacing", "num_train_timesteps"}
    try:
        kind = getattr(diffusers, name)
        exact.pipe.scheduler = kind.from_config({key: own.config[key] for key in known})
        request = task(exact, num_images=2)
        whole = Watch()
        uninterrupted = pixels(exact.develop(request, whole))
        body = stop(exact, request, at=7)
        rest = Watch()
        resumed = exact.develop(request, rest, body)
        assert np.array_equal(pixels(resumed), uninterrupted)
        assert resumed.resumed_steps == 7
        assert rest.steps == whole.steps - 7
    finally:
        exact.pipe.scheduler = own


def test_a_task_may_be_stopped_again_and_again(exact: PipelineEngine) -> None:
    request, body = task(exact), b""
    for at in (2, 5, 6, 11):
        body = stop(exact, request, at, body)
    assert np.array_equal(pixels(exact.develop(request, Watch(), body)), pixels(exact.develop(request, Watch())))


class Lockstep(Batcher):
    """A forward only when three tasks wait for it, in one order: rounding depends on who is merged with whom."""

    def next(self, now: float) -> tuple[Callable[[], None] | None, float | None]:
        if 0 < len(self._waiting) < 3:
            return None, 0.05
        self._waiting.sort(key=lambda call: float(call.arguments["encoder_hidden_states"].float().sum()))
        return super().next(now)


def test_a_batch_interrupted_together(exact: PipelineEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact.batcher, "__class__", Lockstep)
    requests = [task(exact, prompt=prompt, seed=seed) for seed, prompt in enumerate(["fox", "owl", "a red apple"])]

    def all_of(stop_at: int | None, bodies: list[bytes]) -> tuple[list[Any], list[Watch]]:
        meet = threading.Barrier(len(requests))
        watches = [Watch(stop_at, meet) for _ in requests]
        done: list[Any] = [None] * len(requests)

        def run(at: int) -> None:
            try:
                done[at] = exact.develop(requests[at], watches[at], bodies[at])
            except Suspended:
                done[at] = None

        threads = [threading.Thread(target=run, args=(at,), daemon=True) for at in range(len(requests))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        return done, watches

    whole, _ = all_of(None, [b""] * 3)
    _, stopped = all_of(5, [b""] * 3)
    resumed, watches = all_of(None, [watch.snapshot() for watch in stopped])
    assert all(np.array_equal(pixels(one), pixels(other)) for one, other in zip(whole, resumed, strict=True))
    assert [watch.steps for watch in watches] == [STEPS - 5] * 3


@pytest.mark.parametrize(
    "change",
    [
        lambda made_by: {**made_by, "model": "another"},
        lambda made_by: {**made_by, "dtype": "bfloat16"},
        lambda made_by: {**made_by, "weights": "other"},
        lambda made_by: {**made_by, "request": "of somebody else"},
        lambda made_by: {**made_by, "libraries": "{}"},
        lambda made_by: {**made_by, "format": "darkroom-checkpoint-0"},
        lambda _: {},
    ],
)
def test_a_checkpoint_of_something_else_is_passed_over(exact: PipelineEngine, change: Any) -> None:
    request = task(exact)
    made_by = checkpoint.identity(exact.card, checkpoint.weights_of([exact.batcher.denoiser]), request)
    tensors = checkpoint.unpack(stop(exact, request, at=3), made_by)
    assert len(tensors) == 3
    other = checkpoint.pack(tensors, change(made_by))
    assert checkpoint.unpack(other, made_by) == []
    watch = Watch()
    assert exact.develop(request, watch, other).resumed_steps == 0
    assert watch.steps == STEPS


@pytest.mark.parametrize("body", [b"torn", b"\x00" * 100, b""])
def test_a_torn_checkpoint_is_passed_over(exact: PipelineEngine, body: bytes) -> None:
    watch = Watch()
    exact.develop(task(exact), watch, body)
    assert watch.steps == STEPS


def test_another_seed_is_another_request(exact: PipelineEngine) -> None:
    body = stop(exact, task(exact), at=3)
    watch = Watch()
    exact.develop(task(exact, seed=6), watch, body)
    assert watch.steps == STEPS


def test_what_does_not_change_the_picture_does_not_change_the_request(exact: PipelineEngine) -> None:
    body = stop(exact, task(exact), at=3)
    watch = Watch()
    exact.develop(task(exact, task_id="x", tags=["a"], output_format="webp"), watch, body)
    assert watch.steps == STEPS - 3


def test_a_snapshot_during_the_replay_holds_all_that_was_loaded(
    exact: PipelineEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = task(exact)
    body = stop(exact, request, at=7)
    made_by = checkpoint.identity(exact.card, checkpoint.weights_of([exact.batcher.denoiser]), request)
    held: list[int] = []
    keep = TaskCalls._keep

    def kept(self: TaskCalls, *output: Any) -> None:
        keep(self, *output)
        held.append(len(checkpoint.unpack(self.snapshot(), made_by)))
        assert held[-1] == self.saved_steps()

    monkeypatch.setattr(TaskCalls, "_keep", kept)
    exact.develop(request, Watch(), body)
    assert held == [7] * 7 + [8, 9, 10, 11, 12]


def test_a_checkpoints_name_is_of_the_request_and_of_the_dtype(
    exact: PipelineEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = exact.checkpoint_name(task(exact))
    assert name == exact.checkpoint_name(task(exact, task_id="x", tags=["a"]))
    assert name != exact.checkpoint_name(task(exact, seed=6))
    assert name != exact.checkpoint_name(task(exact), b"an image")
    monkeypatch.setattr(exact, "card", exact.card.model_copy(update={"dtype": "bfloat16"}))
    assert name != exact.checkpoint_name(task(exact))
