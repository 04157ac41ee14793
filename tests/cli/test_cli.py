"""``darkroom`` as a user types it."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from handler.cli.terminal import picture_escape

from ..forms import picture
from ..support import on_one_core
from ..warm import darkroom

if TYPE_CHECKING:
    from handler.aws.queue import TaskQueue
    from handler.aws.store import TaskStore

EVENTS = Path(__file__).parents[1] / "events"
EVENT = EVENTS / "sqs.json"


def test_invoke_draws_a_picture(tmp_path: Path) -> None:
    """From a cold start, as all of ``make beginnings``; the other commands here are forked from a warm parent."""
    asked = ("invoke", "a red apple", "--steps", "4", "--seed", "7", "--out", str(tmp_path), "--json")
    with on_one_core():
        done = subprocess.run(
            [sys.executable, "-m", "handler.cli.main", *asked],
            env={"PATH": os.environ["PATH"], "HOME": "/nonexistent"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads(done.stdout)
    assert result["status"] == "completed"
    body = Path(result["files"][0]).read_bytes()
    assert sha256(body).hexdigest() == result["images"][0]["sha256"]
    assert Image.open(io.BytesIO(body)).size == (64, 64)
    assert result["request"]["seed"] == 7


def test_invoke_draws_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "photo.jpg"
    file.write_bytes(picture(300, 200, "JPEG"))
    asked = ("invoke", "a red apple", "--image", str(file), "--strength", "0.5", "--steps", "8", "--json")
    done = darkroom(*asked, "--width", "64", "--height", "48", "--out", str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads(done.stdout)
    assert (result["progress"]["steps"], result["images"][0]["height"]) == (4, 48)
    assert result["input"]["sha256"] == sha256(file.read_bytes()).hexdigest()
    done = darkroom(*asked, "--out", str(tmp_path))
    assert done.returncode == 1
    (fault,) = json.loads(done.stdout)["error"]["details"]
    assert fault["field"] == "image"
    assert "width of 300" in fault["message"]


def test_invoke_says_what_a_person_wants_to_know(tmp_path: Path) -> None:
    done = darkroom(
        "invoke", "fox", "--steps", "2", "--seed", "9", "--num-images", "2", "--format", "webp", "--out", str(tmp_path)
    )
    assert done.returncode == 0
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 2
    assert names[0].endswith("-0.webp")
    assert "seed 9" in done.stdout
    assert "seed 10" in done.stdout
    *where, summary = done.stdout.splitlines()
    assert [line.partition("  ")[0] for line in where] == [str(tmp_path / name) for name in names]
    assert re.search(r" completed in [0-9.]+ s: queue [0-9.]+, load [0-9.]+, ", summary)


def test_invoke_with_a_bad_request_fails(tmp_path: Path) -> None:
    done = darkroom("invoke", "fox", "--steps", "999", "--width", "65", "--out", str(tmp_path), "--json")
    assert done.returncode == 1
    result = json.loads(done.stdout)
    assert result["error"]["code"] == "INVALID_REQUEST"
    assert {one["field"] for one in result["error"]["details"]} == {"num_inference_steps", "width"}
    assert result["files"] == []


def test_invoke_without_a_model_fails(tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    (tmp_path / "nothing" / "model_index.json").write_text("{}")  # what only the libraries can tell from a pipeline
    done = darkroom("invoke", "fox", "--model", str(tmp_path / "nothing"))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"MODEL_UNAVAILABLE cannot load {tmp_path / 'nothing'}: ")
    assert line.endswith("a model is a hub id, a folder or s3://bucket/prefix")


def test_invoke_without_a_model_logs_the_cause_where_it_is_told_to(tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    (tmp_path / "nothing" / "model_index.json").write_text("{}")
    done = darkroom("invoke", "fox", "--model", str(tmp_path / "nothing"), "--verbose")
    assert done.returncode == 1
    logged = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    assert [str(tmp_path / "nothing") in one["fault"] for one in logged if one["level"] == "CRITICAL"] == [True]
    assert "  because of ModelUnavailable: cannot load" in done.stderr


def test_the_recorded_event_of_the_documents_ends_well(tmp_path: Path) -> None:
    done = darkroom("invoke", "--event", str(EVENT), "--out", str(tmp_path), "--json")
    assert done.returncode == 0, done.stdout
    assert [one["status"] for one in json.loads(done.stdout)] == ["completed", "completed"]
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"059f36b4-87a3-44ab-83d2-661975830a7d.png", "my-fox.jpg"}


def test_invoke_with_a_recorded_event(tmp_path: Path) -> None:
    event = EVENTS / "sqs-with-a-bad-message.json"
    done = darkroom("invoke", "--event", str(event), "--out", str(tmp_path), "--json")
    results = json.loads(done.stdout)
    assert [one["status"] for one in results] == ["completed", "failed"]
    assert done.returncode == 1
    assert [path.name for path in tmp_path.iterdir()] == ["059f36b4-87a3-44ab-83d2-661975830a7d.png"]


@pytest.mark.parametrize("arguments", [[], ["fox", "--event", str(EVENT)]])
def test_invoke_wants_a_prompt_or_an_event(arguments: list[str]) -> None:
    done = darkroom("invoke", *arguments)
    assert done.returncode == 2
    assert "one of them" in done.stderr


def test_submit_and_status_against_a_deployment(environ: dict[str, str], store: TaskStore, queue: TaskQueue) -> None:
    done = darkroom("submit", "a red apple", "--seed", "3", "--task-id", "mine", **environ)
    assert (done.returncode, done.stdout) == (0, "mine\n")
    assert len(queue.receive(wait=1)) == 1
    shown = darkroom("status", "mine", "--json", **environ)
    assert json.loads(shown.stdout)["status"] == "pending"
    assert darkroom("wait", "mine", "--timeout", "0", **environ).returncode == 3
    assert darkroom("status", "nobody", **environ).returncode == 1
    assert "NOT_FOUND" in darkroom("status", "nobody", **environ).stderr
    assert darkroom("submit", "owl", "--task-id", "mine", **environ).returncode == 1


def test_what_is_not_there_is_named(environ: dict[str, str]) -> None:
    """A bucket that is not there is never "no such task"."""
    for words, changed, says in (
        (("status", "mine"), {"BUCKET": "nobodys"}, "there is no bucket nobodys: BUCKET names it"),
        (
            ("submit", "fox"),
            {"QUEUE_URL": environ["QUEUE_URL"] + "-not"},
            f"there is no queue {environ['QUEUE_URL']}-not:",
        ),
    ):
        done = darkroom(*words, **{**environ, **changed})
        (line,) = done.stderr.splitlines()
        assert (done.returncode, done.stdout) == (1, "")
        assert says in line
        told = darkroom(*words, "--json", **{**environ, **changed})
        assert json.loads(told.stdout)["error"]["code"] == "INTERNAL"


def test_redrive_says_so_if_there_is_nothing_to_do(environ: dict[str, str]) -> None:
    done = darkroom("redrive", "--all", **environ)
    assert (done.returncode, done.stdout) == (0, "there is no task that the queue has given up on\n")


def test_settings_that_are_missing_are_named() -> None:
    done = darkroom("status", "mine")
    assert done.returncode == 2
    assert "unset: BUCKET" in done.stderr


def test_a_bad_setting_is_a_bad_command_line() -> None:
    done = darkroom("invoke", "fox", LEASE="soon")
    assert done.returncode == 2
    assert "LEASE='soon'" in done.stderr


def test_what_a_user_typed_is_shown_as_it_is(environ: dict[str, str]) -> None:
    done = darkroom("status", "[/x]", **environ)
    assert (done.returncode, done.stderr) == (1, "NOT_FOUND there is no task '[/x]'\n")


def test_a_profile_that_is_not_there(environ: dict[str, str]) -> None:
    done = darkroom("status", "mine", **{**environ, "AWS_PROFILE": "nope"})
    assert done.returncode == 2
    assert "AWS_PROFILE='nope'" in done.stderr


@pytest.mark.parametrize("text", ["not json", "[]", '{"Records": [{}]}'])
def test_a_file_that_holds_no_event(tmp_path: Path, text: str) -> None:
    (tmp_path / "event.json").write_text(text)
    done = darkroom("invoke", "--event", str(tmp_path / "event.json"))
    assert done.returncode == 2
    assert "holds no SQS event" in done.stderr


def test_schemas_come_out() -> None:
    schemas = json.loads(darkroom("schema").stdout)["$defs"]
    assert {"GenerationRequest", "Record", "TaskResponse", "ResultResponse", "ModelCard"} <= set(schemas)
    assert schemas["GenerationRequest"]["properties"]["prompt"]["maxLength"] == 2000
    assert schemas["GenerationRequest"]["additionalProperties"] is False


def test_pictures_are_shown_where_the_terminal_says_so() -> None:
    body = b"\x89PNG" + b"x" * 5000
    iterm = picture_escape(body, "image/png", {"TERM_PROGRAM": "iTerm.app"})
    assert iterm is not None
    assert iterm.startswith("\x1b]1337;File=inline=1;size=5004;")
    kitty = picture_escape(body, "image/png", {"TERM": "xterm-kitty"})
    assert kitty is not None
    assert kitty.startswith("\x1b_Gf=100,a=T,m=1;")
    assert kitty.count("\x1b_G") == 2
    assert picture_escape(body, "image/webp", {"TERM": "xterm-kitty"}) is None
    assert picture_escape(body, "image/png", {"TERM": "xterm-256color"}) is None
