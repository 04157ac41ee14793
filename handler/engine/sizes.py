"""What sizes a pipeline draws: by its own checks where it has any, else by its configuration."""

from __future__ import annotations

import inspect
import logging
import math
import re
import sys
from typing import TYPE_CHECKING, Any

from .anatomy import taken

if TYPE_CHECKING:
    import torch

DIVISIBLE = re.compile(r"divisible by (\d+)")
SMALLEST = 8
"""No pipeline's own check allows less, but some make none."""
BINNING = "use_resolution_binning"
"""The argument of pipelines that draw at the nearest size they were trained at and scale the picture to what was asked
for: they can do with any multiple that they accept."""


def native_side(pipe: Any, denoiser: torch.nn.Module) -> int | None:
    """Pixels a side at which the model draws if it is not told; None if only the picture itself will tell."""
    width = taken(pipe).get("width")
    if width is not None and isinstance(width.default, int):
        return width.default
    factor = getattr(pipe, "vae_scale_factor", None)
    sizes = (getattr(pipe, "default_sample_size", None), getattr(denoiser.config, "sample_size", None))
    size = next((one for one in sizes if isinstance(one, int)), None)
    return int(size * factor) if size and factor else None


def size_multiple(pipe: Any, denoiser: torch.nn.Module) -> int:
    """Width and height must be multiples of this, or the pipeline refuses them or draws another size."""
    stated = _stated(pipe)
    if stated and BINNING in taken(pipe):
        return math.lcm(SMALLEST, stated)
    if factor := _movq_factor(pipe):
        return math.lcm(SMALLEST, factor**2)  # diffusers' downscale_height_and_width rounds up to it
    processor = getattr(getattr(pipe, "image_processor", None), "config", None)
    packed = int(getattr(processor, "vae_scale_factor", SMALLEST))
    patch = getattr(denoiser.config, "patch_size", None) or 1
    across = patch if isinstance(patch, int) else int(patch[-1])
    unit = int(getattr(pipe, "vae_scale_factor", packed)) * across
    # Some count the patch in the factor of their image processor, where it says how pictures are to be cut.
    return math.lcm(SMALLEST, unit, stated) if stated else math.lcm(SMALLEST, max(unit, packed))


def own_sizes(pipe: Any) -> list[tuple[int, int]]:
    """The only sizes (width, height) that the pipeline draws, whatever it is asked for; empty if it draws any.

    HunyuanDiT's pipelines and Kandinsky 5's take the one of the nearest shape in place of another, and say so in their
    log alone.
    """
    if found := getattr(pipe, "resolutions", None):
        return [(int(width), int(height)) for width, height in found]
    shapes = getattr(sys.modules[type(pipe).__module__], "SUPPORTED_SHAPE", None)
    if shapes is None or BINNING not in taken(pipe):
        return []
    return [(int(width), int(height)) for height, width in shapes]


def _stated(pipe: Any) -> int | None:
    """The number that the pipeline names when it is asked for one pixel; None if it does not mind, or not there."""
    check = getattr(pipe, "check_inputs", None)
    if check is None:
        return None
    wanted = [one.name for one in inspect.signature(check).parameters.values() if one.default is one.empty]
    given = {name: None for name in wanted if name not in {"args", "kwargs"}}
    lines: list[str] = []
    own, handler = logging.getLogger(type(pipe).__module__), logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    level, propagates = own.level, own.propagate
    own.addHandler(handler)
    own.setLevel(logging.WARNING)
    own.propagate = False
    try:
        check(**{**given, "prompt": "a", "height": 1, "width": 1})
    except Exception as fault:  # whatever it says of the rest, which is not there
        lines.append(str(fault))
    finally:
        own.removeHandler(handler)
        own.setLevel(level)
        own.propagate = propagates
    found = [int(match[1]) for match in map(DIVISIBLE.search, lines) if match]
    return found[0] if found else None


def _movq_factor(pipe: Any) -> int | None:
    """By how much Kandinsky's autoencoder scales; None for other pipelines."""
    movq = getattr(pipe, "movq", None) or getattr(pipe, "decoder_movq", None)
    return 2 ** (len(movq.config.block_out_channels) - 1) if movq is not None else None
