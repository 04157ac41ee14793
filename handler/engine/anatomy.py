"""The parts of a pipeline, and what its call takes."""

from __future__ import annotations

import inspect
import logging
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import diffusers
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from ..contract.card import ARGUMENTS
from ..errors import ModelUnavailable
from .isolation import networks

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch


IDLE = {
    "AmusedPipeline": ("num_images",),  # its scheduler takes one generator, and each picture has one of its own
    "DreamLiteMobilePipeline": ("guidance_scale",),  # distilled: "accepted for API parity; ignored"
    "GlmImagePipeline": ("image",),  # of pictures it takes lists alone, whatever its signature says
    "PRXPipeline": ("num_images",),  # guided, it tells its transformer the time of two rows, however many there are
    "PRXPixelPipeline": ("num_images",),
    "StableDiffusionPanoramaPipeline": ("num_images",),  # of several pictures each is another than of its seed alone
    # Told words it looks at no picture and guides away from noise; it knows the places of one size, and takes one seed.
    "UniDiffuserPipeline": ("image", "negative_prompt", "width", "height", "num_images"),
}
"""Request fields that a pipeline has an argument for, and that would not do what they promise."""
PROMPT_ALONE = {"BriaFibo2Pipeline", "DreamLiteMobilePipeline", "DreamLitePipeline", "Flux2KleinKVPipeline"}
"""Pipelines that take pictures to edit and need none, and that diffusers' AutoPipeline does not know."""


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
    if "image" in fields(pipe):
        return pipe
    kind = getattr(diffusers, type(pipe).__name__.replace("Pipeline", "Img2ImgPipeline"), None)
    if kind is None or not fields(pipe) - {"width", "height"} <= fields(kind):
        return None
    parts = {**pipe.config, **pipe.components}
    wanted = inspect.signature(kind.__init__).parameters
    if not {name for name, one in wanted.items() if one.default is one.empty and name != "self"} <= parts.keys():
        return None  # it needs networks that this pipeline does not have
    with quiet():
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
    Qwen-Image, it is the guidance that people mean. Models that were distilled without it, as FLUX.1-schnell, have no
    such input.
    """
    name = (pipe if isinstance(pipe, type) else type(pipe)).__name__.replace("Img2Img", "")
    known, idle = taken(pipe), IDLE.get(name, ())
    if not isinstance(pipe, type) and pipe.config.get("sample_sigmas"):
        idle = (*idle, "num_inference_steps")  # there are as many as these, whatever is asked for
    found = {field: argument for field, argument in ARGUMENTS.items() if argument in known and field not in idle}
    if "true_cfg_scale" not in known:
        return found
    if known["true_cfg_scale"].default > 1:
        return found | {"guidance_scale": "true_cfg_scale"}
    without = {"negative_prompt"} | ({"guidance_scale"} if _takes_no_guidance(pipe) else set())
    return {field: argument for field, argument in found.items() if field not in without}


def _takes_no_guidance(pipe: Any) -> bool:
    config = getattr(getattr(pipe, "transformer", None), "config", {})
    return config.get("guidance_embeds") is False


def fields(pipe: Any) -> set[str]:
    return set(arguments_of(pipe))


def draws_without_image(pipe: Any) -> bool:
    """Whether a pipeline that takes an image also works without one; one with a ControlNet does not."""
    from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING

    known = type(pipe) in AUTO_TEXT2IMAGE_PIPELINES_MAPPING.values() or type(pipe).__name__ in PROMPT_ALONE
    return known and getattr(pipe, "controlnet", None) is None


@contextmanager
def quiet() -> Iterator[None]:
    """Silences the libraries' own warnings and progress bars while a model loads."""
    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
