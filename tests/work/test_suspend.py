"""Cancel, deadline and shutdown: who stops a task, what is left behind, and who goes on."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from handler.errors import Conflict, NotFound, WorkerBroken
from handler.work.serving import Generate
from handler.worker import Worker

from ..support import CARD, Clock, PlainEngine, answer_of, event_of, http_event, record_of, sqs_event

if TYPE_CHECKING:
    from handler.api.results import Status
    from handler.api.submission import Submit
    from handler.aws.queue import TaskQueue
    from handler.aws.store import TaskStore
    from handler.settings import Settings

CONSUMED: dict[str, object] = {"batchItemFailures": []}
BODY = '{"prompt": "fox", "num_inference_steps": 8}'


class Context:
    """Lambda's context with so many seconds left."""

    def __init__(self, seconds: float) -> None:
        self.ends = time.monotonic() + seconds

    def get_remaining_time_in_millis(self) -> int:
        return int((self.ends - time.monotonic()) * 1000)


def test_a_waiting_task_is_cancelled(submit: Submit, generate: Generate, store: TaskStore, plain: PlainEngine) -> None:
    submit.submit('{"prompt": "fox", "task_id": "mine"}')
    for _ in range(2):  # the second time as well
        code, answer = answer_of(submit.handle(http_event("DELETE", "/results/mine"), None))
        assert (code, answer["status"]) == (200, "cancelled")
    assert record_of(store, "mine").sequence == 2
    assert generate.handle(sqs_event('{"prompt": "fox", "task_id": "mine"}'), None) == CONSUMED
    assert plain.drawn == []


def test_a_finished_task_is_not_cancelled(submit: Submit, generate: Generate, store: TaskStore) -> None:
    generate.handle(sqs_event('{"prompt": "fox", "task_id": "mine"}'), None)
    code, answer = answer_of(submit.handle(http_event("DELETE", "/results/mine"), None))
    assert (code, answer["error"]["code"]) == (409, "CONFLICT")
    assert record_of(store, "mine").status == "completed"
    with pytest.raises(Conflict, match="completed"):
        submit.cancel("mine")


@pytest.mark.parametrize("task_id", ["nobody", "..", "a b"])
def test_nothing_to_cancel(submit: Submit, task_id: str) -> None:
    with pytest.raises(NotFound):
        submit.cancel(task_id)
    assert answer_of(submit.handle(http_event("DELETE", f"/results/{task_id}"), None))[0] == 404


def test_a_running_task_stops_at_the_step_after_its_worker_learns_of_it(
    settings: Settings, store: TaskStore, queue: TaskQueue, submit: Submit, status: Status
) -> None:
    steps: list[float] = []
    learnt = threading.Event()

    def between() -> None:
        steps.append(time.monotonic())
        if len(steps) == 2:
            submit.cancel("mine")
            learnt.wait(0.4)  # several signs of life

    generate = Generate(
        replace(settings, beat_every=0.1, first_beat=0), store, queue, lambda _: PlainEngine(between=between)
    )
    assert generate.handle(sqs_event(BODY.replace("{", '{"task_id": "mine", ', 1)), None) == CONSUMED
    assert len(steps) == 2
    record = record_of(store, "mine")
    assert (record.status, record.images) == ("cancelled", [])
    result = status.result("mine")
    assert (result["status"], result["error"]["code"]) == ("cancelled", "CANCELLED")


def test_a_suspended_task_is_saved_and_goes_on_from_there(
    settings: Settings, store: TaskStore, queue: TaskQueue, clock: Clock
) -> None:
    steps: list[int] = []
    plain = PlainEngine()
    generate = Generate(settings, store, queue, lambda _: plain, now=clock)

    def between() -> None:
        steps.append(1)
        if len(steps) == 3:
            generate.suspend()

    plain.between = between
    assert generate.handle(sqs_event(BODY, ids=["m-1"]), None) == CONSUMED
    assert len(steps) == 3
    record = record_of(store, "m-1")
    assert (record.status, record.lease, record.attempt) == ("pending", None, 1)
    assert store.read_checkpoint("m-1") == b"step by step"
    (message,) = queue.receive(wait=1)  # at once, and as a message that nobody has received before
    assert json.loads(message.body)["task_id"] == "m-1"
    assert message.attributes["ApproximateReceiveCount"] == "1"
    elsewhere = PlainEngine()
    another = Generate(settings, store, queue, lambda _: elsewhere, now=clock)
    assert another.handle(sqs_event(message.body), None) == CONSUMED
    assert elsewhere.resumed == [b"step by step"]
    record = record_of(store, "m-1")
    assert (record.status, record.attempt) == ("completed", 2)
    assert store.read_checkpoint("m-1") == b""


