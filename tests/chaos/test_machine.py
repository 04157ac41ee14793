"""The life of a task under any interleaving: hypothesis drives the real moves, attempts and submissions over a model of
S3 and SQS. Three workers; messages twice, late and in any order; clocks that jump and differ; answers that are lost.
"""

from __future__ import annotations

import json
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from handler.api.submission import Submit
from handler.contract.record import Image, Record, Timings
from handler.contract.request import parse
from handler.contract.statuses import TERMINAL
from handler.errors import (
    Conflict,
    DarkroomError,
    Finished,
    Held,
    Internal,
    LostRace,
    NotFound,
    OutOfMemory,
    Refused,
    ServiceFault,
    Suspended,
)
from handler.settings import Settings
from handler.task import moves
from handler.task.claims import Claims
from handler.task.messages import Asked, asked_by
from tests.support import CARD, Clock

from .ledger import Ledger
from .memory import MemoryQueue, MemoryStore, Trouble

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from handler.aws.queue import Message
    from handler.task.attempt import Attempt

LEASE = 60
SETTINGS = Settings(bucket="model", queue_url="model", lease=LEASE)
NAMES = ("a", "b", "c")
BODIES = ({"prompt": "fox"}, {"prompt": "owl", "seed": 7})

faults = st.sampled_from(("none", "none", "none", "before", "after"))
names, bodies, workers = st.sampled_from(NAMES), st.sampled_from(BODIES), st.integers(0, 2)
picks = st.integers(0, 50)


@dataclass
class Hold:
    """An attempt that a worker believes to have, and the message under which it has it."""

    attempt: Attempt
    owner: str
    message: Message


@dataclass
class Worker:
    """A process: its clock is ``skew`` seconds off."""

    claims: Claims
    skew: float = 0.0
    holds: list[Hold] = field(default_factory=list)


class Engine:
    card = CARD


def picture(record: Record) -> Image:
    key = f"tasks/{record.task_id}/{record.attempt}/0.png"
    return Image(key=key, seed=1, width=8, height=8, content_type="image/png", bytes=1, sha256="0")


