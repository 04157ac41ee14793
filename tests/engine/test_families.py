"""Stock pipelines of several families through the engine: together they draw what each draws alone, in fewer forwards.

The models are tiny and their weights random; the pictures mean nothing, but they must be the same.
"""

from __future__ import annotations

import copy
import functools
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import diffusers
import numpy as np
import pytest
import torch
from transformers import CLIPTextModel, CLIPTokenizerFast

from handler.engine import Developed
from handler.engine.anatomy import denoiser_name
from handler.engine.cards import card_of
from handler.engine.compute import Compute
from handler.engine.running import PipelineEngine
from handler.errors import Internal, OutOfMemory, WorkerBroken
from handler.settings import BUILT_IN_MODEL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

pytestmark = pytest.mark.usefixtures("one_core")

TASKS = range(8)
TOLERANCE = 1 / 255
SIDE = 32
PATIENCE = 30
"""Seconds after which a thread that has not ended counts as hanging."""
SMALL: dict[str, Any] = {"num_layers": 2, "attention_head_dim": 16, "joint_attention_dim": 32}
WORDS = ("fox", "a red apple", "two owls at night", "the sea", "a green tree on a hill", "snow", "a house", "one cat")


@dataclass(eq=False, repr=False)
class Family:
    """A pipeline, what it takes besides what all take, and how many rows its denoiser's calls have under guidance."""

    pipe: Any
    special: Callable[[int], dict[str, Any]]
    rows: int = 2
    guidance: str = "guidance_scale"
    drawn: dict[int, Any] = field(default_factory=dict)

    def call(self, task: int, **others: Any) -> dict[str, Any]:
        """The arguments of a task: prompt, seed, steps and guidance are its own. Task 0 goes without guidance."""
        return {
            "num_inference_steps": 10 + task % 5,
            "generator": torch.Generator().manual_seed(task),
            self.guidance: 1.0 + 0.75 * task,
            "height": SIDE,
            "width": SIDE,
            "output_type": "np",
            **self.special(task),
            **others,
        }

    def stock(self, task: int, **others: Any) -> Any:
        """The task's pictures by the pipeline as diffusers has it, alone, with a scheduler of its own."""
        if not others and task in self.drawn:
            return self.drawn[task]
        pipe = copy.copy(self.pipe)
        pipe.scheduler = type(self.pipe.scheduler).from_config(self.pipe.scheduler.config)
        pictures = pipe(**self.call(task, **others)).images
        return pictures if others else self.drawn.setdefault(task, pictures)


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def embeds(task: int, width: int, **pooled: int) -> dict[str, Any]:
    """What a text encoder would have made of the task's prompt and of its negative prompt."""
    made = {"prompt_embeds": noise(task, 1, 8, width), "negative_prompt_embeds": noise(task + 100, 1, 8, width)}
    for name, size in pooled.items():
        made |= {f"{name}_prompt_embeds": noise(task + 200, 1, size)}
        made |= {f"negative_{name}_prompt_embeds": noise(task + 300, 1, size)}
    return made


def no_text(count: int) -> dict[str, None]:
    """The places of ``count`` text encoders and tokenizers, empty."""
    numbers = ["", *(f"_{number}" for number in range(2, count + 1))]
    return {f"{part}{number}": None for part in ("text_encoder", "tokenizer") for number in numbers}


def autoencoder(**config: Any) -> Any:
    return diffusers.AutoencoderKL(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=SIDE,
        **config,
    )


def unet(**config: Any) -> Any:
    return diffusers.UNet2DConditionModel(
        block_out_channels=(16, 32),
        layers_per_block=1,
        sample_size=SIDE // 2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        norm_num_groups=8,
        **config,
    )


def rectified_flow(pipeline: Any, transformer: Any, vae: Any, encoders: int, **scheduling: Any) -> Any:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**scheduling)
    return pipeline(transformer=transformer, vae=vae, scheduler=scheduler, **no_text(encoders))


