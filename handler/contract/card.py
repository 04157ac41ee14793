"""The model card: what a pipeline accepts, so that requests can be checked without loading it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict, Field

from ..errors import FieldError
from .request import Contract, GenerationRequest

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

ARGUMENTS = {
    "negative_prompt": "negative_prompt",
    "num_inference_steps": "num_inference_steps",
    "guidance_scale": "guidance_scale",
    "seed": "generator",
    "width": "width",
    "height": "height",
    "num_images": "num_images_per_prompt",
    "image": "image",
    "strength": "strength",
}
"""The pipeline argument for each request field; ``prompt`` is always accepted."""
OPTIONAL = tuple(ARGUMENTS)
"""Request fields that a pipeline may lack; a request with one that it lacks is refused, naming the field."""
TUTORIAL = {"num_inference_steps": 50, "guidance_scale": 7.5}
"""Defaults if neither the card nor the pipeline has one."""


class Written(Contract):
    """Base of what Darkroom itself wrote, perhaps a newer version of it: unknown fields are passed over."""

    model_config = ConfigDict(extra="ignore")


class Defaults(Written):
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    strength: float | None = None
    width: int | None = None
    height: int | None = None


class Limits(Written):
    """Largest values taken, each inclusive; sides are in pixels."""

    num_inference_steps: int = 200
    min_side: int = 16
    max_side: int = 4096
    num_images: int = 8
    prompt_tokens: int | None = Field(
        None, description="Of a text more tokens are cut, and the result warns of it; null where that is not known"
    )


class Compiled(Written):
    """What compiling the denoiser did, where ``make bench ONLY=compile`` measured it.

    ``time``: of a task alone, as a part of what it takes uncompiled; ``psnr``: of its pictures against the uncompiled
    ones', in dB, the least of eight.
    """

    device: str
    dtype: str
    time: float
    psnr: float


class ModelCard(Written):
    """Written next to the weights, kept in ``health/available.json``, shown by ``GET /health``."""

    id: str
    revision: str | None = None
    pipeline: str = Field(description="diffusers' class name")
    dtype: str
    parameters: list[str] = Field(description="Optional request fields that the pipeline takes")
    required: list[str] = Field(default_factory=list, description="Those of them that it cannot do without")
    defaults: Defaults = Field(default_factory=Defaults)
    limits: Limits = Field(default_factory=Limits)
    size_multiple: int = Field(8, ge=1, description="Width and height must be multiples of it")
    compiled: Compiled | None = Field(None, description="What compiling it did to speed and pictures, where measured")
    sizes: list[tuple[int, int]] = Field(
        default_factory=list, description="The only sizes that it draws, width and height in pixels; empty if any"
    )

    def faults(self, values: Mapping[str, Any], at_fault: Collection[str] = ()) -> list[FieldError]:
        """Every reason for which this model refuses a request's ``values``, which may be incomplete. ``at_fault``:
        fields to pass over, for they are refused already; the others have valid types.
        """
        faults = []
        for name in OPTIONAL:
            value = values.get(name)
            if name in at_fault or value is None or (name == "num_images" and value == 1):
                continue
            if name not in self.parameters:
                faults.append(FieldError(name, f"{self.pipeline} does not take it"))
            elif reason := self.over(name, value):
                faults.append(FieldError(name, reason))
        missing = [name for name in self.required if name not in at_fault and values.get(name) is None]
        faults += [FieldError(name, f"{self.pipeline} needs it") for name in missing]
        if not {"width", "height"} & {*at_fault, *(fault.field for fault in faults)}:
            faults += self._other_size(values)
        return faults + self._no_step_left(values, {*at_fault, *(fault.field for fault in faults)})

    def _other_size(self, values: Mapping[str, Any]) -> list[FieldError]:
        """A fault if the model would draw another size than this one."""
        asked = [values.get(name) for name in ("width", "height")]
        if not self.sizes or asked == [None, None]:
            return []
        defaults = (self.defaults.width, self.defaults.height)
        width, height = (one or default for one, default in zip(asked, defaults, strict=True))
        if (width, height) in self.sizes:
            return []
        own = ", ".join(f"{width} x {height}" for width, height in self.sizes)
        name = "width" if asked[0] is not None else "height"
        return [FieldError(name, f"{width} x {height} is none of this model's sizes: {own}")]

    def _no_step_left(self, values: Mapping[str, Any], at_fault: Collection[str]) -> list[FieldError]:
        """A fault if the strength is so low that no denoising step would be run."""
        if not {"num_inference_steps", "strength", "image"}.isdisjoint(at_fault):
            return []
        steps = values.get("num_inference_steps") or self.defaults.num_inference_steps
        strength = values.get("strength")
        if strength is None:
            strength = self.defaults.strength
        if values.get("image") is None or "strength" not in self.parameters or not steps or strength is None:
            return []
        if int(steps * strength) >= 1:
            return []
        least = math.ceil(1000 / steps) / 1000
        return [FieldError("strength", f"{strength:g} of {steps} steps is less than one; give at least {least:g}")]

    def over(self, name: str, value: int) -> str | None:
        """Why this model refuses the value, as words that begin with it; None if it accepts it."""
        limits = self.limits
        if name in {"width", "height"}:
            if not limits.min_side <= value <= limits.max_side:
                return f"{value} is not within {limits.min_side} to {limits.max_side} of this model"
            if value % self.size_multiple:
                return f"{value} is not a multiple of {self.size_multiple}, as this model needs"
        elif name in {"num_inference_steps", "num_images"} and value > getattr(limits, name):
            return f"{value} is more than the {getattr(limits, name)} of this model"
        return None

    def resolve(self, request: GenerationRequest) -> GenerationRequest:
        """The request with the card's defaults for missing fields, so that the record shows what was run.

        With an input image and neither ``width`` nor ``height``, both stay unset: the image's own size is used.
        """
        defaults = self.defaults.model_dump()
        if request.image is None:
            del defaults["strength"]
        elif request.width is None and request.height is None:
            del defaults["width"], defaults["height"]
        missing = {
            name: default
            for name, default in defaults.items()
            if default is not None and name in self.parameters and getattr(request, name) is None
        }
        return request.model_copy(update=missing)
