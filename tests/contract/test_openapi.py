"""The API's description: valid, whole, and true of the routes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from handler.contract import health, openai, responses
from handler.contract.openapi import document
from handler.contract.paths import PATHS
from handler.contract.request import MAX_SEED, GenerationRequest

from ..support import CARD, Clock, answer_of, http_event

if TYPE_CHECKING:
    from collections.abc import Iterator

    from handler.api.results import Status
    from handler.api.submission import Submit
    from handler.aws.store import TaskStore
    from handler.settings import Settings

DESCRIBED = document("https://api.example.com/v1", CARD.model_dump(mode="json"))
NOT_DESCRIBED = {"/", "/page/{file}", "/v1/models/{owner}/{name}"}
"""Paths for people, not for programs; and a parameter with a slash in it, of which OpenAPI cannot tell."""


def operations() -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in DESCRIBED["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


@pytest.mark.parametrize("described", [document(), DESCRIBED], ids=["contract", "model"])
def test_it_is_valid(described: dict[str, Any]) -> None:
    assert [str(fault) for fault in OpenAPIV31SpecValidator(described).iter_errors()] == []


def test_it_names_every_route() -> None:
    routes = {f"{method} {path}" for path, methods in PATHS.items() if path not in NOT_DESCRIBED for method in methods}
    assert {name for name, _ in operations()} == routes


TAKE_PARAMETERS = ("POST /generate", "POST /generate/{task_id}/retry", "GET /results", "GET /results/{task_id}")


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("name", [*TAKE_PARAMETERS, "HEAD /results/{task_id}", "DELETE /results/{task_id}"])
def test_a_query_has_the_parameters_that_are_described_and_no_other(
    submit: Submit, status: Status, store: TaskStore, name: str, version: str
) -> None:
    """One that is misspelt would pass in silence: ``?dryrun=1`` was drawn, and billed."""
    submit.submit('{"prompt": "fox", "task_id": "mine"}')
    submit.cancel("mine")
    method, _, path = name.partition(" ")
    door = status if method in {"GET", "HEAD"} else submit

    def ask(**query: str) -> dict[str, Any]:
        body = '{"prompt": "fox"}' if path == "/generate" else None
        event = http_event(method, path.format(task_id="mine"), body=body, query=query, version=version)
        if version == "2.0":
            event["rawQueryString"] = urlencode(query)
        return door.handle(event, None)

    answer = ask(dryrun="1", Tag="fox")
    assert answer["statusCode"] == 422
    assert store.read("fresh-id") is None, "nothing was made"
    parameters = dict(operations())[name.replace("HEAD", "GET")]["parameters"]
    described = [one["name"] for one in parameters if one["in"] == "query"]
    if method != "HEAD":
        told = {one["field"]: one["message"] for one in json.loads(answer["body"])["error"]["details"]}
        assert list(told) == ["Tag", "dryrun"]
        assert told["dryrun"] == f"is no parameter of this call, which takes {', '.join(described)}"
    assert ask(**{"X-Amz-Signature": "00"})["statusCode"] < 300, "how a call may be signed"


def test_every_operation_is_whole() -> None:
    names = set()
    for name, operation in operations():
        assert operation["operationId"] not in names, name
        names.add(operation["operationId"])
        assert operation["summary"], name
        assert operation["tags"], name
        assert {"403", "500"} <= set(operation["responses"]), name
        assert any(code < "300" for code in operation["responses"]), name
        for parameter in operation.get("parameters", []):
            assert parameter.get("description") or parameter["name"] == "limit", (name, parameter)
            assert parameter["schema"]["type"] in {"string", "integer"}, (name, parameter)
        for code, answer in operation["responses"].items():
            assert answer["description"], (name, code)
            assert ("Retry-After" in answer.get("headers", {})) >= (code in {"429", "503"}), (name, code)


def test_what_the_door_can_answer() -> None:
    said = {name: set(operation["responses"]) for name, operation in operations()}
    door = {"200", "202", "403", "409", "413", "415", "422", "429", "500", "503"}
    assert said["POST /generate"] == door
    for name in ("POST /generate", "POST /generate/{task_id}/retry", "POST /v1/images/generations"):
        told = dict(operations())[name]["responses"]["429"]["description"]
        assert "budget" in told, name
        assert "TENANT_TASKS" in told, name
    assert said["POST /generate/{task_id}/retry"] == door | {"404"}
    assert said["POST /uploads"] == {"201", "403", "413", "415", "422", "500", "503"}
    assert said["GET /results/{task_id}"] == {"200", "304", "403", "404", "422", "500", "503"}
    assert said["DELETE /results/{task_id}"] == {"200", "403", "404", "409", "422", "500", "503"}


def test_every_example_is_one() -> None:
    seen = 0
    for name, operation in operations():
        media = [*operation["responses"].values(), operation.get("requestBody", {})]
        for part in (kind for one in media for kind in one.get("content", {}).values()):
            model = part["schema"].get("$ref", "").rpartition("/")[2].replace("ModelRequest", "GenerationRequest")
            contract = getattr(responses, model, None) or getattr(openai, model, None)
            for example in part.get("examples", {}).values():
                assert contract is not None, (name, model)
                contract.model_validate_json(json.dumps(example["value"]))
                seen += 1
    assert seen > 40


def test_links_lead_to_operations() -> None:
    named = {operation["operationId"]: operation for _, operation in operations()}
    for name, operation in operations():
        for answer in operation["responses"].values():
            for link in answer.get("links", {}).values():
                takes = {parameter["name"] for parameter in named[link["operationId"]]["parameters"]}
                assert set(link["parameters"]) <= takes, name


def test_no_schema_is_left_over() -> None:
    text = json.dumps(DESCRIBED)
    for name in DESCRIBED["components"]["schemas"]:
        assert f'"#/components/schemas/{name}"' in text, name


def test_a_request_is_described_as_the_contract_has_it() -> None:
    schemas = DESCRIBED["components"]["schemas"]
    assert schemas["GenerationRequest"]["properties"] == GenerationRequest.model_json_schema()["properties"]
    seed = schemas["ModelRequest"]["properties"]["seed"]["anyOf"][0]
    assert seed["maximum"] == MAX_SEED  # as a float it would be one more


def test_the_models_own_limits_are_in_it(status: Status, settings: Settings, store: TaskStore, clock: Clock) -> None:
    card = CARD.model_copy(update={"size_multiple": 64, "parameters": ["width", "num_inference_steps", "seed"]})
    store.write_health(health.report(settings, clock(), card=card.model_dump(mode="json"), reason=None))
    event = http_event("GET", "/openapi.json", headers={"Host": "127.0.0.1:8000"})
    code, described = answer_of(status.handle(event, None))
    assert (code, described["servers"]) == (200, [{"url": "http://127.0.0.1:8000"}])
    asked = described["components"]["schemas"]["ModelRequest"]["properties"]
    assert asked["width"]["anyOf"][0] == {"type": "integer", "minimum": 16, "maximum": 4096, "multipleOf": 64}
    assert asked["height"] == {"type": "null"}
    assert asked["num_images"] == {"enum": [1, None]}
    assert (
        described["components"]["schemas"]["GenerationRequest"]
        == document()["components"]["schemas"]["GenerationRequest"]
    )


def test_null_is_taken_where_a_field_may_be_left_out() -> None:
    for contract in ("ModelRequest", "UploadRequest", "ImagesRequest"):
        schema = DESCRIBED["components"]["schemas"][contract]
        for name in set(schema["properties"]) - set(schema.get("required", [])):
            spec = schema["properties"][name]
            kinds = [spec, *spec.get("anyOf", [])]
            assert any(one.get("type") == "null" or None in one.get("enum", []) for one in kinds), (contract, name)
