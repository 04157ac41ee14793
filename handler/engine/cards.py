"""Makes a pipeline's model card: from its signature, its configuration, what is known of its kind, and an own card."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ..contract.card import ARGUMENTS, TUTORIAL, Compiled, Defaults, Limits, ModelCard
from ..contract.health import card_beside
from ..errors import ModelUnavailable
from ..logs import logger
from .anatomy import arguments_of, denoiser_name, draws_without_image, fields, from_image, taken
from .distilled import usual
from .sizes import native_side, own_sizes, size_multiple

if TYPE_CHECKING:
    from pathlib import Path


def card_of(pipe: Any, name: str, revision: str | None, dtype: str, overrides: dict[str, Any]) -> ModelCard:
    """The card of a pipeline: parameters and defaults from its signature, sizes from its configuration.

    Raises ModelUnavailable for a pipeline without a VAE or a denoiser.
    """
    drawing, signature, known = from_image(pipe), dict(taken(pipe)), fields(pipe)
    if drawing is not None:
        signature = {**taken(drawing), **signature}
        # An input image is scaled to these whether or not the pipeline takes them.
        known |= fields(drawing) | {"width", "height"}
    parameters = [field for field in ARGUMENTS if field in known]
    if hasattr(pipe, "vae") and getattr(pipe, "vae", None) is None:
        raise ModelUnavailable(f"{type(pipe).__name__} has no VAE")
    denoiser = getattr(pipe, denoiser_name(pipe))
    side = native_side(pipe, denoiser)
    named = arguments_of(drawing) | arguments_of(pipe) if drawing is not None else arguments_of(pipe)
    own = own_sizes(pipe)
    size = (side, side) if side and (not own or (side, side) in own) else own[0] if own else (None, None)
    defaults = {"width": size[0], "height": size[1]} | {
        field: signature[named[field]].default if _is_number(signature[named[field]].default) else default
        for field, default in {**TUTORIAL, "strength": None}.items()
        if field in named
    }
    distilled = {field: value for field, value in usual(pipe, name).items() if field in named}
    limits = {"max_side": max([2 * side, *map(max, own)])} if side else {}
    return ModelCard(
        id=name,
        revision=revision,
        pipeline=type(pipe).__name__,
        dtype=dtype,
        parameters=parameters,
        required=["image"] if drawing is pipe and not draws_without_image(pipe) else [],
        defaults=Defaults.model_validate(defaults | distilled | overrides.get("defaults", {})),
        limits=Limits.model_validate(limits | overrides.get("limits", {})),
        size_multiple=size_multiple(pipe, denoiser),
        sizes=own,
        compiled=Compiled.model_validate(overrides["compiled"]) if "compiled" in overrides else None,
    )


def read_overrides(model: Path) -> dict[str, Any]:
    """What the card next to the weights says of ``defaults``, ``limits`` and ``compiled``; the first two go before what
    the pipeline says.

    A card that cannot be read, as an interrupted command may leave it, is named in the log and counts as none.
    """
    file = card_beside(model)
    if not file.is_file():
        return {}
    try:
        card = {**json.loads(file.read_text())}
        return {name: dict(card[name]) for name in ("defaults", "limits", "compiled") if card.get(name) is not None}
    except (OSError, ValueError, TypeError) as fault:
        logger.warning("the model's card cannot be read and is left aside", file=str(file), fault=str(fault))
        return {}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