def stable_diffusion() -> Family:
    """With the built-in model's text encoder and tokenizer, and a scheduler that draws noise at every step."""
    pipe = diffusers.StableDiffusionPipeline(
        unet=unet(cross_attention_dim=128),
        vae=autoencoder(),
        text_encoder=CLIPTextModel.from_pretrained(BUILT_IN_MODEL / "text_encoder", dtype=torch.float32),
        tokenizer=CLIPTokenizerFast.from_pretrained(BUILT_IN_MODEL / "tokenizer"),
        scheduler=diffusers.EulerAncestralDiscreteScheduler(steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return Family(pipe, lambda task: {"prompt": WORDS[task], "negative_prompt": WORDS[-task]})


def sdxl_parts() -> dict[str, Any]:
    sizes = {"addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 6 * 8 + 32}
    layers = {"use_linear_projection": True, "transformer_layers_per_block": (1, 2), "cross_attention_dim": 64}
    return no_text(2) | {"unet": unet(addition_embed_type="text_time", **sizes, **layers), "vae": autoencoder()}


def sdxl() -> Family:
    """With a scheduler that remembers former steps."""
    pipe = diffusers.StableDiffusionXLPipeline(scheduler=diffusers.DPMSolverMultistepScheduler(), **sdxl_parts())
    return Family(pipe, lambda task: embeds(task, 64, pooled=32))


def sdxl_img2img() -> Family:
    def special(task: int) -> dict[str, Any]:
        image = noise(task + 400, 1, 3, SIDE, SIDE).sigmoid()
        return {"image": image, "strength": 0.8, "height": None, "width": None, **embeds(task, 64, pooled=32)}

    pipe = diffusers.StableDiffusionXLImg2ImgPipeline(scheduler=diffusers.EulerDiscreteScheduler(), **sdxl_parts())
    return Family(pipe, special)


def stable_diffusion_3() -> Family:
    latents: dict[str, Any] = {"sample_size": SIDE // 2, "patch_size": 1, "in_channels": 4, "out_channels": 4}
    transformer = diffusers.SD3Transformer2DModel(
        **latents, **SMALL, num_attention_heads=2, caption_projection_dim=32, pooled_projection_dim=32
    )
    pipe = rectified_flow(diffusers.StableDiffusion3Pipeline, transformer, autoencoder(shift_factor=0.05), 3)
    return Family(pipe, lambda task: embeds(task, 32, pooled=32))


def flux() -> Family:
    """Guidance is an argument of the transformer: one row for each picture."""

    def special(task: int) -> dict[str, Any]:
        return {name: value for name, value in embeds(task, 32, pooled=32).items() if "negative" not in name}

    size = {"in_channels": 16, "num_single_layers": 1, "num_attention_heads": 2, "pooled_projection_dim": 32}
    transformer = diffusers.FluxTransformer2DModel(**SMALL, **size, guidance_embeds=True, axes_dims_rope=(4, 4, 8))
    vae = autoencoder(shift_factor=0.05)
    pipe = rectified_flow(diffusers.FluxPipeline, transformer, vae, 2, use_dynamic_shifting=True)
    return Family(pipe, special, rows=1)


def qwen_image() -> Family:
    """Prompts of any length under a mask, and two calls a step: one with the prompt, one with the negative prompt."""

    def special(task: int) -> dict[str, Any]:
        masks = {
            "prompt_embeds_mask": torch.arange(8)[None] < 3 + task % 4,
            "negative_prompt_embeds_mask": torch.arange(8)[None] < 8 - task % 3,
        }
        return embeds(task, 32) | {name: mask.long() for name, mask in masks.items()}

    transformer = diffusers.QwenImageTransformer2DModel(
        **SMALL, in_channels=16, out_channels=4, num_attention_heads=3, axes_dims_rope=(8, 4, 4)
    )
    levels = {"base_dim": 16, "dim_mult": [1, 2, 4], "num_res_blocks": 1, "temperal_downsample": [False, True]}
    vae = diffusers.AutoencoderKLQwenImage(**levels, z_dim=4, latents_mean=[0.0] * 4, latents_std=[1.0] * 4)
    pipe = rectified_flow(diffusers.QwenImagePipeline, transformer, vae, 1)
    return Family(pipe, special, rows=1, guidance="true_cfg_scale")


FAMILIES = (stable_diffusion, sdxl, sdxl_img2img, stable_diffusion_3, flux, qwen_image)


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda build: build.__name__)
def family(request: pytest.FixtureRequest) -> Family:
    torch.manual_seed(0)
    made: Family = request.param()
    made.pipe.set_progress_bar_config(disable=True)
    with torch.no_grad():
        for weight in getattr(made.pipe, denoiser_name(made.pipe)).parameters():
            weight.mul_(1.75)  # as they are, the pictures hardly depend on the prompt
    return made


@pytest.fixture
def engine(family: Family) -> Iterator[PipelineEngine]:
    card = card_of(family.pipe, "tiny", None, "float32", {})
    engine = PipelineEngine(family.pipe, card, Compute(), capacity=len(TASKS))
    yield engine
    closing = threading.Thread(target=engine.close, daemon=True)
    closing.start()
    closing.join(PATIENCE)
    assert not closing.is_alive(), "the engine does not close"


class Watch:
    """An observer that does something before each call."""

    def __init__(self, at: Callable[[int], object]) -> None:
        self.at = at

    def begins(self, snapshot: object) -> None:
        """Needs none."""

    def at_step(self, step: int, steps: int) -> None:
        self.at(step)


def run_together(engine: PipelineEngine, calls: Sequence[dict[str, Any]], staggered: bool = False) -> list[Any]:
    """What became of each: Developed or the exception. All begin at the same step, or each when the one before has
    made a call.
    """
    outcomes: list[Any] = [None] * len(calls)
    met = threading.Barrier(len(calls), timeout=PATIENCE)
    turns = [threading.Event() for _ in range(len(calls) + 1)]
    turns[0].set()

    def before(number: int, step: int) -> None:
        if staggered and step == 1:
            turns[number + 1].set()
        elif not staggered and step == 0:
            met.wait()

    def run(number: int) -> None:
        try:
            assert not staggered or turns[number].wait(PATIENCE)
            outcomes[number] = engine.run(calls[number], Watch(functools.partial(before, number)))
        except Exception as fault:
            outcomes[number] = fault
        finally:
            turns[number + 1].set()

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + PATIENCE
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    assert not any(thread.is_alive() for thread in threads), "a task hangs"
    return outcomes


def run_alone(engine: PipelineEngine, call: dict[str, Any]) -> Any:
    return run_together(engine, [call])[0]


def assert_right(outcome: Any, pictures: Any) -> None:
    assert isinstance(outcome, Developed), repr(outcome)
    assert np.shape(outcome.pictures) == np.shape(pictures)
    assert np.abs(outcome.pictures - pictures).max() <= TOLERANCE


def interpose(monkeypatch: pytest.MonkeyPatch, engine: PipelineEngine, check: Callable[[int], None]) -> None:
    """From now on ``check`` gets the rows of each forward before it is done, and may raise."""
    denoiser = engine.batcher.denoiser
    forward = denoiser.forward

    @functools.wraps(forward)
    def checked(*args: Any, **kwargs: Any) -> Any:
        check(next(one for one in (*args, *kwargs.values()) if isinstance(one, torch.Tensor)).shape[0])
        return forward(*args, **kwargs)

    monkeypatch.setattr(denoiser, "forward", checked)


only_stable_diffusion = pytest.mark.parametrize(
    "family", [stable_diffusion], ids=["stable_diffusion"], indirect=True, scope="module"
)


def test_together_they_draw_what_each_draws_alone(family: Family, engine: PipelineEngine) -> None:
    outcomes = run_together(engine, [family.call(task) for task in TASKS], staggered=True)
    for task, outcome in zip(TASKS, outcomes, strict=True):
        assert_right(outcome, family.stock(task))
    assert engine.batcher.forwards < engine.batcher.calls / 2
    assert max(outcome.batch_size for outcome in outcomes) > 2


def test_a_prompt_shows(family: Family) -> None:
    """Or the test above would not see it if tasks got each other's prompts."""
    other = {name: value for name, value in family.special(2).items() if name.startswith("prompt")}
    assert np.abs(family.stock(1, **other) - family.stock(1)).max() > 2 * TOLERANCE


def test_alone_the_pixels_are_the_pipelines_own(family: Family, engine: PipelineEngine) -> None:
    for task in TASKS[:2]:
        developed = run_alone(engine, family.call(task))
        assert np.array_equal(developed.pictures, family.stock(task))
        assert developed.batch_size == 1


def test_a_forward_that_fails_only_when_merged_fails_no_task(
    family: Family, engine: PipelineEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures: list[int] = []

    def picky(rows: int) -> None:
        if rows > family.rows:
            failures.append(rows)
            raise ValueError("this model takes one prompt a call")

    interpose(monkeypatch, engine, picky)
    tasks = TASKS[1:5]
    for _ in range(2):
        outcomes = run_together(engine, [family.call(task) for task in tasks])
        for task, outcome in zip(tasks, outcomes, strict=True):
            assert_right(outcome, family.stock(task))
            assert outcome.batch_size == 1
    assert len(failures) == 1


def test_a_call_that_fails_alone_fails_no_other(
    family: Family, engine: PipelineEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def tear(rows: int) -> None:
        if seen or rows > family.rows:
            seen.append(rows)
        if len(seen) in {1, 3}:  # the first merged one, then the second of its calls
            raise ArithmeticError("torn")

    interpose(monkeypatch, engine, tear)
    tasks = TASKS[1:5]
    outcomes = run_together(engine, [family.call(task) for task in tasks])
    (failed,) = [at for at, outcome in enumerate(outcomes) if isinstance(outcome, ArithmeticError)]
    for task, outcome in zip(tasks, outcomes, strict=True):
        if task != tasks[failed]:
            assert_right(outcome, family.stock(task))
    assert_right(run_alone(engine, family.call(5)), family.stock(5))


@only_stable_diffusion
def test_no_task_hangs_when_the_compute_thread_ends(
    family: Family, engine: PipelineEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    following = engine.batcher.next

    def breaks(now: float) -> Any:
        if engine.batcher.forwards == 3:
            raise RuntimeError("CUDA error: in /opt/a/library.py")
        return following(now)

    monkeypatch.setattr(engine.batcher, "next", breaks)
    outcomes = run_together(engine, [family.call(task) for task in TASKS[1:5]])
    for outcome in (*outcomes, run_alone(engine, family.call(5))):
        assert isinstance(outcome, WorkerBroken)
        assert outcome.message == "the compute thread ended: RuntimeError"


@only_stable_diffusion
@pytest.mark.parametrize("kind", [ValueError, TypeError])
def test_a_value_error_is_the_requests_only_before_the_first_denoiser_call(
    family: Family, engine: PipelineEngine, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    before = run_alone(engine, family.call(1, height=SIDE + 1))
    assert type(before) is ValueError
    assert engine.batcher.forwards == 0
    calls: list[int] = []

    def tear(rows: int) -> None:
        calls.append(rows)
        if len(calls) == 3:
            raise kind("/opt/a/library.py says so")

    interpose(monkeypatch, engine, tear)
    after = run_alone(engine, family.call(1))
    assert isinstance(after, Internal)
    assert after.retryable
    assert "library" not in after.message
    assert type(after.__cause__) is kind
    assert_right(run_alone(engine, family.call(1)), family.stock(1))


@only_stable_diffusion
def test_out_of_memory_together_splits_and_is_remembered(
    family: Family, engine: PipelineEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures: list[int] = []
    tasks, batcher = TASKS[1:], engine.batcher
    following = batcher.next

    def all_together(now: float) -> tuple[Callable[[], None] | None, float | None]:
        """The first forward waits for every task, however late this machine lets it come."""
        begins = batcher.forwards or failures or len(batcher._waiting) == len(tasks)
        return following(now) if begins else (None, 0.01)

    def fill(rows: int) -> None:
        if rows > 8:
            failures.append(rows)
            raise torch.OutOfMemoryError("no more")

    monkeypatch.setattr(batcher, "next", all_together)
    batcher.patience, batcher.most_patience = 100.0, 5.0
    interpose(monkeypatch, engine, fill)
    for _ in range(2):
        outcomes = run_together(engine, [family.call(task) for task in tasks])
        for task, outcome in zip(tasks, outcomes, strict=True):
            assert_right(outcome, family.stock(task))
    assert failures == [14]
    assert batcher.forwards < batcher.calls / 2


@only_stable_diffusion
@pytest.mark.parametrize("words", ["CUDA error: unspecified launch failure", "CUBLAS_STATUS_EXECUTION_FAILED"])
def test_a_lost_device_is_the_workers_fault_and_no_tasks(
    family: Family, engine: PipelineEngine, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    def lose(_: int) -> None:
        raise RuntimeError(words)

    interpose(monkeypatch, engine, lose)
    for outcome in run_together(engine, [family.call(task) for task in TASKS[1:3]]):
        assert isinstance(outcome, WorkerBroken)


@only_stable_diffusion
def test_a_task_that_does_not_fit_alone_fails_alone(
    family: Family, engine: PipelineEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(rows: int) -> None:
        if rows > 4:
            raise torch.OutOfMemoryError("no more")

    interpose(monkeypatch, engine, fill)
    large = {"num_images_per_prompt": 3}
    first, *others = run_together(engine, [family.call(1, **large), *(family.call(task) for task in TASKS[2:5])])
    assert isinstance(first, OutOfMemory)
    for task, outcome in zip(TASKS[2:5], others, strict=True):
        assert_right(outcome, family.stock(task))
    assert isinstance(run_alone(engine, family.call(1, **large)), OutOfMemory)
    assert_right(run_alone(engine, family.call(5)), family.stock(5))


@only_stable_diffusion
def test_other_sizes_run_at_the_same_time_but_not_merged(family: Family, engine: PipelineEngine) -> None:
    wide = {"width": 2 * SIDE}
    narrow, wider = run_together(engine, [family.call(1), family.call(2, **wide)])
    assert_right(narrow, family.stock(1))
    assert_right(wider, family.stock(2, **wide))
    assert engine.batcher.forwards == engine.batcher.calls
