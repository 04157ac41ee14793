"""The client, both ways: over the HTTP API and over SQS and S3 directly. Same methods, same types, same errors."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
import time
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import pytest
from PIL import Image

from handler.client import Darkroom, Parameters, fault_in
from handler.client.http import HttpService
from handler.contract.request import GenerationRequest
from handler.contract.responses import ResultResponse, TaskResponse
from handler.errors import (
    Cancelled,
    Conflict,
    DarkroomError,
    InvalidRequest,
    NotFound,
    OutOfMemory,
    SettingsError,
    StillRunning,
)

from ..service import api, worker
from ..support import DRAWS, PlainEngine, record_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from handler.aws.queue import TaskQueue
    from handler.aws.store import TaskStore
    from handler.engine.running import PipelineEngine
    from handler.settings import Settings


@pytest.fixture(params=["http", "direct"])
def darkroom(
    request: pytest.FixtureRequest,
    settings: Settings,
    store: TaskStore,
    queue: TaskQueue,
    environ: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Darkroom]:
    if request.param == "http":
        with api(settings, store, queue) as running, Darkroom(endpoint=running.url) as darkroom:
            yield darkroom
    else:
        monkeypatch.setenv("AWS_ENDPOINT_URL", environ["AWS_ENDPOINT_URL"])
        with Darkroom(queue=settings.queue_url, bucket=settings.bucket) as darkroom:
            yield darkroom


@pytest.fixture
def drawing(settings: Settings, store: TaskStore, queue: TaskQueue, plain: PlainEngine) -> Iterator[None]:
    with worker(settings, store, queue, plain):
        yield


def test_a_real_picture(
    settings: Settings, store: TaskStore, queue: TaskQueue, engine: PipelineEngine, tmp_path: Path
) -> None:
    with (
        api(settings, store, queue) as running,
        worker(settings, store, queue, engine),
        Darkroom(endpoint=running.url) as darkroom,
    ):
        task = darkroom.submit("a red apple", seed=7, num_inference_steps=4, num_images=2)
        result = darkroom.wait(task.task_id, timeout=60)
        pictures = darkroom.images(result)
    assert (result.status, result.request and result.request.seed) == ("completed", 7)
    assert [picture.about.seed for picture in pictures] == [7, 8]
    for number, picture in enumerate(pictures):
        path = picture.save(tmp_path / "made")
        assert path.name == f"{task.task_id}-{number}.png"
        assert sha256(path.read_bytes()).hexdigest() == picture.about.sha256
        with Image.open(path) as opened:
            assert opened.size == (64, 64)


@pytest.mark.usefixtures("drawing")
def test_submit_wait_result_images(darkroom: Darkroom) -> None:
    task = darkroom.submit("fox", seed=5, output_format="webp", tags=["a"])
    assert isinstance(task, TaskResponse)
    assert task.status == "pending"
    result = darkroom.wait(task.task_id, timeout=30)
    assert isinstance(result, ResultResponse)
    assert (result.status, result.prompt, fault_in(result)) == ("completed", "fox", None)
    (picture,) = darkroom.images(task.task_id)
    assert picture.name == f"{task.task_id}.webp"
    assert Image.open(io.BytesIO(picture.body)).getpixel((0, 0)) is not None
    again = darkroom.result(task.task_id)
    assert (again.status, again.sequence) == (result.status, result.sequence)


def test_a_request_in_each_of_its_forms(darkroom: Darkroom, store: TaskStore) -> None:
    darkroom.submit("fox", task_id="one", seed=1)
    darkroom.submit({"prompt": "fox", "seed": 1}, task_id="two", seed=2)
    darkroom.submit(GenerationRequest(prompt="fox", seed=1, task_id="three"))
    for name in ("one", "two", "three"):
        request = record_of(store, name).request
        assert request is not None
        assert (request.prompt, request.seed) == ("fox", 1)


def test_the_parameters_are_the_contracts() -> None:
    assert set(get_type_hints(Parameters)) | {"prompt"} == set(GenerationRequest.model_fields)


def test_the_same_task_twice_is_one_and_another_request_a_conflict(darkroom: Darkroom) -> None:
    first, second = (darkroom.submit("fox", task_id="mine") for _ in range(2))
    assert first.task_id == second.task_id == "mine"
    with pytest.raises(Conflict):
        darkroom.submit("owl", task_id="mine")


def test_all_faults_of_a_request_at_once(darkroom: Darkroom) -> None:
    with pytest.raises(InvalidRequest) as caught:
        darkroom.submit({"prompt": "fox", "num_images": 99, "colour": 1})
    assert {fault.field for fault in caught.value.details} == {"num_images", "colour"}
    assert "colour: unknown field" in caught.value.message


@pytest.mark.parametrize("task_id", ["nobody", "..", "a/../b", "ü ?#%", ""])
def test_an_unknown_task(darkroom: Darkroom, task_id: str) -> None:
    for call in (darkroom.result, darkroom.cancel, darkroom.retry, darkroom.images):
        with pytest.raises((NotFound, InvalidRequest)):  # at the names that a path cannot hold
            call(task_id)


@pytest.mark.parametrize("task_id", ["..", "a/../b", "ü ?#%", ""])
def test_what_can_be_no_task_is_not_waited_for(darkroom: Darkroom, task_id: str) -> None:
    with pytest.raises((NotFound, InvalidRequest)):
        darkroom.wait(task_id)
    with pytest.raises((NotFound, InvalidRequest)):
        darkroom.cancel(task_id, unseen=True)


def test_a_task_that_is_not_known_yet_is_waited_for(
    darkroom: Darkroom, settings: Settings, store: TaskStore, queue: TaskQueue, plain: PlainEngine
) -> None:
    told: list[str] = []
    with pytest.raises(StillRunning, match="not seen yet"):
        darkroom.wait("mine", timeout=0.5, on_unseen=lambda: told.append("unseen"))
    assert told == ["unseen"]  # once, however often it was asked for
    queue.send('{"prompt": "fox", "task_id": "mine"}')
    with worker(settings, store, queue, plain):
        result = darkroom.wait("mine", timeout=30, on_change=lambda now: told.append(now.status))
    assert (result.status, told[-1]) == ("completed", "completed")


def test_a_task_that_was_there_and_is_gone_is_not_waited_for(darkroom: Darkroom, store: TaskStore) -> None:
    darkroom.submit("fox", task_id="mine")

    def remove(_: ResultResponse) -> None:
        store.delete_objects([store.record_key("mine")])

    with pytest.raises(NotFound):
        darkroom.wait("mine", timeout=30, on_change=remove)


def test_a_message_that_nobody_has_read_is_cancelled(
    darkroom: Darkroom, settings: Settings, store: TaskStore, queue: TaskQueue, plain: PlainEngine
) -> None:
    queue.send('{"prompt": "fox", "task_id": "mine"}')
    with pytest.raises(NotFound):
        darkroom.cancel("mine")
    for _ in range(2):
        assert darkroom.cancel("mine", unseen=True).status == "cancelled"
    assert isinstance(fault_in(darkroom.wait("mine")), Cancelled)
    queue.send('{"prompt": "owl", "task_id": "other"}')
    with worker(settings, store, queue, plain):
        darkroom.wait("other", timeout=30)
        ends = time.monotonic() + 10
        while not queue.backlog().empty and time.monotonic() < ends:
            time.sleep(0.1)
    assert queue.backlog().empty
    assert plain.drawn == ["owl"]
    assert record_of(store, "mine").status == "cancelled"


def test_cancel(darkroom: Darkroom) -> None:
    darkroom.submit("fox", task_id="mine")
    assert darkroom.cancel("mine").status == "cancelled"
    assert darkroom.cancel("mine").status == "cancelled"
    result = darkroom.wait("mine")
    assert isinstance(fault_in(result), Cancelled)
    with pytest.raises(Cancelled):
        darkroom.images(result)


@pytest.mark.usefixtures("drawing")
def test_what_has_completed_cannot_be_cancelled(darkroom: Darkroom) -> None:
    darkroom.wait(darkroom.submit("fox").task_id)
    darkroom.submit("fox", task_id="mine")
    darkroom.wait("mine")
    with pytest.raises(Conflict):
        darkroom.cancel("mine")


def test_retry_is_a_new_task_with_the_same_picture(darkroom: Darkroom) -> None:
    darkroom.submit("fox", task_id="mine", seed=9)
    with pytest.raises(Conflict):
        darkroom.retry("mine")
    darkroom.cancel("mine")
    task = darkroom.retry("mine", new_task_id="again")
    result = darkroom.result(task.task_id)
    assert (result.task_id, result.origin, result.request and result.request.seed) == ("again", "mine", 9)
    assert darkroom.retry("mine", new_task_id="again").task_id == "again"


@pytest.mark.usefixtures("drawing")
def test_a_task_that_fails(darkroom: Darkroom, plain: PlainEngine) -> None:
    plain.fault = OutOfMemory("too large")
    result = darkroom.wait(darkroom.submit("fox").task_id)
    fault = fault_in(result)
    assert isinstance(fault, OutOfMemory)
    assert (result.status, fault.message) == ("failed", "too large")
    with pytest.raises(OutOfMemory, match="too large"):
        darkroom.images(result)


def test_a_wait_that_ends_before_the_task_says_what_was_seen(darkroom: Darkroom) -> None:
    darkroom.submit("fox", task_id="mine")
    for seconds in (0, 1.5):
        with pytest.raises(StillRunning) as caught:
            darkroom.wait("mine", timeout=seconds)
        assert (caught.value.task_id, caught.value.result and caught.value.result.status) == ("mine", "pending")
    with pytest.raises(StillRunning):
        darkroom.images("mine")


def test_every_change_is_told(
    darkroom: Darkroom, settings: Settings, store: TaskStore, queue: TaskQueue, plain: PlainEngine
) -> None:
    entered, leave = threading.Event(), threading.Event()

    def between() -> None:
        entered.set()
        assert leave.wait(30)

    plain.between = between
    darkroom.submit("fox", task_id="mine")
    told: list[str] = []

    def on_change(result: ResultResponse) -> None:
        told.append(result.status)
        if result.status == "processing":
            leave.set()

    watching = threading.Thread(target=darkroom.wait, args=["mine"], kwargs={"on_change": on_change}, daemon=True)
    watching.start()
    with worker(settings, store, queue, plain):
        assert entered.wait(30)
        watching.join(30)
    assert told[0] == "pending"
    assert told[-1] == "completed"
    assert "processing" in told
    assert len(told) == len(set(told)) or told.count("processing") > 1


def test_lists_go_through_the_pages(darkroom: Darkroom, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handler.client.darkroom.PAGE", 2)
    for number in range(5):
        darkroom.submit("fox", task_id=f"task-{number}", tags=["even"] if number % 2 == 0 else ["odd"])
    darkroom.cancel("task-3")
    assert len({one.task_id for one in darkroom.results(None)}) == 5
    assert len(list(darkroom.results(3))) == 3
    assert {one.task_id for one in darkroom.results(tag="even")} == {"task-0", "task-2", "task-4"}
    assert [one.task_id for one in darkroom.results(status="cancelled")] == ["task-3"]
    assert list(darkroom.results(0)) == []
    with pytest.raises(InvalidRequest):
        list(darkroom.results(status="lost"))  # type: ignore[arg-type]


@pytest.mark.usefixtures("drawing")
def test_a_picture_that_is_not_the_records_is_refused(darkroom: Darkroom, store: TaskStore) -> None:
    darkroom.submit("fox", task_id="mine")
    result = darkroom.wait("mine")
    store.put_image(store.image_key("mine", 1, 0, "png"), b"another", "image/png")
    darkroom._patience = 0.5
    with pytest.raises(DarkroomError, match="not the one that was written"):
        darkroom.images(result)
    store.delete_image(store.image_key("mine", 1, 0, "png"))
    with pytest.raises(NotFound, match="no longer kept"):
        darkroom.images("mine")


def test_an_unsafe_picture_is_left_out_and_the_others_keep_their_names(
    darkroom: Darkroom, settings: Settings, store: TaskStore, queue: TaskQueue, plain: PlainEngine
) -> None:
    plain.unsafe = frozenset({0})
    with worker(settings, store, queue, plain):
        darkroom.submit("fox", task_id="mine", num_images=3, seed=1)
        darkroom.wait("mine")
    assert [(one.name, one.about.seed) for one in darkroom.images("mine")] == [("mine-1.png", 2), ("mine-2.png", 3)]


def test_urls_that_have_run_out_are_asked_for_anew(
    darkroom: Darkroom, settings: Settings, store: TaskStore, queue: TaskQueue, plain: PlainEngine
) -> None:
    with worker(settings, store, queue, plain):
        darkroom.submit("fox", task_id="mine")
        result = darkroom.wait("mine")
    (image,) = result.images
    gone = (image.url or "").replace("mine", "gone")
    stale = result.model_copy(update={"images": [image.model_copy(update={"url": gone})]})
    (picture,) = darkroom.images(stale)
    assert sha256(picture.body).hexdigest() == image.sha256


@pytest.mark.parametrize(
    "arguments",
    [
        {"endpoint": "http://127.0.0.1:1", "bucket": "b"},
        {"endpoint": "file:///etc"},
        {"endpoint": "127.0.0.1:8000"},
        {"endpoint": "http://"},
        {},
    ],
)
def test_settings_that_name_no_service(arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BUCKET", "DARKROOM_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SettingsError):
        Darkroom(**arguments).submit("fox")


def test_without_arguments_the_settings_say_where(
    settings: Settings, store: TaskStore, queue: TaskQueue, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with api(settings, store, queue) as running:
        Darkroom().submit("fox", task_id="mine")
        assert running.flaky.seen == []
        monkeypatch.setenv("DARKROOM_ENDPOINT", running.url + "/")
        monkeypatch.setenv("DARKROOM_API_KEY", "secret")
        assert Darkroom().result("mine").status == "pending"
        (seen,) = running.flaky.seen
        assert (seen["HTTP_X_API_KEY"], seen["PATH_INFO"]) == ("secret", "/results/mine")


def test_the_readmes_program_runs_as_it_stands(
    settings: Settings,
    store: TaskStore,
    queue: TaskQueue,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    (program,) = (one for one in readme.split("```python\n")[1:] if "Darkroom(endpoint=" in one)
    monkeypatch.chdir(tmp_path)
    plain = PlainEngine(card=DRAWS)
    with api(settings, store, queue) as running, worker(settings, store, queue, plain):
        exec(program.partition("```")[0].replace("http://127.0.0.1:8000", running.url), {})
    lines = capsys.readouterr().out.splitlines()
    assert "completed" in lines
    assert sorted(line.split()[0] + line.split()[-1] for line in lines[-3:]) == [f"{n}completed" for n in range(3)]
    (picture,) = (tmp_path / "pictures").iterdir()
    assert sha256(picture.read_bytes()).hexdigest() in "".join(lines)
    assert [one for one in plain.given if one] == [picture.read_bytes()]


def test_importing_the_client_loads_nothing_heavy() -> None:
    script = (
        "import sys; from handler.client import Darkroom; Darkroom(endpoint='http://127.0.0.1:1');"
        "print(' '.join(sys.modules))"
    )
    environ = {"PATH": os.environ["PATH"]}
    done = subprocess.run([sys.executable, "-c", script], env=environ, capture_output=True, text=True, check=True)
    heavy = {"torch", "diffusers", "PIL", "boto3", "botocore", "obstore", "aws_lambda_powertools", "moto", "typer"}
    assert not set(done.stdout.split()) & heavy
    assert "handler.client.http" in done.stdout.split()
    assert HttpService.__module__ == "handler.client.http"