class Life(RuleBasedStateMachine):
    """All that may happen to three tasks; what must never happen is checked at every write."""

    @initialize()
    def begin(self) -> None:
        self.clock, self.ids, self.ledger = Clock(), 0, Ledger()
        self.store = MemoryStore(self.ledger.seen)
        self.store.clock = self.seconds
        self.queue = MemoryQueue(self.seconds)
        self.workers = [self.worker(number) for number in range(3)]
        store, queue = cast("Any", self.store), cast("Any", self.queue)
        self.submit = Submit(SETTINGS, store, queue, now=self.clock, new_id=self.new_id, new_seed=lambda: 5)
        self.accepted: list[tuple[str, str, str]] = []
        """Of each message and submission: the task's name, the request's fingerprint, and the MessageId, if known."""
        self.unknown: list[str] = []
        """Submissions whose callers were told to repeat them, and have not yet."""

    def worker(self, number: int) -> Worker:
        def now() -> datetime:
            return self.clock() + timedelta(seconds=self.workers[number].skew)

        store, queue = cast("Any", self.store), cast("Any", self.queue)
        return Worker(
            Claims(SETTINGS, store, queue, worker=f"w{number}", now=now, new_id=self.new_id, new_seed=lambda: 6)
        )

    def seconds(self) -> float:
        return self.clock.time.timestamp()

    def new_id(self) -> str:
        self.ids += 1
        return f"id-{self.ids}"

    @invariant()
    def nothing_is_wrong(self) -> None:
        if hasattr(self, "ledger"):
            assert self.ledger.wrong == []

    @invariant()
    def one_owner_at_most(self) -> None:
        """Of all who believe to hold a task, at most one would get a write through."""
        for name in NAMES:
            record = self.store.record(name) if hasattr(self, "store") else None
            believers = [hold.owner for one in self.workers for hold in one.holds] if record else []
            owner = record.lease.owner if record and record.lease else None
            assert sum(owner == one for one in believers) <= 1

    # Callers.

    @rule(name=names, body=bodies, saving=faults, sending=faults)
    def submits(self, name: str, body: dict[str, Any], saving: Trouble, sending: Trouble) -> None:
        self.store.fault, self.queue.fault = saving, sending
        self.calls(json.dumps(body | {"task_id": name}))
        self.store.fault = self.queue.fault = "none"

    def calls(self, body: str) -> None:
        try:
            record = self.submit.submit(body)
            self.accepted.append((record.task_id, str(record.fingerprint), ""))
        except ServiceFault:
            self.unknown.append(body)
        except Conflict:
            pass  # the name is another request's

    @rule(name=names, body=bodies)
    def sends_a_message(self, name: str, body: dict[str, Any]) -> None:
        message = json.dumps(body | {"task_id": name})
        fingerprint = parse(message).accept().fingerprint()
        self.accepted.append((name, fingerprint, self.queue.send(message)))

    @rule(name=names, fault=faults)
    def cancels(self, name: str, fault: Trouble) -> None:
        self.store.fault = fault
        with suppress(NotFound, Conflict, ServiceFault):
            assert self.submit.cancel(name).status == "cancelled"
        self.store.fault = "none"

    # Workers.

    @precondition(lambda self: self.queue.visible())
    @rule(worker=workers, pick=picks, fault=faults, twice=st.booleans())
    def receives(self, worker: int, pick: int, fault: Trouble, twice: bool) -> None:
        visible = self.queue.visible()
        message = self.queue.give(visible[pick % len(visible)], hidden=0 if twice else LEASE)
        self.store.fault = fault
        self.serve(self.workers[worker], message)
        self.store.fault = "none"

    def serve(self, worker: Worker, message: Message) -> Hold | None:
        """What the generate handler makes of a message, up to the claim."""
        try:
            attempt = worker.claims.claim(asked_by(message), message, cast("Any", Engine), float("inf"))
        except Finished:
            self.queue.delete(message.receipt_handle)
        except Held as held:
            self.queue.change_visibility(message.receipt_handle, (held.until - self.clock()).total_seconds() + 1)
        except Conflict as fault:
            self.rejects(worker, message, fault)
        except (LostRace, ServiceFault):
            self.queue.change_visibility(message.receipt_handle, 5)
        else:
            assert attempt.record.lease is not None
            worker.holds.append(Hold(attempt, attempt.record.lease.owner, message))
            return worker.holds[-1]
        return None

    def rejects(self, worker: Worker, message: Message, fault: Conflict) -> None:
        try:
            worker.claims.reject(Asked(message.message_id, None), fault)
            self.queue.delete(message.receipt_handle)
        except (LostRace, ServiceFault):
            self.queue.change_visibility(message.receipt_handle, 5)

    def holding(self, worker: int, pick: int) -> Hold | None:
        holds = self.workers[worker].holds
        return holds[pick % len(holds)] if holds else None

    @rule(worker=workers, pick=picks, fault=faults)
    def beats(self, worker: int, pick: int, fault: Trouble) -> None:
        hold = self.holding(worker, pick)
        if hold is not None:
            with self.as_writer(hold, fault):
                hold.attempt.beat()

    @rule(
        worker=workers,
        pick=picks,
        fault=faults,
        end=st.sampled_from(("complete", "complete", "fail", "release", "suspend")),
    )
    def ends(self, worker: int, pick: int, fault: Trouble, end: str) -> None:
        hold = self.holding(worker, pick)
        if hold is None:
            return
        self.workers[worker].holds.remove(hold)
        with self.as_writer(hold, fault):
            try:
                self.end(hold, end)
            except (Refused, ServiceFault):
                self.queue.change_visibility(hold.message.receipt_handle, 5)

    def end(self, hold: Hold, end: str) -> None:
        attempt, message = hold.attempt, hold.message
        try:
            if end == "complete":
                attempt.complete([picture(attempt.record)], Timings(), batch_size=1, cold_start=False)
            elif end == "fail":
                attempt.fail(OutOfMemory("too large"))
            elif end == "suspend":
                attempt.release(Suspended("the worker stops"))
                if attempt.record.status == "pending":
                    self.queue.send(attempt.record.pointer())
            else:
                attempt.release(Internal("it broke"))
                if attempt.record.status == "pending":
                    self.queue.change_visibility(message.receipt_handle, 5)
                    return
        except ServiceFault as fault:
            attempt.release(fault)  # as after any passing fault while developing
            raise
        self.queue.delete(message.receipt_handle)

    @contextmanager
    def as_writer(self, hold: Hold, fault: Trouble) -> Iterator[None]:
        self.store.writer, self.store.fault = hold.owner, fault
        try:
            yield
        finally:
            self.store.writer, self.store.fault = "", "none"

    @rule(worker=workers)
    def dies(self, worker: int) -> None:
        self.workers[worker].holds.clear()

    # Time, and those who tidy up.

    @rule(seconds=st.sampled_from((1, 10, LEASE - 1, LEASE + 1, 3600)))
    def time_passes(self, seconds: int) -> None:
        self.clock.forward(seconds)

    @rule(worker=workers, seconds=st.sampled_from((-3600, -LEASE, -1, 0, 1, LEASE, 3600)))
    def a_clock_jumps(self, worker: int, seconds: int) -> None:
        self.workers[worker].skew = seconds

    @rule(name=names, fault=faults)
    def the_doctor_looks(self, name: str, fault: Trouble) -> None:
        """An expired attempt's task is put back, and a message sent."""
        stored, record = self.store.read(name), self.store.record(name)
        if stored is None or record is None:
            return
        self.store.fault = fault
        try:
            expired = moves.expire(record, now=self.clock(), age=self.store.age(stored))
            self.store.change(stored, expired)
            self.queue.send(expired.pointer())
        except DarkroomError:
            pass
        self.store.fault = "none"

    # The end: whatever happened, every task reaches one.

    def teardown(self) -> None:
        if not hasattr(self, "store"):
            return
        for worker in self.workers:
            worker.holds.clear()
            worker.skew = 0
        for body in self.unknown:
            self.calls(body)
        self.works_off()
        self.nothing_is_wrong()
        assert self.queue.messages == []
        for name, fingerprint, message_id in self.accepted:
            record = self.store.record(name)
            if record is None or record.fingerprint != fingerprint:
                # The name is another request's: the message's sender finds a refusal under the MessageId.
                record = self.store.record(message_id)
            assert record is not None, f"{name} was lost"
        for name in self.store.names():
            record = self.store.record(name)
            assert record is not None
            assert record.status in TERMINAL, f"{name} is stuck: {record.status}"

    def works_off(self) -> None:
        """One worker, no faults, until the queue is empty."""
        for _ in range(300):
            self.clock.forward(2 * 3600 + LEASE)
            visible = self.queue.visible()
            if not visible:
                return
            hold = self.serve(self.workers[0], self.queue.give(visible[0], hidden=LEASE))
            if hold is not None:
                self.workers[0].holds.remove(hold)
                with self.as_writer(hold, "none"):
                    self.end(hold, "complete")


Life.TestCase.settings = settings(
    max_examples=400,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TestLife = Life.TestCase
