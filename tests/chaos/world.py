"""Darkroom's own classes over S3 and SQS in memory, and all that may happen to them, on a time that is passed in.

Real are Generate, behind Worker with its loop and as Lambda calls it, Submit, DeadLetters, Doctor, and Redrive. Each
thing that happens is a method; :meth:`World.settle` lets time go on without trouble until nothing is left to do, and
tells what is not as promised.
"""

from __future__ import annotations

import json
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from handler.api.submission import Submit
from handler.aws.events import detail
from handler.care.deadletters import DeadLetters
from handler.care.redrive import Redrive
from handler.care.rounds import Doctor
from handler.contract.health import report
from handler.contract.record import Record
from handler.contract.request import parse
from handler.contract.statuses import TERMINAL
from handler.errors import Conflict, DarkroomError, InvalidRequest, ServiceFault
from handler.settings import Settings
from handler.work.serving import Generate
from handler.worker import Worker
from tests.memory import Bucket, MemoryStore
from tests.memory_queue import MemoryQueue
from tests.support import CARD, Clock, event_of

from .ledger import Ledger
from .processes import Process, gate, keep_time, running
from .stepped import POISON, Inbox, Inline, SteppedEngine

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from handler.aws.queue import TaskQueue
    from handler.aws.store import TaskStore
    from tests.memory import Trouble

SKEW = 90.0
"""Seconds by which the clocks of two processes differ at most."""
LEASE, STUCK_AFTER, ROUND, DAY = 60, 900, 600, 86_400
SETTINGS = Settings(bucket="model", queue_url="model", lease=LEASE, stuck_after=STUCK_AFTER, max_tries=3)
MAX_RECEIVES = 3
NAMES = ("a", "b", "c")
FOX: dict[str, Any] = {"prompt": "fox", "num_inference_steps": 3}
BODIES = (
    FOX,
    FOX,
    {"prompt": "owl", "seed": 7, "num_inference_steps": 2},
    {"prompt": POISON, "num_inference_steps": 1},
)
WORKERS = 3
FUNCTION = WORKERS
"""The number of the app that serves under Lambda."""
INVOCATION, LONGEST = (8, 20, 900), 900
"""Seconds that an invocation of the function may take; and whoever else is no worker. Lambda ends what takes longer."""
SKEWS = WORKERS + 2
"""Clocks: each worker's, the function's, and that of all who are neither."""
MOST_ROUNDS = 1_500
"""Of the end, until it is clear that there is none: ten days of the doctor's rounds."""


class Context:
    """Lambda's, as far as the handler asks for it. ``left``: seconds until the deadline."""

    def __init__(self, left: Callable[[], float]) -> None:
        self._left = left

    def get_remaining_time_in_millis(self) -> int:
        return int(self._left() * 1000)


