"""A task's own pipeline: it shares the networks with all others, and nothing else.

Whatever keeps state (schedulers, guiders, image processors, nested pipelines) is copied for each task, as it was when
the model was loaded. Networks and tokenizers, too large to copy, are replaced by stand-ins (:mod:`.seam`).
"""

from __future__ import annotations

import copy
from functools import cache
from typing import TYPE_CHECKING, Any

import torch

from ..logs import logger

if TYPE_CHECKING:
    from collections.abc import Callable

    StandIn = Callable[[Any], Any]


def own(pipe: Any, stand_in: StandIn) -> Any:
    """A copy of ``pipe``, which itself is never run. ``stand_in`` is asked once for each network and tokenizer.

    What several parts of the pipeline share, such as a nested pipeline's networks, their copies share as well.
    """
    return _copied(pipe, stand_in, {})


def networks(pipe: Any) -> dict[str, torch.nn.Module]:
    """All networks by name, those of nested pipelines among them; each once."""
    found: dict[str, torch.nn.Module] = {}
    for name, value in vars(pipe).items():
        parts = networks(value) if is_pipeline(value) else {name: value}
        for inner, part in parts.items():
            if isinstance(part, torch.nn.Module) and all(part is not one for one in found.values()):
                found.setdefault(inner, part)
    return found


def is_pipeline(value: object) -> bool:
    from diffusers import DiffusionPipeline

    return isinstance(value, DiffusionPipeline)


def is_tokenizer(value: object) -> bool:
    """A tokenizer, or a processor that holds one."""
    from transformers import PreTrainedTokenizerBase, ProcessorMixin

    return isinstance(value, PreTrainedTokenizerBase | ProcessorMixin)


def _copied(pipe: Any, stand_in: StandIn, memo: dict[int, Any]) -> Any:
    mine = copy.copy(pipe)
    memo[id(pipe)] = mine
    attributes = vars(mine)  # written directly: DiffusionPipeline's own __setattr__ would note the parts in its config
    parts = sorted(vars(pipe).items(), key=lambda item: _is_plain(item[1]))  # copies refer to the stand-ins
    for name, value in parts:
        if id(value) not in memo:
            memo[id(value)] = _part(value, stand_in, memo)
        attributes[name] = memo[id(value)]
    return mine


def _is_plain(value: object) -> bool:
    return not (isinstance(value, torch.nn.Module) or is_tokenizer(value) or is_pipeline(value))


def _part(value: Any, stand_in: StandIn, memo: dict[int, Any]) -> Any:
    if isinstance(value, torch.nn.Module) or is_tokenizer(value):
        return stand_in(value)
    if is_pipeline(value):
        return _copied(value, stand_in, memo)
    try:
        return copy.deepcopy(value, memo)
    except Exception as fault:  # a lock, a file: nothing that a task could leave its own state in
        _say_once(type(value).__name__, type(fault).__name__)
        return value


@cache
def _say_once(kind: str, fault: str) -> None:
    logger.warning("a part of the pipeline cannot be copied and is shared by all tasks", kind=kind, fault=fault)
