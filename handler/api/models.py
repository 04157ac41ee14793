"""``GET /models``: the request fields that the model takes, with types, limits and defaults, as a form needs them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..contract.card import OPTIONAL, TUTORIAL
from ..contract.request import GenerationRequest
from ..contract.responses import ModelDescription, ModelsResponse, Parameter
from .health import card_of

if TYPE_CHECKING:
    from ..contract.card import ModelCard
    from ..contract.health import Health
    from ..settings import Settings

NOT_THE_MODELS = ("task_id", "tags")
"""Request fields that do not affect the picture."""


def models(health: Health, settings: Settings) -> dict[str, Any]:
    """A ModelsResponse as JSON data, of the deployment's one model."""
    card = card_of(health)
    status = "unknown" if health["model_status"] == "available" and health["reason"] else health["model_status"]
    about = (
        card.model_dump(exclude={"parameters", "required", "compiled"})
        if card
        else {"id": settings.model_name, "revision": settings.model_revision or None}
    )
    described = ModelDescription.model_validate(
        {**about, "status": status, "reason": health["reason"], "parameters": parameters(card)}
    )
    return ModelsResponse(models=[described]).model_dump(mode="json")


def parameters(card: ModelCard | None) -> list[Parameter]:
    """The request fields that this model takes, each with the tighter of the contract's and the card's limits; without
    a card all fields with the contract's limits.
    """
    schema = GenerationRequest.model_json_schema()
    taken = [
        name
        for name in schema["properties"]
        if name not in NOT_THE_MODELS and (card is None or name not in OPTIONAL or name in card.parameters)
    ]
    return [_parameter(name, schema, card) for name in taken]


def _parameter(name: str, schema: dict[str, Any], card: ModelCard | None) -> Parameter:
    spec: dict[str, Any] = dict(schema["properties"][name])
    spec |= next((one for one in spec.get("anyOf", []) if one["type"] != "null"), {})
    default = spec.get("default")
    if default is None:
        default = (card.defaults.model_dump() if card else TUTORIAL).get(name)
    values: dict[str, Any] = {
        "name": name,
        "type": spec["type"],
        "description": spec.get("description"),
        "required": name in schema["required"] or (card is not None and name in card.required),
        "default": default,
        "least": spec.get("minimum"),
        "most": spec.get("maximum"),
        "min_length": spec.get("minLength"),
        "max_length": spec.get("maxLength"),
        "one_of": spec.get("enum"),
    }
    return Parameter.model_validate({**values, **(_limits(name, card) if card else {})})


def _limits(name: str, card: ModelCard) -> dict[str, Any]:
    limits = card.limits
    if name in {"width", "height"}:
        return {"least": limits.min_side, "most": limits.max_side, "multiple_of": card.size_multiple}
    if name in {"num_inference_steps", "num_images"}:
        return {"most": getattr(limits, name)}
    return {}