def test_a_task_that_outlasts_its_invocation_goes_on_in_the_next(
    settings: Settings, store: TaskStore, queue: TaskQueue, clock: Clock
) -> None:
    generate = Generate(settings, store, queue, lambda _: PlainEngine(between=lambda: time.sleep(0.2)), now=clock)
    assert generate.handle(sqs_event(BODY, ids=["m-1"]), Context(5.5)) == CONSUMED
    assert record_of(store, "m-1").status == "pending"
    assert store.read_checkpoint("m-1")
    assert len(queue.receive(wait=1)) == 1


def test_an_invocation_too_short_for_one_step_counts_as_a_try(
    settings: Settings, store: TaskStore, queue: TaskQueue, clock: Clock
) -> None:
    generate = Generate(settings, store, queue, lambda _: PlainEngine(), now=clock)
    answer = generate.handle(sqs_event(BODY, ids=["m-1"]), Context(3))
    assert answer == {"batchItemFailures": [{"itemIdentifier": "m-1"}]}
    record = record_of(store, "m-1")
    assert record.status == "pending"
    assert record.error is not None
    assert record.error.code == "TIMED_OUT"
    assert queue.receive(wait=0) == []


def test_checkpoints_are_written_as_often_as_asked(
    settings: Settings, store: TaskStore, queue: TaskQueue, clock: Clock
) -> None:
    """Long before its first sign of life, which tells nobody of it: a try that got on is none."""
    seen: list[bytes] = []
    saved: list[int] = []

    def between() -> None:
        time.sleep(0.1)
        seen.append(store.read_checkpoint("m-1"))
        saved.append(record_of(store, "m-1").saved_step)

    often = replace(settings, checkpoint_every=0.1)
    generate = Generate(often, store, queue, lambda _: PlainEngine(between=between), now=clock)
    generate.handle(sqs_event(BODY, ids=["m-1"]), None)
    assert b"step by step" in seen
    assert saved == sorted(saved)
    assert saved[-1] > 0
    assert store.read_checkpoint("m-1") == b""


def test_a_task_that_failed_leaves_no_checkpoint(
    settings: Settings, store: TaskStore, queue: TaskQueue, clock: Clock
) -> None:
    from handler.errors import OutOfMemory

    plain = PlainEngine(between=lambda: time.sleep(0.1), fault=OutOfMemory("big"))
    often = replace(settings, checkpoint_every=0.1)
    Generate(often, store, queue, lambda _: plain, now=clock).handle(sqs_event(BODY, ids=["m-1"]), None)
    assert record_of(store, "m-1").status == "failed"
    assert store.read_checkpoint("m-1") == b""


def test_a_running_task_shows_a_preview_where_asked_for(
    settings: Settings, store: TaskStore, queue: TaskQueue, clock: Clock, status: Status
) -> None:
    seen: list[str | None] = []

    def between() -> None:
        time.sleep(0.1)
        seen.append(status.result("m-1")["preview_url"])

    often = replace(settings, beat_every=0.1, first_beat=0, previews=True)
    Generate(often, store, queue, lambda _: PlainEngine(between=between), now=clock).handle(
        sqs_event(BODY, ids=["m-1"]), None
    )
    (url,) = {one.partition("?")[0] for one in seen if one}
    assert url.endswith("/tasks/m-1/preview.jpg")
    with urllib.request.urlopen(next(one for one in seen if one)) as reply:
        assert (reply.headers["Content-Type"], reply.read()) == ("image/jpeg", b"a thumbnail")
    assert status.result("m-1")["preview_url"] is None


def test_a_short_task_costs_no_signs_of_life(
    settings: Settings, store: TaskStore, queue: TaskQueue, clock: Clock
) -> None:
    often = replace(settings, beat_every=0.1)
    plain = PlainEngine(between=lambda: time.sleep(0.1))
    Generate(often, store, queue, lambda _: plain, now=clock).handle(sqs_event(BODY, ids=["m-1"]), None)
    assert record_of(store, "m-1").sequence == 3  # created, claimed, completed


def test_what_is_almost_done_is_finished(generate: Generate, store: TaskStore, plain: PlainEngine) -> None:
    """A task is told to stop after two of eight quick steps, with time to finish."""
    steps: list[int] = []

    def between() -> None:
        steps.append(1)
        if len(steps) == 2:
            generate.suspend(finish_within=30)

    plain.between = between
    assert generate.handle(sqs_event(BODY, ids=["mine"]), None) == CONSUMED
    assert record_of(store, "mine").status == "completed"


def test_what_does_not_fit_is_saved(generate: Generate, store: TaskStore, queue: TaskQueue, plain: PlainEngine) -> None:
    steps: list[int] = []

    def between() -> None:
        steps.append(1)
        time.sleep(0.2)
        if len(steps) == 2:
            generate.suspend(finish_within=1.5)  # six steps more, and what follows them

    plain.between = between
    assert generate.handle(sqs_event(BODY, ids=["mine"]), None) == CONSUMED
    record = record_of(store, "mine")
    assert (record.status, record.attempts[0].outcome, len(steps)) == ("pending", "suspended", 2)
    assert store.read_checkpoint("mine") == b"step by step"
    assert queue.receive(wait=1)


