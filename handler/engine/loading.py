"""Loads the pipeline that ``MODEL_ID`` names and makes its model card. Safetensors only, no remote code."""

from __future__ import annotations

import inspect
import json
import logging
import math
import os
import threading
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import torch
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from ..contract.card import ARGUMENTS, TUTORIAL, Defaults, Limits, ModelCard
from ..contract.health import baked_card, card_beside
from ..errors import DarkroomError, ModelUnavailable
from ..logs import logger
from ..settings import provide
from .isolation import networks
from .sources import find, load

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ..settings import Settings

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
KERNELS = 6144
"""Size of oneDNN's cache of compiled kernels, which bounds a worker's memory on a CPU: each has about 0.08 MB, and each
size of picture and of batch needs dozens.

Too small, it makes forwards compile anew what was dropped: with 1,024, oneDNN's default, up to three times as long for
a UNet at every batch size; with 4,096, 8 % more processor time for pictures of 25 sizes (tests/README.md).
"""
TEAM = torch.get_num_threads()
"""OpenMP's number of threads at start: OMP_NUM_THREADS, else the machine's cores."""
LARGE = 100_000_000
"""Denoisers with at least so many parameters use channels-last on a CPU; the small built-in one is slower with it."""


Fetch = Callable[[str, "Settings"], tuple[Path, str]]
"""Downloads an ``s3://`` URL; returns a local folder and a revision that identifies its content."""


def load_pipeline(settings: Settings, fetch: Fetch | None = None) -> tuple[Any, ModelCard]:
    """Loads the pipeline and makes its card; ``fetch`` downloads a model whose id begins with ``s3://``.

    Raises ModelUnavailable with the reason, whatever went wrong.
    """
    provide(ONEDNN_PRIMITIVE_CACHE_CAPACITY=str(KERNELS))  # read by oneDNN when it is first used
    try:
        with _quiet():
            return _load(settings, fetch)
    except DarkroomError as fault:
        raise ModelUnavailable(fault.message) from fault
    except Exception as fault:
        reason = (str(fault).strip() or type(fault).__name__).splitlines()[0]
        raise ModelUnavailable(f"cannot load {settings.model_name}: {reason}") from fault


def _load(settings: Settings, fetch: Fetch | None) -> tuple[Any, ModelCard]:
    # A container image holds its model in a folder named as MODEL_ID is, with the revision on the card inside it.
    revision = settings.model_revision or (baked_card(settings) or {}).get("revision")
    place, fetched = _here(settings.model_source, settings, fetch)
    config, _ = _here(settings.model_config, settings, fetch)
    source = find(place, settings.model_revision or None, config)
    device = pick_device(settings.device)
    dtype = pick_dtype(settings.dtype, device, transformer="transformer" in source.config)
    pipe = load(source, DTYPES[dtype]).to(device)
    pipe.set_progress_bar_config(disable=True)
    tune(pipe, device, dtype, compiled=settings.compile)
    return pipe, card_of(pipe, settings.model_name, fetched or revision, dtype, read_overrides(Path(place)))


def _here(place: str, settings: Settings, fetch: Fetch | None) -> tuple[str, str | None]:
    """A place whose files are here or on the Hub, and the revision of what was fetched."""
    if not place.startswith("s3://") or Path(place).exists():
        return place, None
    if fetch is None:
        raise ModelUnavailable(f"{place}: nothing here fetches models from S3")
    folder, revision = fetch(place, settings)
    return str(folder), revision


def pick_device(wanted: str) -> str:
    """``auto`` is CUDA if it is available, else the CPU."""
    if wanted != "auto":
        return wanted
    return "cuda" if torch.cuda.is_available() else "cpu"


def pick_dtype(wanted: str, device: str, *, transformer: bool = False) -> str:
    """``auto`` on CUDA is float16 for a UNet and bfloat16 for a ``transformer``, whose kinds were trained in it and
    overflow in float16; on a CPU that computes in bfloat16 that (2 to 2.6 times faster), else float32.
    """
    if wanted != "auto":
        return wanted
    if device.startswith("cuda"):
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return "bfloat16" if transformer and native else "float16"
    known = torch.cpu.get_capabilities()
    return "bfloat16" if device == "cpu" and (known.get("avx512_bf16") or known.get("amx_bf16")) else "float32"


