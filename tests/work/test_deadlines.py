"""Nothing is begun that cannot be finished or saved: the deadline, the wait for a place, and who is drawn alone."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from handler.contract.health import Measured
from handler.contract.record import PastAttempt, Record
from handler.contract.request import GenerationRequest
from handler.errors import WorkerBroken
from handler.task import moves
from handler.task.budget import RESERVE, Costs
from handler.work.serving import LAST_SECONDS, Generate

from ..support import Clock, PlainEngine, event_of, record_of, sqs_event

if TYPE_CHECKING:
    from handler.aws.queue import Message, TaskQueue
    from handler.aws.store import TaskStore
    from handler.settings import Settings

pytestmark = pytest.mark.slow
CONSUMED: dict[str, object] = {"batchItemFailures": []}
PIXELS = 64 * 64
BODY = '{"prompt": "fox", "num_inference_steps": 8, "task_id": "mine"}'


class Context:
    """Lambda's context with so many seconds left."""

    def __init__(self, seconds: float) -> None:
        self.ends = time.monotonic() + seconds

    def get_remaining_time_in_millis(self) -> int:
        return int((self.ends - time.monotonic()) * 1000)

    @property
    def left(self) -> float:
        return self.ends - time.monotonic()


def returned(answer: dict[str, Any]) -> set[str]:
    return {one["itemIdentifier"] for one in answer["batchItemFailures"]}


def waits(event: threading.Event) -> None:
    event.wait(60)


def sent(queue: TaskQueue, *bodies: str) -> list[Message]:
    """Messages with these bodies, as somebody received them."""
    for body in bodies:
        queue.send(body)
    return queue.receive(len(bodies), wait=1)


def event(messages: list[Message]) -> dict[str, Any]:
    return {"Records": [event_of(one)["Records"][0] for one in messages]}


def test_two_tasks_and_one_place_return_before_the_deadline(
    settings: Settings, store: TaskStore, queue: TaskQueue
) -> None:
    """The first takes the place for most of the invocation; the second would begin a step that cannot end."""
    plain = PlainEngine(capacity=1, between=lambda: time.sleep(1.0))
    generate = Generate(settings, store, queue, lambda _: plain)
    messages = sent(queue, *(f'{{"prompt": "fox", "num_inference_steps": 8, "task_id": "{name}"}}' for name in "ab"))
    context = Context(RESERVE + 2.7)
    answer = generate.handle(event(messages), context)
    assert context.left > RESERVE - 1.5
    records = [Record.from_json(stored.body) for name in "ab" if (stored := store.read(name)) is not None]
    (first,) = records  # of the other one nothing was written
    assert (first.status, first.tries, first.attempts[0].outcome) == ("pending", 0, "suspended")
    (waiting,) = returned(answer)
    again = {one.message_id for one in queue.receive(10, wait=1)}
    assert waiting in again  # at once
    assert generate.broken is None


def test_what_cannot_be_begun_before_the_deadline_goes_back_unclaimed(
    settings: Settings, store: TaskStore, queue: TaskQueue
) -> None:
    """A warm process knows that a step takes three seconds; the load has left two of this invocation."""
    plain = PlainEngine(measured=Measured(step=3.0, other=0.5, pixels=PIXELS))

    def load(_: Settings) -> PlainEngine:
        time.sleep(1.5)
        return plain

    generate = Generate(settings, store, queue, load)
    store.create(moves.create("mine", GenerationRequest(prompt="fox"), 7, Clock()(), timedelta(days=400)))
    before = record_of(store, "mine")
    messages = sent(queue, before.pointer())
    assert returned(generate.handle(event(messages), Context(RESERVE + 3.5))) == {messages[0].message_id}
    assert record_of(store, "mine") == before
    assert queue.receive(wait=1)
    assert plain.drawn == []


def test_the_last_step_waits_for_an_invocation_with_time_for_the_picture(
    settings: Settings, store: TaskStore, queue: TaskQueue
) -> None:
    """Ten quick steps, and a decode that takes longer than what is left after them."""
    plain = PlainEngine(
        measured=Measured(step=0.2, other=1.5, pixels=PIXELS),
        between=lambda: time.sleep(0.2),
        decoding=lambda: time.sleep(1.0),
    )
    generate = Generate(settings, store, queue, lambda _: plain)
    context = Context(RESERVE + 2.7)
    assert generate.handle(sqs_event(BODY), context) == CONSUMED
    assert context.left > RESERVE - 0.5
    record = record_of(store, "mine")
    assert (record.status, record.tries, record.saved_step) == ("pending", 0, 7)