def test_a_step_that_outlasts_the_grace_is_given_back_in_the_middle(
    generate: Generate, store: TaskStore, queue: TaskQueue, plain: PlainEngine
) -> None:
    stuck, go_on = threading.Event(), threading.Event()

    def between() -> None:
        stuck.set()
        assert go_on.wait(30)

    plain.between = between
    queue.send(BODY)
    (message,) = queue.receive(wait=1)
    answers: list[object] = []
    thread = threading.Thread(target=lambda: answers.append(generate.handle(event_of(message), None)), daemon=True)
    thread.start()
    assert stuck.wait(30)
    generate.suspend()
    generate.release_all()
    record = record_of(store, message.message_id)
    assert (record.status, record.attempts[0].outcome) == ("pending", "suspended")
    assert store.read_checkpoint(message.message_id) == b"step by step"
    assert queue.receive(wait=1)  # at once
    go_on.set()  # should the process live on, the attempt writes nothing more
    thread.join(30)
    assert answers == [{"batchItemFailures": [{"itemIdentifier": message.message_id}]}]
    assert record_of(store, message.message_id) == record
    assert plain.drawn == []


def test_a_worker_ends_within_its_grace(
    settings: Settings, store: TaskStore, queue: TaskQueue, plain: PlainEngine
) -> None:
    """Whatever its pipelines do."""
    stuck, go_on = threading.Event(), threading.Event()

    def between() -> None:
        stuck.set()
        assert go_on.wait(60)

    plain.between = between
    settings = replace(settings, shutdown_grace=4)
    worker = Worker(Generate(settings, store, queue, lambda _: plain), queue, settings, poll_seconds=1)
    statuses: list[int] = []
    thread = threading.Thread(target=lambda: statuses.append(worker.run()), daemon=True)
    thread.start()
    task_id = queue.send(BODY)
    assert stuck.wait(30)
    began = time.monotonic()
    worker.stop(suspend=True)
    thread.join(30)
    assert statuses == [0]
    assert time.monotonic() - began < 5
    assert worker.busy  # main ends the process the hard way
    assert record_of(store, task_id).status == "pending"
    go_on.set()


def test_a_broken_worker_exits_with_1(
    settings: Settings, store: TaskStore, queue: TaskQueue, plain: PlainEngine
) -> None:
    plain.fault = WorkerBroken("the device is lost")
    worker = Worker(Generate(settings, store, queue, lambda _: plain), queue, settings, poll_seconds=1)
    statuses: list[int] = []
    thread = threading.Thread(target=lambda: statuses.append(worker.run()), daemon=True)
    thread.start()
    task_id = queue.send(BODY)
    thread.join(30)
    assert statuses == [1]
    assert record_of(store, task_id).status == "pending"
    assert not worker.busy


def test_the_eta_counts_what_follows_the_steps(
    settings: Settings, store: TaskStore, queue: TaskQueue, plain: PlainEngine
) -> None:
    """A task of quick steps whose picture takes long: no second was measured yet, so it is taken for one."""
    etas: list[float] = []

    def between() -> None:
        time.sleep(0.05)
        progress = record_of(store, "mine").progress
        if progress is not None and progress.eta_seconds is not None:
            etas.append(progress.eta_seconds)

    plain.between = between
    quick = replace(settings, beat_every=0.1, first_beat=0)
    Generate(quick, store, queue, lambda _: plain).handle(sqs_event(BODY, ids=["mine"]), None)
    assert etas
    assert min(etas) > 1


def test_a_worker_of_another_dtype_begins_anew_and_says_so(
    settings: Settings, store: TaskStore, queue: TaskQueue, plain: PlainEngine, clock: Clock
) -> None:
    """And leaves the first one's steps alone: the key names the dtype."""
    first = Generate(settings, store, queue, lambda _: plain, now=clock)
    plain.named, plain.between = "aa", first.suspend
    assert first.handle(sqs_event('{"prompt": "fox", "task_id": "mine"}'), None) == {"batchItemFailures": []}
    assert record_of(store, "mine").saved_step > 0
    card = CARD.model_copy(update={"dtype": "bfloat16"})
    other = PlainEngine(card=card, named="bb")
    (message,) = queue.receive(wait=1)
    second = Generate(settings, store, queue, lambda _: other, now=clock)
    assert second.handle(event_of(message), None) == {"batchItemFailures": []}
    record = record_of(store, "mine")
    assert record.status == "completed"
    (warning,) = record.warnings
    assert warning.message.startswith("begun anew in bfloat16")
    assert other.resumed == [b""]
    assert store.read_checkpoint("mine", "aa")  # S3's lifecycle deletes it with the task
