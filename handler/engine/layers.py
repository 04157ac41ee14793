"""Layers round a network: callables of one form that nest, each of which knows only what is inside it.

plain → compiled → graphed (:mod:`.graphed`) → batched (:mod:`.batcher`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..logs import logger
from ..process import provide
from . import portable

if TYPE_CHECKING:
    from ..settings import Settings

Forward = Callable[[dict[str, Any], int], Any]
"""Runs a network with arguments by name, of so many rows, and returns what the network returns."""
VERSIONS = 64
"""Compilations that Dynamo keeps of one block, each for another number of rows or size; then it gives up compiling it
in silence (8 by default)."""


def plain(network: Callable[..., Any]) -> Forward:
    """The network, or a method of it, as it is."""
    return lambda arguments, _: network(**arguments)


def compiled(network: Any, settings: Settings) -> Forward:
    """The network with the blocks compiled that it repeats, each once for all its likes ("regional compilation").

    What was compiled is kept in ``CACHE_DIR``; what others have compiled is taken where it may be (:mod:`.portable`).
    Where it cannot be compiled it stays as it is, and the log says so.
    """
    provide(TORCHINDUCTOR_CACHE_DIR=str(Path(settings.cache_dir, "inductor")))
    portable.take(settings)
    torch._dynamo.config.recompile_limit = max(VERSIONS, torch._dynamo.config.recompile_limit)
    try:
        network.compile_repeated_blocks()
    except (AttributeError, RuntimeError, ValueError) as fault:
        logger.warning("the denoiser's blocks cannot be compiled here", fault=str(fault))
    return alike(plain(network))


def alike(forward: Forward) -> Forward:
    """Hands on tensors of one kind, whoever made them: Dynamo compiles a block anew for each mix of tensors that were
    made in inference mode and of others, and a task alone brings other ones than several that were put together.

    What is in lists and tuples stays as it is: networks add it to something, and do not hand it to their blocks.
    """

    def own(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: own(inner) for name, inner in value.items()}
        return value.clone() if isinstance(value, torch.Tensor) and not value.is_inference() else value

    return lambda arguments, rows: forward(own(arguments), rows)


def uncompiled(network: torch.nn.Module) -> None:
    """Takes back what :func:`compiled` did."""
    for module in network.modules():
        module._compiled_call_impl = None
