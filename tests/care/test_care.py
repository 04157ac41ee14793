"""What an operator can do: give failed tasks another chance, find what is stuck and mend it."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, cast

import pytest
import typer
from typer.testing import CliRunner

from handler.care.redrive import Redrive
from handler.cli.main import app
from handler.cli.operations import parse_time
from handler.contract.record import Record
from handler.contract.request import GenerationRequest
from handler.errors import Conflict, NotFound, OutOfMemory
from handler.task import moves

from ..support import Clock, PlainEngine, held, record_of, sqs_event

if TYPE_CHECKING:
    from handler.api.submission import Submit
    from handler.aws.queue import TaskQueue
    from handler.aws.store import TaskStore
    from handler.care.rounds import Doctor
    from handler.work.serving import Generate

FOX = '{"prompt": "fox", "task_id": "mine"}'
MONTH = timedelta(days=30)


def exhausted(store: TaskStore, clock: Clock, task_id: str = "mine") -> Record:
    pending = moves.create(task_id, GenerationRequest(prompt="fox"), 7, clock(), MONTH)
    failed = moves.exhaust(pending, now=clock())
    store.announce(failed)
    store.create(failed)
    return failed


@pytest.fixture
def redrive(store: TaskStore, queue: TaskQueue, clock: Clock) -> Redrive:
    return Redrive(store, queue, now=clock)


def test_a_failed_task_gets_another_chance(
    redrive: Redrive, generate: Generate, store: TaskStore, queue: TaskQueue, clock: Clock
) -> None:
    held(store, clock, message_id="m")
    clock.forward(63)
    stored = store.read("mine")
    assert stored is not None
    store.change(stored, moves.exhaust(record := Record.from_json(stored.body), now=clock(), age=clock.age(record)))
    again = redrive.one("mine")
    assert (again.status, again.error, again.completed_at) == ("pending", None, None)
    (message,) = queue.receive(wait=1)
    generate.handle(sqs_event(message.body, ids=[message.message_id]), None)
    record = record_of(store, "mine")
    assert (record.status, record.attempt) == ("completed", 2)
    assert [one.outcome for one in record.attempts] == ["expired", "completed"]  # what was is kept


def test_only_what_failed_can_be_redriven(redrive: Redrive, submit: Submit, generate: Generate) -> None:
    with pytest.raises(NotFound):
        redrive.one("nobody")
    submit.submit(FOX)
    with pytest.raises(Conflict, match="pending, not failed"):
        redrive.one("mine")
    generate.handle(sqs_event("nonsense", ids=["bad"]), None)
    with pytest.raises(Conflict, match="no valid request"):
        redrive.one("bad")


def test_all_means_those_that_the_queue_gave_up_on(
    redrive: Redrive, generate: Generate, store: TaskStore, queue: TaskQueue, plain: PlainEngine, clock: Clock
) -> None:
    exhausted(store, clock, "old")
    clock.forward(3600)
    exhausted(store, clock, "new")
    plain.fault = OutOfMemory("too large")
    generate.handle(sqs_event(FOX), None)
    assert [one.task_id for one in redrive.all(dry_run=True)] == ["new", "old"]
    assert record_of(store, "old").status == "failed"
    since = clock() - timedelta(minutes=1)
    assert [one.task_id for one in redrive.all(since)] == ["new"]
    assert [one.task_id for one in redrive.all()] == ["old"]
    assert len(queue.receive(10, wait=1)) == 2
    assert record_of(store, "mine").status == "failed"


def test_a_task_whose_message_got_lost_gets_another(
    doctor: Doctor, submit: Submit, store: TaskStore, queue: TaskQueue, later: Clock
) -> None:
    submit.submit(FOX)
    (message,) = queue.receive(wait=1)
    queue.delete(message.receipt_handle)
    assert doctor.examine(fix=True) == []  # not yet
    later.forward(901)
    (found,) = doctor.examine(fix=False)
    assert (found.kind, found.task_id, found.mended) == ("pending without a message", "mine", False)
    assert queue.receive(wait=0) == []
    (found,) = doctor.examine(fix=True)
    assert found.mended
    (again,) = queue.receive(wait=1)
    assert again.body == record_of(store, "mine").pointer()
    assert record_of(store, "mine").sends == 2
    assert record_of(store, "mine").queued_at == later()


def test_on_a_busy_queue_a_task_is_sent_a_handful_of_times(
    doctor: Doctor, submit: Submit, store: TaskStore, later: Clock
) -> None:
    """Four hours behind others, and a round every ten minutes: after 15 minutes, and then at doubled intervals."""
    submit.submit(FOX)
    sent_after = []
    for minute in range(0, 241, 5):
        if doctor.examine(fix=True):
            sent_after.append(minute)
        later.forward(301)  # the list has the bucket's own time, a moment after
    assert record_of(store, "mine").sends == 1 + len(sent_after) == 5
    assert sent_after == [15, 45, 105, 225]


def test_a_round_sends_so_many_and_the_next_goes_on(
    doctor: Doctor, submit: Submit, queue: TaskQueue, later: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("handler.care.rounds.MOST_SENDS", 3)
    for number in range(8):
        submit.submit(json.dumps({"prompt": "fox", "task_id": f"t{number}"}))
    later.forward(1000)
    rounds = [[one.task_id for one in doctor.examine(fix=True)] for _ in range(4)]
    assert rounds == [["t0", "t1", "t2"], ["t3", "t4", "t5"], ["t6", "t7"], []]
    assert [one.task_id for one in doctor.examine(fix=False)] == []


def test_a_task_that_no_worker_came_back_for_goes_on(
    doctor: Doctor, generate: Generate, store: TaskStore, queue: TaskQueue, later: Clock
) -> None:
    held(store, later, message_id="lost")
    store.open("mine")
    later.forward(60 + 899)
    assert doctor.examine(fix=True) == []
    later.forward(2)
    (found,) = doctor.examine(fix=True)
    assert (found.kind, found.mended) == ("processing without a worker", True)
    assert record_of(store, "mine").status == "pending"
    (message,) = queue.receive(wait=1)
    generate.handle(sqs_event(message.body, ids=[message.message_id]), None)
    record = record_of(store, "mine")
    assert [one.outcome for one in record.attempts] == ["expired", "completed"]


def test_what_was_left_behind_goes_after_a_day(
    doctor: Doctor, generate: Generate, store: TaskStore, plain: PlainEngine, later: Clock
) -> None:
    """By an attempt that lost its task, say: the one that ended it was not the first."""
    held(store, later, message_id="lost")
    store.open("mine")
    store.put_image(store.image_key("mine", 1, 0, "png"), b"image of an attempt that lost", "image/png")
    store.put_checkpoint("mine", b"steps")
    store.put_image(store.preview_key("mine"), b"a thumbnail", "image/jpeg")
    later.forward(63)
    generate.handle(sqs_event(FOX), None)
    assert plain.drawn == ["fox"]
    store.put_checkpoint("mine", b"by one that was late")
    assert doctor.examine(fix=True) == []
    later.forward(24 * 3600 + 60)
    assert [one.kind for one in doctor.examine(fix=False)] == ["left behind"]
    assert all(one.mended for one in doctor.examine(fix=True))
    assert doctor.examine(fix=True) == []
    (image,) = record_of(store, "mine").images
    assert list(store.objects_of("mine")) == [image.key]
    assert store.read_image(image.key)
    assert list(store.open_tasks()) == []


def test_a_task_that_ends_as_it_should_is_off_the_list(
    doctor: Doctor, generate: Generate, submit: Submit, store: TaskStore, queue: TaskQueue, later: Clock
) -> None:
    submit.submit(FOX)
    submit.submit('{"prompt": "owl", "task_id": "cancelled"}')
    submit.cancel("cancelled")
    generate.handle(sqs_event('{"prompt": ""}', ids=["refused"]), None)
    assert [one.task_id for one in store.open_tasks()] == ["mine"]
    for message in queue.receive(10, wait=1):
        generate.handle(sqs_event(message.body, ids=[message.message_id]), None)
    assert list(store.open_tasks()) == []
    later.forward(10 * 24 * 3600)
    assert doctor.examine(fix=True) == []


def test_a_task_without_a_record_goes_off_the_list(doctor: Doctor, store: TaskStore, later: Clock) -> None:
    """Its submission died between the two."""
    store.open("mine")
    assert doctor.examine(fix=True) == []
    later.forward(901)
    (found,) = doctor.examine(fix=True)
    assert (found.kind, found.mended) == ("listed without a record", True)
    assert list(store.open_tasks()) == []


def test_a_record_that_cannot_be_read_is_a_finding(
    doctor: Doctor, submit: Submit, store: TaskStore, later: Clock
) -> None:
    """And not the end of the round."""

    class Strange:
        task_id, created_at = "a-strange-one", later()

        def to_json(self) -> bytes:
            return b'{"status": "dreaming"}'

    strange = cast("Record", Strange())
    store.announce(strange)
    store.create(strange)
    submit.submit(FOX)
    later.forward(1000)
    found = {one.task_id: (one.kind, one.mended) for one in doctor.examine(fix=True)}
    assert found == {
        "a-strange-one": ("unreadable record", False),
        "mine": ("pending without a message", True),
    }


def test_a_stuck_task_that_looks_completed_is_found(
    doctor: Doctor, submit: Submit, store: TaskStore, queue: TaskQueue, later: Clock
) -> None:
    """Its images were written, and then its record, as released: S3 refused the commit, and its message got lost."""
    submit.submit(FOX)
    store.put_image(store.image_key("mine", 1, 0, "png"), b"image", "image/png")
    stored = store.read("mine")
    assert stored is not None
    store.change(stored, record_of(store, "mine").next(attempt=1))
    later.forward(1000)
    assert [one.kind for one in doctor.examine(fix=True)] == ["pending without a message"]


def test_on_the_command_line(
    environ: dict[str, str], store: TaskStore, queue: TaskQueue, later: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    exhausted(store, later)

    def darkroom(*arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, arguments)
        return done.exit_code, done.stdout

    assert darkroom("redrive", "--all", "--since", "1h", "--dry-run", "--json") == (
        0,
        json.dumps({"task_id": "mine", "attempts": 0, "redriven": False, "tenant": None}) + "\n",
    )
    assert darkroom("redrive", "--task", "mine") == (0, "mine is pending again, after 0 attempts\n")
    assert darkroom("redrive")[0] == 2
    assert darkroom("redrive", "--all", "--since", "soon")[0] == 2
    assert darkroom("doctor") == (0, "nothing is stuck, and nothing was left lying\n")
    (message,) = queue.receive(wait=1)
    queue.delete(message.receipt_handle)
    later.forward(-10 * 24 * 3600)
    lost = moves.create("lost", GenerationRequest(prompt="fox"), 7, later(), MONTH)
    store.open("lost")
    store.create(lost)
    later.forward(10 * 24 * 3600)
    later.forward(3600)
    code, shown = darkroom("doctor")
    assert code == 1
    assert "pending without a message" in shown
    code, shown = darkroom("doctor", "--fix", "--json")
    assert code == 0
    assert [json.loads(line)["task_id"] for line in shown.splitlines()] == ["lost", "mine"]
    assert queue.receive(wait=1)


def test_moments() -> None:
    now = datetime(2026, 1, 31, 12, tzinfo=UTC)
    assert parse_time("12h", now) == datetime(2026, 1, 31, tzinfo=UTC)
    assert parse_time("2026-01-30", now) == datetime(2026, 1, 30, tzinfo=UTC)
    assert parse_time("2026-01-30T10:00:00+01:00", now) == datetime(2026, 1, 30, 9, tzinfo=UTC)
    with pytest.raises(typer.BadParameter, match="neither"):
        parse_time("h12", now)
