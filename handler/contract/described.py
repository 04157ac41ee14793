"""Completes the OpenAPI document that Powertools generates: links, headers, examples, and pydantic's own schemas."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from pydantic.json_schema import models_json_schema

from ..errors import CODES
from . import examples
from .card import OPTIONAL, ModelCard
from .openai import ONLY_THEIRS, ImagesRequest, ImagesResponse, OpenAiError, OpenAiModels
from .paths import PATHS
from .request import GenerationRequest
from .responses import (
    ErrorResponse,
    HealthResponse,
    ModelsResponse,
    QuoteResponse,
    ResultPage,
    ResultResponse,
    TaskResponse,
    UploadResponse,
)
from .upload import UploadRequest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .request import Contract

CONTRACTS: tuple[type[Contract], ...] = (
    GenerationRequest,
    TaskResponse,
    QuoteResponse,
    UploadRequest,
    UploadResponse,
    ResultResponse,
    ResultPage,
    ModelsResponse,
    HealthResponse,
    ErrorResponse,
    ImagesRequest,
    ImagesResponse,
    OpenAiModels,
    OpenAiError,
)
COMPONENT = "#/components/schemas/{model}"
ANSWERED = "GenerationRequest"
ASKED = "ModelRequest"
"""The request with this model's limits. Responses use the unlimited one: their request may be of an earlier model."""
RETRY_AFTER = ("Seconds after which the same call may go better", {"type": "integer", "minimum": 1})
CODE_OF = {403: "INVALID_REQUEST", 404: "NOT_FOUND", 409: "CONFLICT", 429: "QUOTA_EXCEEDED", 500: "INTERNAL"}
CODE_OF |= {
    413: "INVALID_REQUEST",
    415: "INVALID_REQUEST",
    422: "INVALID_REQUEST",
    503: "MODEL_UNAVAILABLE",
    504: "TIMED_OUT",
}
ABOUT = """

Every error, whatever its status, has the envelope of `ErrorResponse` (below `/v1` OpenAI's), with a code of: {codes}. A
method that a path does not take is 405, with `Allow`. Where the API asks for a key or a signature, a call without one
is 403."""
QUALITY_NEEDS_A_USE = {
    "anyOf": [
        {"properties": {"quality": {"type": "null"}}},
        {"properties": {"output_format": {"enum": ["jpeg", "webp"]}}, "required": ["output_format"]},
    ]
}
COMPRESSION_NEEDS_A_USE = {
    "anyOf": [
        {"properties": {"output_compression": {"type": "null"}}},
        {"properties": {"output_format": {"enum": ["jpeg", "webp"]}}, "required": ["output_format"]},
    ]
}
STRENGTH_NEEDS_A_USE = {
    "anyOf": [
        {"properties": {"strength": {"type": "null"}}},
        {"properties": {"image": {"type": "string"}}, "required": ["image"]},
    ]
}

Described = tuple[str, dict[str, Any]]


def link(operation: str, description: str, **parameters: str) -> dict[str, Any]:
    """An OpenAPI link to another operation; ``parameters`` are runtime expressions."""
    return {"operationId": operation, "description": description, "parameters": parameters}


def answers(
    status: int,
    description: str,
    model: type[Contract] | None,
    example: Any,
    *,
    headers: Mapping[str, Described] | None = None,
    links: Mapping[str, Any] | None = None,
    also: Mapping[int, tuple[str, type[Contract] | None, Any]] | None = None,
    kind: str = "application/json",
    **errors: str,
) -> dict[int, Any]:
    """An operation's OpenAPI responses: the main one, others (``also``) by status, and errors as ``_404="…"``."""
    made = {status: _answer(description, model, example, kind)}
    if headers:
        made[status]["headers"] = _headers(headers)
    if links:
        made[status]["links"] = dict(links)
    for other, (text, contract, shown) in (also or {}).items():
        made[other] = {"description": text} if contract is None else _answer(text, contract, shown, kind)
        if other == 304 and headers:
            made[other]["headers"] = _headers({name: headers[name] for name in ("ETag", "Cache-Control")})
    for name, text in {
        "_403": "No key, or no signature, where one is asked for",
        **errors,
        "_500": "Our fault",
    }.items():
        code = int(name[1:])
        made[code] = _answer(text, ErrorResponse, examples.error(CODE_OF[code], text), "application/json")
        if code in {429, 503}:
            made[code]["headers"] = _headers({"Retry-After": RETRY_AFTER})
    return dict(sorted(made.items()))


def in_openais_words(responses: dict[int, Any]) -> dict[int, Any]:
    """The same responses with their envelope of errors."""
    for code, made in responses.items():
        if code >= 400:
            example = examples.openai_error(CODE_OF[code], made["description"])
            made.update(_answer(made["description"], OpenAiError, example, "application/json"))
    return responses