class World:
    """One bucket, its queues, three workers, and everybody else. Used again for each history: see ``begin``."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.bucket = Bucket(self.clock, gate, writer=self._writer)
        self.store = MemoryStore(self.bucket)
        self.dead = MemoryQueue(self.seconds, gate=gate, visibility=360)
        keep_time()
        self.queue = MemoryQueue(
            self.seconds, gate=gate, visibility=LONGEST + LEASE, max_receives=MAX_RECEIVES, dead=self.dead
        )
        self._skews = [0.0] * SKEWS
        self.ledger = Ledger(SETTINGS, self.bucket)
        self.bucket.seen = self.ledger.seen
        self.begin()
        store, queue, dead = cast("TaskStore", self.store), cast("TaskQueue", self.queue), cast("TaskQueue", self.dead)
        here = self._clock(-1)
        self._submit = Submit(SETTINGS, store, queue, now=here, new_id=self._new_id, new_seed=lambda: 5)
        self._letters = DeadLetters(SETTINGS, store, dead, queue, now=here, new_seed=lambda: 6)
        self._doctor = Doctor(SETTINGS, store, queue, now=here)
        self._redrive = Redrive(store, queue, now=here)
        # All are made once: a Generate has a thread that never ends, and a Submit reads botocore's files.
        self._apps = [self._app(number) for number in range(WORKERS + 1)]

    def begin(self, skews: tuple[float, ...] = (0.0,) * SKEWS) -> None:
        """Everything anew. ``skews``: by how many seconds each worker's clock is off, the function's, and everybody
        else's.
        """
        self._skews[:] = skews
        for app in getattr(self, "_apps", []):
            for measured in app._costs._seconds.values():
                measured.clear()
        self._ids = 0
        self.clock.time = Clock().time
        self.ledger.clear()
        self.bucket.objects.clear()
        self.bucket.events = []
        self.queue.clear()
        self.dead.clear()
        self.live: list[Process] = []
        self.events: list[str] = []
        self.accepted: list[tuple[str, str | None, str]] = []
        """Of each submission and message: the task's name, the request's fingerprint, and the MessageId."""
        self.buried: set[str] = set()
        """Messages that were served as dead letters, by MessageId."""
        self.unknown: list[str] = []
        """Submissions whose callers were told to repeat them."""
        card = CARD.model_dump(mode="json")
        self.store.write_health(report(SETTINGS, self.clock(), card=card, reason=None))

    def _clock(self, number: int) -> Callable[[], datetime]:
        """A worker's, or that of all who are none."""
        return lambda: self.clock() + timedelta(seconds=self._skews[number])

    def _app(self, number: int) -> Generate:
        store, queue = cast("TaskStore", self.store), cast("TaskQueue", self.queue)
        engine = cast("Any", SteppedEngine(self.clock.forward))
        names: dict[str, Any] = {"new_id": self._new_id, "new_seed": lambda: 7, "chance": lambda: 0.5}
        app = Generate(SETTINGS, store, queue, lambda _: engine, now=self._clock(number), worker=f"w{number}", **names)
        app.threads = cast("Any", Inline())
        app.engine()
        return app

    def seconds(self) -> float:
        return self.clock.time.timestamp()

    def _new_id(self) -> str:
        self._ids += 1
        return f"id-{self._ids}"

    @staticmethod
    def _writer() -> str:
        process = running()
        return process.owner if process else ""

    def record(self, task_id: str) -> Record | None:
        stored = self.bucket.get(self.store.record_key(task_id))
        return Record.from_json(stored.body) if stored else None

    def records(self) -> list[Record]:
        keys = [key for key in self.bucket.under("tasks/") if key.endswith("/status.json")]
        return [Record.from_json(self.bucket.objects[key].body) for key in keys]

    # What begins. Each call of S3 and SQS that it makes waits for ``goes_on``.

    def _begins(self, kind: str, work: Callable[[], object], about: str, within: float = LONGEST) -> None:
        self.events.append(f"{kind} {about}")
        self.live.append(Process(kind, work, self.seconds, within))

    def submits(self, name: str, body: dict[str, Any]) -> None:
        self._submits(json.dumps(body | {"task_id": name}))

    def _submits(self, body: str) -> None:
        def work() -> None:
            try:
                record = self._submit.submit(body)
                self.accepted.append((record.task_id, record.fingerprint, ""))
            except ServiceFault:
                self.unknown.append(body)
            except Conflict:
                pass  # the name is another request's

        self._begins("submit", work, body)

    def sends(self, name: str | None, body: dict[str, Any]) -> None:
        """A message that a caller sends to the queue itself; without a name its MessageId is the task's."""
        text = json.dumps(body | ({"task_id": name} if name else {}))
        message_id = self.queue.send(text)
        try:
            fingerprint: str | None = parse(text).accept().fingerprint()
        except InvalidRequest:
            fingerprint = None
        self.accepted.append((name or message_id, fingerprint, message_id))
        self.events.append(f"message {message_id} {text}")

    def cancels(self, name: str) -> None:
        self._begins("cancel", lambda: _calmly(lambda: self._submit.cancel(name)), name)

    def redrives(self, name: str | None) -> None:
        """One task, or all that are out of tries."""
        redrive = self._redrive
        work = (lambda: redrive.one(name)) if name else (lambda: list(redrive.all()))
        self._begins("redrive", lambda: _calmly(work), name or "all")

    def looks(self) -> None:
        """The doctor, on a round."""
        self._begins("doctor", lambda: _calmly(lambda: self._doctor.examine(fix=True)), "")

    def delivers(self, worker: int, pick: int, *, twice: bool = False) -> None:
        """A worker gets one of the visible messages; with ``twice`` somebody else may get it as well."""
        visible = self.queue.visible()
        if not visible:
            return
        held = visible[pick % len(visible)]

        def take(hidden: float | None) -> Any:
            return self.queue.deliver(held, 0 if twice else hidden)

        inbox = Inbox(self.queue, take)
        runner = Worker(self._apps[worker], cast("Any", inbox), SETTINGS)
        inbox.stop = runner.stop
        self._begins("worker", runner.run, f"{worker} {held.name}{' twice' * twice}", float("inf"))
        self.goes_on(-1)

    def invokes(self, pick: int, size: int, seconds: float) -> None:
        """Lambda gives its function up to ``size`` of the visible messages, and so many seconds. It has one process,
        which serves one event at a time.
        """
        visible = self.queue.visible() if all(one.kind != "function" for one in self.live) else []
        batch = [visible[(pick + at) % len(visible)] for at in range(min(size, len(visible)))]
        if not batch:
            return
        messages = [self.queue.deliver(held) for held in batch]
        ends = self.seconds() + seconds
        context = Context(lambda: ends - self.seconds())

        def invoke() -> None:
            answer = self._apps[FUNCTION].handle(event_of(*messages), context)
            left = {one["itemIdentifier"] for one in answer["batchItemFailures"]}
            for message in messages:
                if message.message_id not in left:
                    _calmly(partial(self.queue.delete, message.receipt_handle))

        about = f"{seconds:g} seconds for {' '.join(held.name for held in batch)}"
        self._begins("function", invoke, about, seconds)
        self.goes_on(-1)

    def loses(self, pick: int) -> None:
        """A message is received, and the answer is lost."""
        visible = self.queue.visible()
        if visible:
            held = visible[pick % len(visible)]
            self.queue.deliver(held, LEASE)
            self.events.append(f"lost in receiving {held.name}")

    def buries(self, pick: int) -> None:
        """Somebody gets one of the dead letters."""
        visible = self.dead.visible()
        if visible:
            held = visible[pick % len(visible)]
            message = self.dead.deliver(held)
            self.buried.add(held.name)

            def work() -> None:
                if self._letters.serve(message):
                    _calmly(lambda: self.dead.delete(message.receipt_handle))

            self._begins("dead letter", work, held.name)

    # What goes on.

    def goes_on(self, pick: int, calls: int = 1, trouble: Trouble = "none", order: str = "go on") -> None:
        """One of the processes, for so many calls; trouble and order are for the first call and the first step."""
        if not self.live:
            return
        process = self.live[pick % len(self.live)]
        for _ in range(calls):
            stepping = process.at == "step"
            self.events.append(f"{process.kind} {process.owner} {process.at}: {order if stepping else trouble}")
            process.go(trouble, order if stepping else "go on")
            trouble, order = "none", "go on" if stepping else order
            if process.done:
                self.live.remove(process)
                if process.fault is not None:
                    raise process.fault
                break
            if self.seconds() >= process.ends:  # its step took too long
                self.dies(self.live.index(process))
                break

    def dies(self, pick: int) -> None:
        """SIGKILL, just before a call or a step."""
        if self.live:
            process = self.live.pop(pick % len(self.live))
            self.events.append(f"{process.kind} {process.owner} dies before {process.at}")
            process.kill()

    def waits(self, seconds: float) -> None:
        self.clock.forward(seconds)
        self.events.append(f"{seconds:g} seconds")
        for process in [one for one in self.live if self.seconds() >= one.ends]:
            self.dies(self.live.index(process))

    def end(self) -> None:
        """Whoever is left goes."""
        while self.live:
            self.dies(0)

    # The end, without trouble.

    def settle(self) -> None:
        """Lets everybody finish, repeats what callers were told to repeat, and lets time go on."""
        self._finish()
        repeated, self.unknown = self.unknown, []
        for body in repeated:
            self._submits(body)
            self._finish()
        next_round = self.seconds() + ROUND
        for _ in range(MOST_ROUNDS):
            self._work_off()
            messages = [*self.queue.messages, *self.dead.messages]
            if not messages and all(record.status in TERMINAL for record in self.records()):
                break
            due = min([next_round, *(max(one.visible_at, self.seconds() + 0.001) for one in messages)])
            self.waits(due - self.seconds())
            if due == next_round:
                next_round += ROUND
                self._round()
        self.waits(DAY + STUCK_AFTER)
        self._round()
        self._work_off()
        self._judge()

    def _round(self) -> None:
        self.looks()
        self._finish()

    def _finish(self) -> None:
        while self.live:
            self.goes_on(0, 1_000)

    def _work_off(self) -> None:
        while self.queue.visible() or self.dead.visible():
            self.delivers(0, 0)
            self._finish()
            self.buries(0)
            self._finish()

    def _judge(self) -> None:
        expect = self.ledger.expect
        for name, fingerprint, message_id in self.accepted:
            record = self.record(name)
            expect(record is not None, name, "was lost")
            if record and fingerprint and record.fingerprint not in {fingerprint, None}:
                # The name is another request's: a message's sender finds a refusal under the MessageId.
                told = message_id and (self.record(message_id) or message_id in self.buried)  # see test_faults.py
                expect(bool(told), name, f"{message_id or 'a submission'} was lost")
        for one in self.records():
            expect(one.status in TERMINAL, one.task_id, f"is stuck: {one.status}")
            expect(detail(one) in (self.bucket.events or []), one.task_id, "nobody was told of its end")
        for message in [*self.queue.messages, *self.dead.messages]:
            expect(False, message.name, f"is left: {message.body}")
        for key in self.bucket.under("open/"):
            expect(False, key.split("/")[2], "is still listed as open")
        named = {image.key for record in self.records() for image in record.images}
        there = {key for key in self.bucket.under("tasks/") if not key.endswith("/status.json")}
        for key in sorted(named ^ there):
            expect(False, key.split("/")[1], f"{key} is {'gone' if key in named else 'left'}")


def _calmly(work: Callable[[], object]) -> None:
    """What its caller, or the next round, tries again."""
    try:
        work()
    except DarkroomError:
        return