def tune(pipe: Any, device: str, dtype: str, *, compiled: bool) -> None:
    """Makes the pipeline faster on this device: threads, memory format, VAE dtype, compilation.

    Call it in the compute thread, whose number of OpenMP threads it sets.
    """
    own = min(cores(), TEAM)
    if torch.get_num_threads() != own:  # setting it, even to the same value, made forwards slower
        torch.set_num_threads(own)
    _leave_teams_to_this_thread()
    denoiser = getattr(pipe, denoiser_name(pipe))
    large = sum(weights.numel() for weights in denoiser.parameters()) >= LARGE
    if denoiser_name(pipe) == "unet" and (device.startswith("cuda") or (dtype == "bfloat16" and large)):
        denoiser.to(memory_format=torch.channels_last)
    vae = getattr(pipe, "vae", None)
    if vae is not None and dtype == "float16" and getattr(vae.config, "force_upcast", False):
        vae.to(torch.float32)  # it overflows in float16; else the pipeline would upcast it for every task
    if compiled:
        try:
            denoiser.compile_repeated_blocks()
        except (RuntimeError, ValueError) as fault:
            logger.warning("the denoiser's blocks cannot be compiled here", fault=str(fault))


def _leave_teams_to_this_thread() -> None:
    """Threads started from now on compute with one OpenMP thread each.

    A task's thread may enter a parallel region (a picture of 128 pixels a side is large enough when it is scaled to 0
    to 1). OpenMP then keeps a second team for as long as that thread lives, which encodes and uploads after; with more
    threads than cores no team spins between regions any more, and every forward took up to twice as long.
    """
    setting = threading.Thread(target=torch.set_num_threads, args=(1,))  # sets the default of all later threads
    setting.start()
    setting.join()


