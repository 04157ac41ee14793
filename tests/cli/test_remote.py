"""The commands for a deployment's tasks, over its HTTP API with a worker beside it, as scripts and people use them."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
from typer.testing import CliRunner

from handler.cli.main import app
from handler.errors import NotFound, OutOfMemory

from ..forms import picture
from ..service import api, worker
from ..support import DRAWS, PlainEngine, record_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from typer.testing import Result

    from handler.aws.queue import TaskQueue
    from handler.aws.store import TaskStore
    from handler.settings import Settings

    Run: TypeAlias = Callable[..., Result]


@pytest.fixture
def run(settings: Settings, store: TaskStore, queue: TaskQueue) -> Iterator[Run]:
    """Runs a command line that must end with this exit status."""
    with api(settings, store, queue) as running:

        def run(*arguments: str, status: int = 0) -> Result:
            done = CliRunner().invoke(app, arguments, env={"DARKROOM_ENDPOINT": running.url, "COLUMNS": "80"})
            assert done.exit_code == status, (done.output, done.exception)
            return done

        yield run


@pytest.fixture
def plain() -> PlainEngine:
    return PlainEngine(card=DRAWS)


@pytest.fixture
def drawing(settings: Settings, store: TaskStore, queue: TaskQueue, plain: PlainEngine) -> Iterator[None]:
    with worker(settings, store, queue, plain):
        yield


def lines(done: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.usefixtures("drawing")
def test_submit_and_stay_until_the_picture_is_here(run: Run, tmp_path: Path) -> None:
    done = run("submit", "fox", "--task-id", "mine", "--num-images", "2", "--json", "--out", str(tmp_path))
    result = json.loads(done.stdout)
    assert (result["task_id"], result["status"], done.stderr) == ("mine", "completed", "")
    assert [Path(path).name for path in result["files"]] == ["mine-0.png", "mine-1.png"]
    sums = [sha256(Path(path).read_bytes()).hexdigest() for path in result["files"]]
    assert sums == [image["sha256"] for image in result["images"]]


@pytest.mark.usefixtures("drawing")
def test_wait_for_several_says_where_each_is(run: Run) -> None:
    for name in ("one", "two"):
        assert run("submit", "fox", "--task-id", name).stdout == f"{name}\n"
    done = run("wait", "one", "two", "one")
    assert {"one  completed", "two  completed"} <= set(done.stderr.splitlines())
    assert [one["task_id"] for one in json.loads(run("wait", "one", "two", "--json").stdout)] == ["one", "two"]


def test_what_does_not_complete_is_told_by_the_exit_status(run: Run, store: TaskStore) -> None:
    run("submit", "fox", "--task-id", "mine")
    done = run("wait", "mine", "--timeout", "0", status=3)
    assert "not over after 0 s, and goes on: mine" in done.stderr
    assert run("cancel", "mine").stdout == "mine is cancelled\n"
    assert record_of(store, "mine").status == "cancelled"
    assert json.loads(run("wait", "mine", "--json", status=1).stdout)["status"] == "cancelled"


def test_what_no_worker_has_read_yet_is_waited_for(
    run: Run, settings: Settings, store: TaskStore, queue: TaskQueue, plain: PlainEngine
) -> None:
    done = run("wait", "mine", "--timeout", "0", status=3)
    assert done.stderr.splitlines() == ["mine  not seen yet", "not over after 0 s, and goes on: mine"]
    assert json.loads(run("wait", "mine", "--timeout", "0", "--json", status=3).stdout)["task_id"] == "mine"
    assert isinstance(run("status", "mine", status=1).exception, NotFound)
    queue.send('{"prompt": "fox", "task_id": "mine"}')
    with worker(settings, store, queue, plain):
        assert json.loads(run("wait", "mine", "--json").stdout)["status"] == "completed"


def test_a_message_that_no_worker_has_read_yet_is_cancelled(run: Run, store: TaskStore) -> None:
    assert isinstance(run("cancel", "mine", status=1).exception, NotFound)
    for _ in range(2):
        assert run("cancel", "--unseen", "mine").stdout == "mine is cancelled\n"
    assert record_of(store, "mine").fingerprint is None
    assert json.loads(run("wait", "mine", "--json", status=1).stdout)["status"] == "cancelled"
    run("submit", "fox", "--task-id", "seen")
    assert run("cancel", "--unseen", "seen").stdout == "seen is cancelled\n"
    assert record_of(store, "seen").fingerprint is not None


def test_a_task_that_has_failed_is_asked_for_again(
    run: Run, settings: Settings, store: TaskStore, queue: TaskQueue, plain: PlainEngine
) -> None:
    plain.fault = OutOfMemory("too large")
    with worker(settings, store, queue, plain):
        run("submit", "fox", "--task-id", "mine", "--seed", "9")
        done = run("wait", "mine", status=1)
        assert "OUT_OF_MEMORY: too large" in done.stderr
        plain.fault = None
        again = json.loads(run("retry", "mine", "--json").stdout)["task_id"]
        (result,) = lines(run("wait", again, "--json"))
    assert (result["origin"], result["status"], result["request"]["seed"]) == ("mine", "completed", 9)


@pytest.mark.usefixtures("drawing")
def test_download(run: Run, tmp_path: Path) -> None:
    for name in ("one", "two"):
        run("submit", "fox", "--task-id", name)
    run("wait", "one", "two")
    done = run("download", "one", "two", "--out", str(tmp_path / "new"))
    assert [Path(line).name for line in done.stdout.splitlines()] == ["one.png", "two.png"]
    assert all(Path(line).is_file() for line in done.stdout.splitlines())
    (told,) = lines(run("download", "one", "--json", "--out", str(tmp_path)))
    assert told == {"task_id": "one", "files": [str(tmp_path / "one.png")]}
    assert isinstance(run("download", "nobody", status=1).exception, NotFound)


def test_list(run: Run) -> None:
    for number in range(3):
        run("submit", f"fox [{number}] {'x' * 100}", "--task-id", f"task-{number}", "--tag", f"t{number % 2}")
    run("cancel", "task-1")
    assert {one["task_id"] for one in lines(run("list", "--tag", "t0", "--json"))} == {"task-0", "task-2"}
    assert [one["task_id"] for one in lines(run("list", "--status", "cancelled", "--json"))] == ["task-1"]
    shown = run("list", "--limit", "2").stdout.splitlines()
    assert len(shown) == 3
    assert shown[0].split() == ["task", "status", "progress", "age", "prompt"]
    assert all(len(line) <= 80 for line in shown)
    assert any("fox [2] xxx" in line for line in shown)  # what looks like markup is shown as it is
    assert "one of" in run("list", "--status", "lost", status=2).stderr.replace("\n", " ")


def test_status_of_several_is_a_table(run: Run) -> None:
    for name in ("one", "two"):
        run("submit", "fox", "--task-id", name)
    assert [line.split()[:2] for line in run("status", "one", "two").stdout.splitlines()[1:]] == [
        ["one", "pending"],
        ["two", "pending"],
    ]
    assert json.loads(run("status", "one", "--json").stdout)["status"] == "pending"


def test_a_quote_records_nothing(run: Run, tmp_path: Path) -> None:
    quote = json.loads(run("submit", "fox", "--num-images", "2", "--quote", "--json").stdout)
    assert (quote["request"]["num_images"], "seconds" in quote, "dollars" in quote) == (2, True, True)
    assert run("list", "--json").stdout == ""


@pytest.mark.usefixtures("drawing")
def test_a_file_to_draw_from_is_sent_first(run: Run, plain: PlainEngine, tmp_path: Path) -> None:
    file = tmp_path / "photo.png"
    file.write_bytes(picture())
    run("submit", "fox", "--image", str(file), "--strength", "0.5", "--wait")
    assert plain.given == [file.read_bytes()]