def complete(document: dict[str, Any]) -> dict[str, Any]:
    """Powertools' document with what it lacks, and without what is wrong in it. Changes it in place."""
    _, schemas = models_json_schema([(one, "validation") for one in CONTRACTS], ref_template=COMPONENT)
    # Powertools writes limits as floats, which made the largest seed one too large, and adds responses of its own.
    asked = {**copy.deepcopy(schemas["$defs"][ANSWERED]), "allOf": [QUALITY_NEEDS_A_USE, STRENGTH_NEEDS_A_USE]}
    for taken in (asked, schemas["$defs"]["UploadRequest"]):
        _take_null(taken)
    as_openai = schemas["$defs"]["ImagesRequest"] | {"allOf": [COMPRESSION_NEEDS_A_USE]}
    as_openai["properties"] |= {
        name: {"type": "null", "description": "Of OpenAI's, and of no meaning here"} for name in ONLY_THEIRS
    }
    document["components"]["schemas"] = {**schemas["$defs"], ASKED: asked, "ImagesRequest": as_openai}
    document["components"]["securitySchemes"] = {
        "ApiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "Where the API asks for one"}
    }
    document["security"] = [{}, {"ApiKey": []}]
    document["info"] |= {
        "description": document["info"]["description"] + ABOUT.format(codes=", ".join(CODES)),
        "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
    }
    document["tags"] = [
        {"name": "Tasks", "description": "Requests for images, from the question to the picture"},
        {"name": "OpenAI", "description": "The same for clients of OpenAI's images API, with its errors"},
        {"name": "Service", "description": "What this deployment can do"},
    ]
    document["paths"] = {path: document["paths"][path] for path in PATHS if path in document["paths"]}  # in our order
    for operations in document["paths"].values():
        for operation in operations.values():
            operation["responses"].get("304", {}).pop("content", None)
            for parameter in operation.get("parameters", []):
                parameter["schema"] = _without_null(parameter["schema"])
    for path, model in (
        ("/generate", ASKED),
        ("/uploads", "UploadRequest"),
    ):  # the body of /uploads is optional, but not null
        body = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        body["schema"] = {"$ref": COMPONENT.format(model=model)}
    return document


def limit_to_model(document: dict[str, Any], card: ModelCard) -> dict[str, Any]:
    """A copy of the document with this model's limits in the schema of the request."""
    document = copy.deepcopy(document)
    whole = document["components"]["schemas"][ASKED]
    whole["required"] = [*whole["required"], *card.required]
    as_openai = document["components"]["schemas"]["ImagesRequest"]["properties"]
    as_openai["model"] = {"enum": [card.id, None], "description": as_openai["model"]["description"]}
    _number(as_openai["n"])["maximum"] = card.limits.num_images if "num_images" in card.parameters else 1
    asked, limits = whole["properties"], card.limits
    for name in OPTIONAL:
        if name not in card.parameters:
            asked[name] = {"enum": [1, None]} if name == "num_images" else {"type": "null"}
        elif name in {"width", "height"}:
            least, most = {"minimum": limits.min_side}, {"maximum": limits.max_side}
            own = {"enum": sorted({size[name == "height"] for size in card.sizes})} if card.sizes else {}
            _number(asked[name]).update(least | most | {"multipleOf": card.size_multiple} | own)
        elif name in {"num_inference_steps", "num_images"}:
            _number(asked[name])["maximum"] = getattr(limits, name)
    return document


def _answer(text: str, model: type[Contract] | None, example: Any, kind: str) -> dict[str, Any]:
    if model is None:
        schema = {"type": "string"} if kind == "text/html" else {"type": "object"}
        return {"description": text, "content": {kind: {"schema": schema}}}
    return {"description": text, "content": {kind: {"model": model, "examples": {"example": {"value": example}}}}}


def _headers(headers: Mapping[str, Described]) -> dict[str, Any]:
    return {name: {"description": text, "schema": schema} for name, (text, schema) in headers.items()}


def _take_null(schema: dict[str, Any]) -> None:
    """Has a request's schema take null where a field may be left out. Changes it in place."""
    for name, spec in schema["properties"].items():
        if name not in schema.get("required", []) and "anyOf" not in spec:
            kept = {key: spec.pop(key) for key in ("description", "default", "title") if key in spec}
            schema["properties"][name] = {"anyOf": [spec, {"type": "null"}], **kept}


def _number(schema: dict[str, Any]) -> dict[str, Any]:
    """The part of a property's schema that is not null."""
    parts: list[dict[str, Any]] = schema.get("anyOf", [schema])
    return next(one for one in parts if one.get("type") != "null")


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A parameter's schema without null: a query parameter or header is left out instead."""
    rest = {name: value for name, value in schema.items() if name not in {"anyOf", "title", "description"}}
    return {**rest, **(_number(schema) if "anyOf" in schema else {})}