def cores(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Cores that this process may use: the smaller of its CPU affinity and the container's CPU quota.

    ``quota``: cgroup v2's ``cpu.max``, "quota period" in microseconds.
    """
    have = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        share, period = quota.read_text().split()
        return max(1, min(have, round(int(share) / int(period))))
    except (OSError, ValueError):  # no cgroup, or no limit
        return have


def read_overrides(model: Path) -> dict[str, Any]:
    """``defaults`` and ``limits`` of the card next to the weights, which go before those derived from the pipeline.

    A card that cannot be read, as an interrupted command may leave it, is named in the log and counts as none.
    """
    file = card_beside(model)
    if not file.is_file():
        return {}
    try:
        card = {**json.loads(file.read_text())}
        return {name: dict(card[name]) for name in ("defaults", "limits") if name in card}
    except (OSError, ValueError, TypeError) as fault:
        logger.warning("the model's card cannot be read and is left aside", file=str(file), fault=str(fault))
        return {}


def card_of(pipe: Any, name: str, revision: str | None, dtype: str, overrides: dict[str, Any]) -> ModelCard:
    """The card of a pipeline: parameters and defaults from its signature, sizes from its configuration.

    Raises ModelUnavailable for a pipeline without a VAE or a denoiser.
    """
    drawing, signature, fields = from_image(pipe), dict(taken(pipe)), _fields(pipe)
    if drawing is not None:
        signature = {**taken(drawing), **signature}
        # An input image is scaled to these whether or not the pipeline takes them.
        fields |= _fields(drawing) | {"width", "height"}
    parameters = [field for field in ARGUMENTS if field in fields]
    if hasattr(pipe, "vae") and getattr(pipe, "vae", None) is None:
        raise ModelUnavailable(f"{type(pipe).__name__} has no VAE")
    side = _native_side(pipe)
    named = arguments_of(drawing) | arguments_of(pipe) if drawing is not None else arguments_of(pipe)
    defaults = {"width": side, "height": side} | {
        field: signature[named[field]].default if _is_number(signature[named[field]].default) else default
        for field, default in {**TUTORIAL, "strength": None}.items()
        if field in named
    }
    limits = {"max_side": 2 * side} if side else {}
    return ModelCard(
        id=name,
        revision=revision,
        pipeline=type(pipe).__name__,
        dtype=dtype,
        parameters=parameters,
        required=["image"] if drawing is pipe and not _draws_without_image(pipe) else [],
        defaults=Defaults.model_validate(defaults | overrides.get("defaults", {})),
        limits=Limits.model_validate(limits | overrides.get("limits", {})),
        size_multiple=_size_multiple(pipe),
    )


def denoiser_name(pipe: Any) -> str:
    """``unet`` or ``transformer``: the network that the pipeline calls at every step. Raises ModelUnavailable."""
    for name in ("unet", "transformer"):
        if getattr(pipe, name, None) is not None:
            return name
    raise ModelUnavailable(f"{type(pipe).__name__} has neither a unet nor a transformer")


def denoisers(pipe: Any) -> dict[str, torch.nn.Module]:
    """The networks that the pipeline calls at its steps, by name: of some there are two, each for a part of the steps.

    The first is the one of :func:`denoiser_name`.
    """
    first = denoiser_name(pipe)
    found = networks(pipe)
    names = [first, *(name for name in found if name.startswith(first) and name != first)]
    return {name: found[name] for name in names}


def from_image(pipe: Any) -> Any:
    """The image-to-image pipeline with the same components: ``pipe`` itself if it takes an image, else the class that
    diffusers names ``…Img2ImgPipeline``; None if there is none.

    diffusers' AutoPipeline would find it too, but importing that takes 0.7 s of every cold start.
    """
    if "image" in taken(pipe):
        return pipe
    kind = getattr(diffusers, type(pipe).__name__.replace("Pipeline", "Img2ImgPipeline"), None)
    if kind is None or not _fields(pipe) - {"width", "height"} <= _fields(kind):
        return None
    parts = {**pipe.config, **pipe.components}
    wanted = inspect.signature(kind.__init__).parameters
    if not {name for name, one in wanted.items() if one.default is one.empty and name != "self"} <= parts.keys():
        return None  # it needs networks that this pipeline does not have
    with _quiet():
        variant = kind(**{name: parts[name] for name in wanted if name in parts})
    variant.set_progress_bar_config(disable=True)
    return variant


def taken(pipe: Any) -> Mapping[str, inspect.Parameter]:
    """The parameters of a pipeline's ``__call__``."""
    return inspect.signature(pipe.__call__).parameters


def arguments_of(pipe: Any) -> dict[str, str]:
    """The request fields that have an effect on a pipeline (or a pipeline class), and the argument for each.

    Models that learnt guidance take its scale as an input; beside it ``true_cfg_scale`` guides away from the negative
    prompt. Where that is off by default, as with Flux, a negative prompt would do nothing; where it is on, as with
    Qwen-Image, it is the guidance that people mean.
    """
    known = taken(pipe)
    found = {field: argument for field, argument in ARGUMENTS.items() if argument in known}
    if "true_cfg_scale" not in known:
        return found
    if known["true_cfg_scale"].default > 1:
        return found | {"guidance_scale": "true_cfg_scale"}
    return {field: argument for field, argument in found.items() if field != "negative_prompt"}


def _fields(pipe: Any) -> set[str]:
    return set(arguments_of(pipe))


def _draws_without_image(pipe: Any) -> bool:
    """Whether a pipeline that takes an image also works without one; one with a ControlNet does not."""
    from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING

    return type(pipe) in AUTO_TEXT2IMAGE_PIPELINES_MAPPING.values() and getattr(pipe, "controlnet", None) is None


def _native_side(pipe: Any) -> int | None:
    """Pixels a side at which the model was trained; None if its configuration does not say."""
    size = getattr(getattr(pipe, denoiser_name(pipe)).config, "sample_size", None)
    return int(size * pipe.vae_scale_factor) if isinstance(size, int) and hasattr(pipe, "vae_scale_factor") else None


def _size_multiple(pipe: Any) -> int:
    """Width and height must be multiples of this: of the VAE's factor times the patch size, and of diffusers' own 8."""
    processor = getattr(pipe, "image_processor", None)
    factor = getattr(getattr(processor, "config", None), "vae_scale_factor", 8)
    patch = getattr(getattr(pipe, denoiser_name(pipe)).config, "patch_size", 1)
    return math.lcm(8, int(factor) * (patch if isinstance(patch, int) else 1))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the libraries' own warnings and progress bars while a model loads."""
    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
