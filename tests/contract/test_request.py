"""The contract of a request: everything wrong is named at once, and nothing a stranger sends breaks it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handler.contract.card import Limits
from handler.contract.request import MAX_BODY, MAX_SEED, GenerationRequest, parse
from handler.errors import InvalidRequest

from ..support import CARD


def faults(body: object, card: Any = None) -> dict[str, str]:
    text = body if isinstance(body, str | bytes) else json.dumps(body)
    return {fault.field: fault.message for fault in parse(text, card).faults}


def test_a_prompt_is_enough() -> None:
    assert parse('{"prompt": "a red apple"}').accept() == GenerationRequest(prompt="a red apple")


def test_the_tutorial_body() -> None:
    body = {"prompt": "x", "negative_prompt": "y", "num_inference_steps": 50, "guidance_scale": 7.5, "seed": 42}
    assert parse(json.dumps(body)).accept().model_dump(include=set(body)) == body


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("prompt", "", "at least 1 character"),
        ("prompt", "   ", "match pattern"),
        ("prompt", "x" * 2001, "at most 2000 characters"),
        ("prompt", 7, "valid string"),
        ("num_inference_steps", 0, "greater than or equal to 1"),
        ("num_inference_steps", 201, "less than or equal to 200"),
        ("num_inference_steps", "20", "valid integer"),
        ("num_inference_steps", True, "valid integer"),
        ("num_inference_steps", 20.5, "valid integer"),
        ("guidance_scale", -1, "greater than or equal to 0"),
        ("guidance_scale", 50.1, "less than or equal to 50"),
        ("seed", -1, "greater than or equal to 0"),
        ("seed", 2**63, "less than or equal to"),
        ("width", 8, "greater than or equal to 16"),
        ("height", 100000, "less than or equal to 4096"),
        ("num_images", 0, "greater than or equal to 1"),
        ("num_images", 9, "less than or equal to 8"),
        ("output_format", "gif", "'png', 'jpeg' or 'webp'"),
        ("quality", 50, "png has none"),
        ("task_id", "../../etc/passwd", "match pattern"),
        ("task_id", "a/b", "match pattern"),
        ("task_id", "x" * 129, "match pattern"),
        ("task_id", "", "match pattern"),
        ("tags", ["a"] * 17, "at most 16 items"),
        ("cfg", 7, "unknown field"),
    ],
)
def test_each_limit_is_named(field: str, value: object, message: str) -> None:
    found = faults({"prompt": "fox", field: value})
    assert list(found) == [field]
    assert message in found[field]


def test_all_faults_come_at_once() -> None:
    found = faults(
        {"num_inference_steps": 0, "guidance_scale": "high", "tags": ["ok", 3], "extra": 1, "width": 100}, CARD
    )
    assert set(found) == {"prompt", "num_inference_steps", "guidance_scale", "tags.1", "extra", "width"}
    assert found["prompt"] == "is required"


def test_faults_between_fields_come_with_those_of_single_fields() -> None:
    asked = {"prompt": "fox", "width": 20, "quality": 50, "strength": 0.5, "cfg": 1, "num_images": 9}
    found = faults(asked, CARD.model_copy(update={"parameters": [*CARD.parameters, "image", "strength"]}))
    assert set(found) == {"width", "quality", "strength", "cfg", "num_images"}
    assert found["quality"] == "png has none; ask for jpeg or webp"
    assert found["strength"] == "has no use without image"
    assert found["width"] == "20 is not a multiple of 8, as this model needs"


def test_two_faults_between_fields_come_at_once() -> None:
    assert set(faults({"prompt": "fox", "quality": 50, "strength": 0.5})) == {"quality", "strength"}
    with pytest.raises(ValueError, match=r"quality: png has none.*strength: has no use"):
        GenerationRequest(prompt="fox", quality=50, strength=0.5)


@pytest.mark.parametrize(
    ("asked", "at_fault"),
    [
        ({"quality": 50, "output_format": "gif"}, "output_format"),
        ({"quality": 0}, "quality"),
        ({"strength": 2}, "strength"),
        ({"strength": 0.5, "image": "../photo"}, "image"),
        ({"strength": 0.01, "image": "photo", "num_inference_steps": 0}, "num_inference_steps"),
        ({"strength": 0.001, "image": "photo", "num_inference_steps": 60}, "num_inference_steps"),
    ],
)
def test_no_fault_is_told_between_fields_of_which_one_is_at_fault_itself(asked: dict[str, Any], at_fault: str) -> None:
    limits = Limits(num_inference_steps=50)
    card = CARD.model_copy(update={"parameters": [*CARD.parameters, "image", "strength"], "limits": limits})
    assert list(faults({"prompt": "fox", **asked}, card)) == [at_fault]


def test_a_field_that_the_model_does_not_take_has_that_fault_alone() -> None:
    card = CARD.model_copy(update={"parameters": ["image"]})
    assert faults({"prompt": "fox", "strength": 0.5}, card) == {"strength": "TestPipeline does not take it"}


def test_a_step_that_strength_leaves_no_room_for_comes_with_the_rest() -> None:
    card = CARD.model_copy(update={"parameters": [*CARD.parameters, "image", "strength"]})
    asked = {"prompt": "fox", "image": "photo", "strength": 0.01, "quality": 50, "width": 3}
    assert set(faults(asked, card)) == {"strength", "quality", "width"}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("[1]", "must be a JSON object"),
        ("null", "must be a JSON object"),
        (b"\xff\xfe", "is not JSON"),
        ('{"prompt": NaN}', "is not JSON"),
        ('{"prompt": "\\ud800"}', "is not JSON"),
        ("\ud800", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ('{"prompt": "' + "x" * 2_000_000 + '"}', f"at most {MAX_BODY}"),
    ],
)
def test_what_cannot_be_read_is_said_of_the_body(body: str | bytes, message: str) -> None:
    found = faults(body)
    assert list(found) == ["body"]
    assert message in found["body"]


def test_the_card_is_checked_with_the_rest() -> None:
    card = CARD.model_copy(update={"parameters": ["num_inference_steps", "width", "height"]})
    found = faults({"prompt": "fox", "negative_prompt": "owl", "num_images": 2, "width": 20, "seed": 3}, card)
    assert found == {
        "negative_prompt": "TestPipeline does not take it",
        "seed": "TestPipeline does not take it",
        "num_images": "TestPipeline does not take it",
        "width": "20 is not a multiple of 8, as this model needs",
    }
    assert faults({"prompt": "fox", "num_images": 1}, card) == {}


def test_a_safe_task_id_is_kept_even_of_a_bad_request() -> None:
    assert parse('{"task_id": "mine", "prompt": ""}').task_id == "mine"
    assert parse('{"task_id": "../mine", "prompt": ""}').task_id is None


def test_what_is_left_out_comes_from_the_card() -> None:
    resolved = CARD.resolve(GenerationRequest(prompt="fox", guidance_scale=0))
    assert (resolved.num_inference_steps, resolved.guidance_scale, resolved.width) == (4, 0, 64)


def test_each_image_has_a_seed_of_its_own() -> None:
    assert GenerationRequest(prompt="x", seed=7, num_images=3).seeds() == [7, 8, 9]
    assert GenerationRequest(prompt="x", seed=MAX_SEED, num_images=2).seeds() == [MAX_SEED, 0]


valid_requests = st.builds(
    GenerationRequest,
    prompt=st.text(min_size=1, max_size=60).filter(lambda text: bool(text.strip())),
    negative_prompt=st.none() | st.text(max_size=20),
    num_inference_steps=st.none() | st.integers(1, 200),
    guidance_scale=st.none() | st.floats(0, 50),
    seed=st.none() | st.integers(0, MAX_SEED),
    width=st.none() | st.integers(16, 4096),
    num_images=st.integers(1, 8),
    output_format=st.sampled_from(["jpeg", "webp"]),
    quality=st.none() | st.integers(1, 100),
    task_id=st.none() | st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
    tags=st.lists(st.text(min_size=1, max_size=8), max_size=4),
)


@given(valid_requests)
def test_what_is_left_out_null_or_the_default_is_the_same(request: GenerationRequest) -> None:
    said = json.loads(request.model_dump_json())
    assert parse(json.dumps(said)).accept().fingerprint() == request.fingerprint()
    fields = GenerationRequest.model_fields
    named = {name: said[name] for name in said if said[name] != fields[name].get_default(call_default_factory=True)}
    assert parse(json.dumps(named | {"task_id": "other"})).accept().fingerprint() == request.fingerprint()


@given(valid_requests, valid_requests)
def test_fingerprints_tell_requests_apart(one: GenerationRequest, other: GenerationRequest) -> None:
    unnamed = {"task_id": None}
    same = one.model_copy(update=unnamed) == other.model_copy(update=unnamed)
    assert (one.fingerprint() == other.fingerprint()) == same


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)


@given(
    st.dictionaries(st.sampled_from([*GenerationRequest.model_fields, "other"]), json_values, max_size=8)
    | json_values.map(lambda value: {"prompt": value})
)
def test_any_json_is_accepted_or_refused_with_reasons(body: dict[str, Any]) -> None:
    parsed = parse(json.dumps(body), CARD)
    if parsed.request is None or parsed.faults:
        assert parsed.faults
        with pytest.raises(InvalidRequest):
            parsed.accept()
    else:
        assert parse(parsed.request.model_dump_json()).accept() == parsed.request


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_or_read(body: bytes) -> None:
    parsed = parse(body)
    assert parsed.request is not None or parsed.faults


@pytest.mark.parametrize(
    "name", [name for name, one in GenerationRequest.model_fields.items() if not one.is_required()]
)
def test_null_is_as_good_as_left_out(name: str) -> None:
    asked = parse(json.dumps({"prompt": "fox", name: None})).accept()
    assert asked == parse('{"prompt": "fox"}').accept()


def test_a_prompt_is_not_left_out() -> None:
    assert [fault.field for fault in parse('{"prompt": null}').faults] == ["prompt"]
    assert [fault.field for fault in parse('{"prompt": "fox", "style": null}').faults] == ["style"]