def test_an_unforeseen_decode_is_put_off_with_all_steps_saved(
    settings: Settings, store: TaskStore, queue: TaskQueue
) -> None:
    """The last step took longer than any before: what follows no longer fits, and only that is left to be done."""
    steps: list[int] = []

    def between() -> None:
        steps.append(1)
        time.sleep(1.5 if len(steps) == 8 else 0.05)

    plain = PlainEngine(between=between, measured=Measured(step=0.05, other=1.0, pixels=PIXELS))
    generate = Generate(settings, store, queue, lambda _: plain)
    assert generate.handle(sqs_event(BODY), Context(RESERVE + 2.5)) == CONSUMED
    record = record_of(store, "mine")
    assert (record.status, record.tries, record.saved_step, len(steps)) == ("pending", 0, 8, 8)
    (message,) = queue.receive(wait=1)
    assert generate.handle(event_of(message), Context(60)) == CONSUMED
    assert record_of(store, "mine").status == "completed"


def test_a_picture_that_fits_into_no_invocation_ends(settings: Settings, store: TaskStore, queue: TaskQueue) -> None:
    plain = PlainEngine(measured=Measured(step=0.01, other=30.0, pixels=PIXELS))
    generate = Generate(replace(settings, max_tries=2), store, queue, lambda _: plain)
    generate.handle(sqs_event(BODY, ids=["m"]), Context(RESERVE + 5))
    first = record_of(store, "mine")
    assert first.error is not None
    assert (first.status, first.error.code, first.tries) == ("pending", "TIMED_OUT", 1)
    assert "does not fit into an invocation" in first.error.message
    generate.handle(sqs_event(BODY, ids=["m"]), Context(RESERVE + 5))
    assert record_of(store, "mine").status == "failed"


def test_what_nobody_could_foresee_is_given_back_before_the_deadline(
    settings: Settings, store: TaskStore, queue: TaskQueue
) -> None:
    """A first picture whose decode takes for ever: its process has to end, but not by Lambda's hand."""
    over = threading.Event()
    plain = PlainEngine(decoding=lambda: waits(over))
    generate = Generate(settings, store, queue, lambda _: plain)
    messages = sent(queue, BODY)
    context = Context(RESERVE + 3)
    try:
        assert returned(generate.handle(event(messages), context)) == {messages[0].message_id}
        assert 0 < context.left < LAST_SECONDS
        assert isinstance(generate.broken, WorkerBroken)
        record = record_of(store, "mine")
        assert (record.status, record.saved_step) == ("pending", 8)
        assert queue.receive(wait=1)
    finally:
        over.set()


def test_a_load_that_outlasts_its_invocation_goes_on_in_the_next(
    settings: Settings, store: TaskStore, queue: TaskQueue, plain: PlainEngine
) -> None:
    loaded = threading.Event()

    def load(_: Settings) -> PlainEngine:
        loaded.wait(30)
        return plain

    generate = Generate(settings, store, queue, load)
    messages = sent(queue, BODY)
    assert returned(generate.handle(event(messages), Context(LAST_SECONDS + 1))) == {messages[0].message_id}
    assert generate.broken is None
    loaded.set()
    (message,) = queue.receive(wait=1)
    assert generate.handle(event_of(message), Context(60)) == CONSUMED
    assert plain.drawn == ["fox"]


def test_while_the_model_loads_a_message_is_hidden_for_a_lease_at_a_time(
    settings: Settings, store: TaskStore, queue: TaskQueue, plain: PlainEngine
) -> None:
    """Of a queue that hides it for long: whoever dies while he loads leaves it hidden for a lease."""
    hidden: list[float] = []
    own: Any = queue.change_visibility

    def watched(handle: str, seconds: float) -> None:
        hidden.append(seconds)
        own(handle, seconds)

    def load(_: Settings) -> PlainEngine:
        assert hidden == [6]
        time.sleep(5)
        return plain

    there: Any = queue
    there.change_visibility = watched
    short = replace(settings, lease=6, beat_every=0.5, first_beat=0.5)
    generate = Generate(short, store, queue, load)
    queue.send(BODY)
    (message,) = queue.receive(wait=1, hidden=600)
    assert generate.handle(event_of(message), Context(60)) == CONSUMED
    assert len(hidden) >= 3
    assert set(hidden) == {6}
    assert plain.drawn == ["fox"]


