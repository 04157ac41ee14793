"""Two versions side by side: this one reads all that 0.1.0 wrote, and what a later one will write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from handler.contract.pointer import Pointer, pointer_in
from handler.contract.record import KeptRequest, Record
from handler.contract.request import GenerationRequest, parse

FILES = Path(__file__).parents[1] / "versions" / "0.1.0"
RECORDS = sorted(FILES.glob("record-*.json"))
MESSAGES: dict[str, dict[str, str]] = json.loads((FILES / "messages.json").read_text())


def accepted(body: str) -> GenerationRequest:
    return parse(body).accept()


@pytest.mark.parametrize("file", RECORDS, ids=lambda file: file.stem)
def test_a_record_of_0_1_0_is_read_and_written(file: Path) -> None:
    old = json.loads(file.read_text())
    record = Record.from_json(file.read_bytes())
    assert (record.sends, record.tries, record.saved_step) == (0, 0, 0)
    again = json.loads(record.to_json())
    for name, value in old.items():
        if name not in {"request", "lease", "error", "images"}:  # which have fields of their own by now
            assert again[name] == value, name
    for one, other in zip(again["images"], old["images"], strict=True):
        assert one == {**other, "unsafe": False}


@pytest.mark.parametrize("name", MESSAGES)
@pytest.mark.parametrize("status", ["pending", "processing", "completed"])
def test_a_message_of_0_1_0_is_of_its_own_task(name: str, status: str) -> None:
    """As its caller sent it, and as 0.1.0 itself sent it again, before and after the request was resolved."""
    record = Record.from_json((FILES / f"record-{name}-{status}.json").read_bytes())
    told = MESSAGES[name]
    assert record.fingerprint == told["fingerprint"]
    assert record.asks_for(accepted(told["body"]))
    assert record.asks_for(accepted(told["message"]))
    assert record.asks_for(accepted(told["message of the claimed"])) is (status != "pending" or "seed" in told["body"])
    (other,) = MESSAGES.keys() - {name}
    assert not record.asks_for(accepted(MESSAGES[other]["body"]))
    changed = json.loads(told["body"]) | {"image": "an-upload"}
    assert not record.asks_for(accepted(json.dumps(changed)))


def with_unknown(value: Any) -> Any:
    """The same JSON with a field in every object that no version knows yet."""
    if isinstance(value, dict):
        return {name: with_unknown(one) for name, one in value.items()} | {"of_tomorrow": {"a": 1}}
    return [with_unknown(one) for one in value] if isinstance(value, list) else value


@pytest.mark.parametrize("file", RECORDS, ids=lambda file: file.stem)
def test_fields_of_a_later_version_are_passed_over_and_kept(file: Path) -> None:
    record = Record.from_json(json.dumps(with_unknown(json.loads(file.read_text()))).encode())
    moved = json.loads(record.next(tries=1).to_json())
    assert moved["of_tomorrow"] == {"a": 1}
    for part in ("request", "lease", "error", "model", "timings"):
        if moved.get(part):
            assert moved[part]["of_tomorrow"], part


def test_a_pointer_of_a_later_version_is_one() -> None:
    body = json.dumps({"task_id": "t", "fingerprint": "3-x", "send": 4, "of_tomorrow": [1]})
    assert pointer_in(body) == Pointer(task_id="t", fingerprint="3-x", send=4)
    assert pointer_in('{"prompt": "fox", "fingerprint": "x"}') is None
    assert pointer_in('{"fingerprint": "x"}') is None


def test_a_new_field_with_a_default_changes_no_fingerprint() -> None:
    class Tomorrow(GenerationRequest):
        style: str | None = None
        rounds: int = 3

    assert Tomorrow(prompt="fox", seed=1).fingerprint() == GenerationRequest(prompt="fox", seed=1).fingerprint()
    assert Tomorrow(prompt="fox", rounds=4).fingerprint() != GenerationRequest(prompt="fox").fingerprint()


def test_a_resolved_request_is_still_named_by_what_was_asked() -> None:
    asked = GenerationRequest(prompt="fox")
    resolved = KeptRequest(prompt="fox", seed=4, num_inference_steps=20)
    assert asked.is_named_by(asked.fingerprint())
    assert not asked.is_named_by(resolved.fingerprint())
