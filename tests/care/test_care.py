"""What an operator can do: give failed tasks another chance, find what is stuck and mend it."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
import typer
from typer.testing import CliRunner

from handler.care.redrive import Redrive
from handler.care.rounds import Doctor
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
    from handler.settings import Settings
    from handler.work.serving import Generate

FOX = '{"prompt": "fox", "task_id": "mine"}'
MONTH = timedelta(days=30)


def exhausted(store: TaskStore, clock: Clock, task_id: str = "mine") -> Record:
    pending = moves.create(task_id, GenerationRequest(prompt="fox"), 7, clock(), MONTH)
    failed = moves.exhaust(pending, now=clock())
    store.index(failed)
    store.create(failed)
    return failed


@pytest.fixture
def redrive(store: TaskStore, queue: TaskQueue, clock: Clock) -> Redrive:
    return Redrive(store, queue, now=clock)


@pytest.fixture
def later(clock: Clock) -> Clock:
    """The bucket's own clock is the machine's: so the doctor's has to start there."""
    clock.time = datetime.now(UTC)
    return clock


@pytest.fixture
def doctor(settings: Settings, store: TaskStore, queue: TaskQueue, later: Clock) -> Doctor:
    return Doctor(settings, store, queue, now=later)


def test_a_failed_task_gets_another_chance(
    redrive: Redrive, generate: Generate, store: TaskStore, queue: TaskQueue, clock: Clock
) -> None:
    held(store, clock, message_id="m")
    clock.forward(61)
    stored = store.read("mine")
    assert stored is not None
    store.change(stored, moves.exhaust(Record.from_json(stored.body), now=clock()))
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
    assert json.loads(again.body)["seed"] == 1234
    assert record_of(store, "mine").queued_at == later()


def test_while_the_queue_holds_messages_a_task_only_waits(doctor: Doctor, submit: Submit, later: Clock) -> None:
    submit.submit(FOX)
    later.forward(901)
    assert doctor.examine(fix=True) == []
    later.forward(5 * 24 * 3600)  # longer than the queue keeps a message
    (found,) = doctor.examine(fix=True)
    assert found.mended


def test_a_task_that_no_worker_came_back_for_goes_on(
    doctor: Doctor, generate: Generate, store: TaskStore, queue: TaskQueue, later: Clock
) -> None:
    held(store, later, message_id="lost")
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


def test_what_was_left_lying_goes_after_a_day(
    doctor: Doctor, generate: Generate, store: TaskStore, plain: PlainEngine, later: Clock
) -> None:
    store.put_image(store.image_key("nobody", 1, 0, "png"), b"image", "image/png")
    store.put_image(store.image_key("mine", 7, 0, "png"), b"image of an attempt that lost", "image/png")
    store.put_checkpoint("mine", b"steps")
    generate.handle(sqs_event(FOX), None)
    assert plain.drawn == ["fox"]
    assert doctor.examine(fix=True) == []
    later.forward(24 * 3600 + 60)
    kinds = ["images without a record", "old checkpoint", "images without a record"]
    assert [one.kind for one in doctor.examine(fix=False)] == kinds
    assert all(one.mended for one in doctor.examine(fix=True))
    assert doctor.examine(fix=True) == []
    (image,) = record_of(store, "mine").images
    assert store.read_image(image.key)
    assert store.read_checkpoint("mine") == b""


def test_the_doctor_reads_no_record_that_looks_completed(
    doctor: Doctor, generate: Generate, store: TaskStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate.handle(sqs_event(FOX), None)
    monkeypatch.delattr("handler.aws.store.TaskStore.read")
    assert doctor.examine(fix=True) == []


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
    store.create(lost)
    code, shown = darkroom("doctor")
    assert code == 1
    assert "pending without a message" in shown
    code, shown = darkroom("doctor", "--fix", "--json")
    assert code == 0
    assert json.loads(shown)["task_id"] == "lost"
    assert queue.receive(wait=1)


def test_moments() -> None:
    now = datetime(2026, 1, 31, 12, tzinfo=UTC)
    assert parse_time("12h", now) == datetime(2026, 1, 31, tzinfo=UTC)
    assert parse_time("2026-01-30", now) == datetime(2026, 1, 30, tzinfo=UTC)
    assert parse_time("2026-01-30T10:00:00+01:00", now) == datetime(2026, 1, 30, 9, tzinfo=UTC)
    with pytest.raises(typer.BadParameter, match="neither"):
        parse_time("h12", now)
