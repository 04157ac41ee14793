"""Random histories, the same ones every time; and sabotaged classes, which they must find out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from handler.care.deadletters import DeadLetters
from handler.care.rounds import Doctor
from handler.contract.statuses import TERMINAL
from handler.errors import Finished
from handler.task import messages, moves
from handler.task.attempt import Attempt
from handler.task.hold import Hold
from handler.work import serving
from handler.work.serving import Generate
from tests.memory import MemoryBus, MemoryStore

from .histories import history, run
from .test_machine import Life
from .world import World

if TYPE_CHECKING:
    from collections.abc import Callable

    from handler.contract.record import Record

pytestmark = pytest.mark.slow

FEW, HISTORIES = 400, 2_000
ENOUGH = 400
"""Histories within which each sabotage is found out."""


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def found(world: World, seed: int | None) -> str:
    """What a reader of a failed test needs."""
    return f"python -m tests.chaos.histories --count 1 --seed {seed}\n" + "\n".join(world.ledger.wrong)


@pytest.mark.parametrize("seeds", [range(1, FEW), pytest.param(range(FEW, HISTORIES + 1), marks=pytest.mark.chaos)])
def test_no_history_breaks_a_promise(world: World, seeds: range) -> None:
    counts, seed = run(world, seeds)
    assert seed is None, found(world, seed)
    assert counts["histories"] == len(seeds)
    for what in ("completed", "failed", "cancelled"):
        assert counts[what] > len(seeds) / 20


def test_a_seed_tells_the_whole_history(world: World) -> None:
    history(world, 7)
    first = world.events
    history(world, 8)
    history(world, 7)
    assert world.events == first


def claims_a_live_lease(patch: pytest.MonkeyPatch) -> None:
    honest = moves.lapsed

    def lapsed(record: Record, now: Any, age: float) -> Record:
        return honest(record, now, age + 1e6)

    patch.setattr(moves, "lapsed", lapsed)


def counts_no_tries(patch: pytest.MonkeyPatch) -> None:
    honest = moves.release
    patch.setattr(
        moves, "release", lambda record, **how: honest(record, **how).model_copy(update={"tries": record.tries})
    )


def writes_without_a_condition(patch: pytest.MonkeyPatch) -> None:
    """What an attempt writes is written over whatever is there."""
    honest = MemoryStore.change

    def move(self: Any, move: Callable[[Record], Record]) -> None:
        self.record = move(self.record)
        self._stored = honest(self._records, self._records.read(self.record.task_id), self.record)

    patch.setattr(Hold, "move", move)


def has_no_doctor(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Doctor, "examine", lambda self, **how: [])


def knows_no_pointers(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(messages, "pointer_in", lambda body: None)


def counts_no_writes(patch: pytest.MonkeyPatch) -> None:
    """A heartbeat that keeps the sequence."""
    honest = moves.beat
    patch.setattr(
        moves, "beat", lambda record, **how: honest(record, **how).model_copy(update={"sequence": record.sequence})
    )


def deletes_what_it_did_not_serve(patch: pytest.MonkeyPatch) -> None:
    honest = Generate.serve
    patch.setattr(Generate, "serve", lambda self, *message: honest(self, *message) or True)


def deletes_the_whole_batch(patch: pytest.MonkeyPatch) -> None:
    """A function that tells Lambda of no message that it gave back."""
    patch.setattr(serving, "partial_response", lambda *_: {"batchItemFailures": []})


def keeps_an_old_budget(patch: pytest.MonkeyPatch) -> None:
    """A redrive that grants no new tries."""
    honest = moves.redrive
    patch.setattr(
        moves, "redrive", lambda record, **how: honest(record, **how).model_copy(update={"tries": record.tries})
    )


def draws_before_it_saves(patch: pytest.MonkeyPatch) -> None:
    """A record that says completed before its picture is in the bucket."""

    honest = Attempt.upload

    def late(self: Attempt, index: int, image: Any) -> Any:
        told = honest(self, index, image)
        self._store.delete_image(told.key)
        return told

    patch.setattr(Attempt, "upload", late)


def lists_nothing(patch: pytest.MonkeyPatch) -> None:
    """A submission, or a claim, that puts no task on the list of open ones."""
    patch.setattr(MemoryStore, "announce", lambda self, record: None)


def ends_what_is_sent_again(patch: pytest.MonkeyPatch) -> None:
    """Dead letters that are dropped although nothing else carries their task."""

    def drop(self: Any, message: Any) -> None:
        raise Finished("dropped")

    patch.setattr(DeadLetters, "_serve", drop)


def cancels_what_is_over(patch: pytest.MonkeyPatch) -> None:
    def cancel(record: Record, *, now: Any) -> Record:
        return record.next(status="cancelled", completed_at=now, lease=None)

    patch.setattr(moves, "cancel", cancel)


def tells_nothing_twice(patch: pytest.MonkeyPatch) -> None:
    """A doctor who takes it for granted that the bus was told."""
    patch.setattr(Doctor, "_untold", lambda self, *what: None)


def forgets_what_it_could_not_tell(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(MemoryBus, "missed", lambda self, *task: False)


def notes_before_it_commits(patch: pytest.MonkeyPatch) -> None:
    """A note that an end was told, before it is an end: after a crash nobody tells it."""
    honest = MemoryStore.change

    def change(self: MemoryStore, stored: Any, record: Record) -> Any:
        if record.status in TERMINAL:
            self.close(record.task_id, left=True)
        return honest(self, stored, record)

    patch.setattr(MemoryStore, "change", change)


SABOTAGES = [
    claims_a_live_lease,
    counts_no_tries,
    writes_without_a_condition,
    has_no_doctor,
    knows_no_pointers,
    counts_no_writes,
    deletes_what_it_did_not_serve,
    deletes_the_whole_batch,
    keeps_an_old_budget,
    draws_before_it_saves,
    lists_nothing,
    ends_what_is_sent_again,
    cancels_what_is_over,
    tells_nothing_twice,
    forgets_what_it_could_not_tell,
    notes_before_it_commits,
]


@pytest.mark.parametrize("sabotage", SABOTAGES, ids=lambda one: one.__name__)
def test_sabotage_is_found_out(
    world: World, monkeypatch: pytest.MonkeyPatch, sabotage: Callable[[pytest.MonkeyPatch], None]
) -> None:
    """Otherwise the histories would show nothing."""
    sabotage(monkeypatch)
    counts, seed = run(world, range(1, ENOUGH + 1))
    assert seed is not None, f"{counts['histories']} histories did not notice it"


@pytest.mark.parametrize("sabotage", [claims_a_live_lease, knows_no_pointers], ids=lambda one: one.__name__)
def test_the_machine_finds_sabotage_out(
    monkeypatch: pytest.MonkeyPatch, sabotage: Callable[[pytest.MonkeyPatch], None]
) -> None:
    sabotage(monkeypatch)
    quick = settings(Life.TestCase.settings, max_examples=400, derandomize=True, database=None, phases=[Phase.generate])
    with pytest.raises(AssertionError):
        run_state_machine_as_test(Life, settings=quick)
