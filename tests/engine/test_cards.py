"""The card next to a model's weights: what it overrides, and that a broken one keeps no model from loading."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from handler.engine.loading import read_overrides

if TYPE_CHECKING:
    from pathlib import Path


def test_only_defaults_and_limits_are_taken(tmp_path: Path) -> None:
    (tmp_path / "model_card.json").write_text(json.dumps({"id": "x", "defaults": {"num_inference_steps": 4}}))
    assert read_overrides(tmp_path) == {"defaults": {"num_inference_steps": 4}}


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"defaults": 5}', '{"limits": "many"}'])
def test_a_broken_one_is_named_and_left_aside(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    """As ``darkroom card > model_card.json`` left it, which emptied the file before it read it."""
    (tmp_path / "model_card.json").write_text(text)
    assert read_overrides(tmp_path) == {}
    (line,) = caplog.records
    assert line.getMessage() == "the model's card cannot be read and is left aside"
    assert vars(line)["file"] == str(tmp_path / "model_card.json")
