"""A request's fields as options of a command, made from the request's own model: a new field appears by itself."""

from __future__ import annotations

import inspect
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from ..contract.request import GenerationRequest

if TYPE_CHECKING:
    from collections.abc import Callable

SHORT = {
    "num_inference_steps": "--steps",
    "guidance_scale": "--guidance",
    "output_format": "--format",
    "tags": "--tag",
}
"""Options that are not called as their field is."""
KINDS: dict[str, Any] = {"integer": int, "number": float, "string": str, "array": list[str]}
IMAGE = "A PNG, JPEG or WebP file to draw from"
"""A person has a file where the request has the id of an upload."""


def takes_request(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command an option for each field but ``prompt``. It is called with ``asked``: the fields that were
    given, and ``image``: the file, or None. Limits are only told here: what checks a request finds all faults at once.
    """
    hints = get_type_hints(command, include_extras=True)
    own = [one for one in inspect.signature(command).parameters.values() if one.name not in {"asked", "image"}]
    own = [one.replace(annotation=hints[one.name]) for one in own]
    options = {name: _option(name, schema) for name, schema in _fields().items()}

    @wraps(command)
    def called(**given: Any) -> None:
        fields = {name: given.pop(name) for name in options}
        image = fields.pop("image")
        asked = {name: value for name, value in fields.items() if value not in (None, [])}
        return command(asked=asked, image=image, **given)

    prompt, *rest = own
    made = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
        for name, kind in options.items()
    ]
    parameters = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in (prompt, *made, *rest)]
    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {one.name: one.annotation for one in parameters}
    return called


def _fields() -> dict[str, dict[str, Any]]:
    """The JSON Schema of each field but the prompt; of an optional one that of its value."""
    found: dict[str, dict[str, Any]] = GenerationRequest.model_json_schema()["properties"]
    return {
        name: schema | next((one for one in schema.get("anyOf", []) if one["type"] != "null"), {})
        for name, schema in found.items()
        if name != "prompt"
    }


def _option(name: str, schema: dict[str, Any]) -> Any:
    flag = SHORT.get(name, "--" + name.replace("_", "-"))
    if name == "image":
        return Annotated[Path | None, typer.Option(flag, exists=True, dir_okay=False, help=IMAGE)]
    return Annotated[KINDS[schema["type"]] | None, typer.Option(flag, help=_help(schema))]


def _help(schema: dict[str, Any]) -> str:
    """The field's description and its limits."""
    told = [schema["description"]] if "description" in schema else []
    if "enum" in schema:
        told.append(", ".join(schema["enum"]))
    if schema["type"] in {"integer", "number"}:
        least, most = schema.get("minimum"), schema.get("maximum")
        told.append(f"{least} to {'2**63 - 1' if most and most > 2**53 else most}")
    if "maxLength" in schema:
        told.append(f"at most {schema['maxLength']} characters")
    if schema["type"] == "array":
        told.append(f"may be given {schema['maxItems']} times")
    return "; ".join(told)