def test_while_it_waits_for_a_place_a_message_stays_hidden(
    settings: Settings, store: TaskStore, queue: TaskQueue
) -> None:
    plain = PlainEngine(capacity=1, between=lambda: time.sleep(1))
    short = replace(settings, lease=5, beat_every=0.5, first_beat=0.5)
    generate = Generate(short, store, queue, lambda _: plain)
    for name in "ab":
        queue.send(f'{{"prompt": "fox", "num_inference_steps": 7, "task_id": "{name}"}}')
    messages = queue.receive(10, wait=1, hidden=600)
    seen: list[Message] = []
    over = threading.Event()

    def thief() -> None:
        while not over.is_set():
            seen.extend(queue.receive(10, wait=0))
            over.wait(0.3)

    thread = threading.Thread(target=thief)
    thread.start()
    assert generate.handle(event(messages), Context(60)) == CONSUMED
    over.set()
    thread.join()
    assert seen == []
    assert {record_of(store, name).attempt for name in "ab"} == {1}


def past(number: int, outcome: str, message: str | None = None) -> PastAttempt:
    at = Clock()()
    return PastAttempt.model_validate(
        {"number": number, "owner": "w", "started_at": at, "ended_at": at, "outcome": outcome, "message": message}
    )


@pytest.mark.parametrize(
    ("ends", "alone"),
    [
        (["expired", "expired"], True),
        (["completed", "expired", "its worker broke: no step for 120 seconds"], True),
        (["expired", "no place was free before the deadline", "expired"], True),
        (["expired", "expired", "suspended"], False),
        (["expired"], False),
    ],
)
def test_a_task_that_took_two_workers_is_drawn_alone(
    ends: list[str], alone: bool, settings: Settings, store: TaskStore, queue: TaskQueue, clock: Clock
) -> None:
    outcomes = {"expired", "suspended", "completed"}
    attempts = [
        past(number, end if end in outcomes else "released", None if end in outcomes else end)
        for number, end in enumerate(ends, 1)
    ]
    record = moves.create("suspect", GenerationRequest(prompt="suspect"), 7, clock(), timedelta(days=1))
    store.create(record.model_copy(update={"attempts": attempts, "attempt": len(attempts)}))
    running: set[str] = set()
    company: list[set[str]] = []

    class Watching(PlainEngine):
        def develop(self, request: GenerationRequest, *rest: Any) -> Any:
            running.add(request.prompt)
            try:
                for _ in range(10):
                    if "suspect" in running:
                        company.append(set(running))
                    time.sleep(0.05)
                return super().develop(request, *rest)
            finally:
                running.discard(request.prompt)

    plain = Watching()
    generate = Generate(settings, store, queue, lambda _: plain, now=clock)
    bodies = ['{"prompt": "fox"}', '{"prompt": "owl"}', record.pointer(), '{"prompt": "hen"}']
    assert generate.handle(sqs_event(*bodies), None) == CONSUMED
    assert sorted(plain.drawn) == ["fox", "hen", "owl", "suspect"]
    assert (company.count({"suspect"}) == len(company)) is alone


def test_costs_are_reckoned_from_the_nearest_size() -> None:
    costs = Costs()
    assert (costs.text(), costs.step(1), costs.tail(1)) == (0, 0, 1.0)
    costs.seed(Measured(step=1.0, other=2.0, pixels=512 * 512))
    assert costs.step(512 * 512) == 1.0
    assert (costs.step(1024 * 1024), costs.tail(256 * 256)) == (4.0, 0.5)
    costs.learn("step", 512 * 512, 3.0)
    assert costs.step(512 * 512) == 2.0
    costs.seed(Measured(step=9.0, other=9.0, pixels=512 * 512))
    assert costs.step(512 * 512) == 2.0
    assert costs.least(512 * 512, 8) == 2.0
    assert costs.least(512 * 512, 1) == 4.0
    assert costs.least(512 * 512, 0) == 2.0
