"""How many wait before a task: told of waiting ones alone, for one request to SQS in a while."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from handler.api.ahead import Ahead, Waits
from handler.api.results import Status, build
from handler.aws.queue import Backlog
from handler.contract.health import report
from handler.errors import ServiceFault

from ..support import CARD, Clock, answer_of, http_event
from .test_routing import headers_of

if TYPE_CHECKING:
    from handler.api.submission import Submit
    from handler.aws.queue import TaskQueue
    from handler.aws.store import TaskStore
    from handler.settings import Settings
    from handler.work.serving import Generate

HEALTH: Any = {
    "measured": {"step": 0.1, "other": 1.0, "pixels": 64 * 64},
    "model": {"defaults": {"num_inference_steps": 20, "width": 64, "height": 64}},
}
PENDING: Any = {"status": "pending", "request": {"prompt": "fox"}}


class Told:
    """A queue that says what it is told to; ``asked``: how often."""

    def __init__(self, visible: int, hidden: int, fault: Exception | None = None) -> None:
        self._backlog, self._fault, self.asked = backlog(visible, hidden), fault, 0

    def backlog(self) -> Backlog:
        self.asked += 1
        if self._fault is not None:
            raise self._fault
        return self._backlog


def backlog(visible: int, hidden: int) -> Backlog:
    return Backlog(visible, hidden, 0, 3600)


@pytest.mark.parametrize(
    ("visible", "hidden", "request_", "expected"),
    [
        (1, 0, {}, (0, 3.0)),
        (0, 1, {}, (0, 3.0)),
        (9, 4, {}, (8, 9.0)),
        (1, 0, {"num_inference_steps": 40, "num_images": 2}, (0, 10.0)),
        (1, 0, {"width": 128, "height": 64}, (0, 6.0)),
    ],
)
def test_what_is_told(visible: int, hidden: int, request_: dict[str, Any], expected: tuple[int, float]) -> None:
    ahead = Ahead(Told(visible, hidden))
    told = ahead.of({"status": "pending", "request": request_}, lambda: HEALTH)
    assert (told.ahead, told.wait_seconds) == expected


def test_nothing_of_one_that_does_not_wait_and_where_nobody_can_tell() -> None:
    fails = Told(0, 0, ServiceFault("SQS failed"))
    nothing = Waits()
    assert Ahead(Told(5, 0)).of({"status": "completed", "request": {}}, lambda: HEALTH) == nothing
    assert Ahead(None).of(PENDING, lambda: HEALTH) == nothing
    assert Ahead(fails).of(PENDING, lambda: HEALTH) == nothing
    unknown = Ahead(Told(5, 0)).of(PENDING, lambda: {"measured": None, "model": None})  # type: ignore[typeddict-item]
    assert unknown == Waits(4)


def test_sqs_is_asked_once_in_a_while() -> None:
    at, queue = [0.0], Told(3, 0)
    ahead = Ahead(queue, monotonic=lambda: at[0])
    for now, asked in ((0.0, 1), (1.0, 1), (4.9, 1), (5.0, 2), (6.0, 2)):
        at[0] = now
        ahead.of(PENDING, lambda: HEALTH)
        assert queue.asked == asked


def test_over_http_and_not_once_it_has_ended(
    settings: Settings, store: TaskStore, queue: TaskQueue, submit: Submit, generate: Generate
) -> None:
    for name in ("fox-1", "fox-2"):
        submit.submit(f'{{"prompt": "fox", "task_id": "{name}"}}')
    for status in (build(settings), Status(settings, store, queue=queue)):
        assert answer_of(status.handle(http_event("GET", "/results/fox-2"), None))[1]["ahead"] == 1
    for message in queue.receive(10, wait=1):
        generate.serve(message)
    told = Told(0, 0)
    ended = Status(settings, store, queue=told)
    assert answer_of(ended.handle(http_event("GET", "/results/fox-2"), None))[1]["ahead"] is None
    assert told.asked == 0, "a poll of a finished task is one GET and no other call"


@dataclass
class Moving:
    """Over one task that waits: a queue that changes, and the time between two looks at it."""

    settings: Settings
    store: TaskStore
    at: float = 0.0
    now: Backlog = field(default_factory=lambda: backlog(1, 0))

    def __post_init__(self) -> None:
        self.status = Status(
            self.settings, self.store, queue=self, sleep=self.sleep, monotonic=lambda: self.at, now=Clock()
        )

    def backlog(self) -> Backlog:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.at += seconds

    def poll(self, tag: str | None = None, **query: str) -> tuple[int, dict[str, str], Any]:
        sent = {"If-None-Match": tag} if tag else {}
        answer = self.status.handle(http_event("GET", "/results/fox-1", query=query, headers=sent), None)
        return answer["statusCode"], headers_of(answer), json.loads(answer["body"] or "null")


@pytest.fixture
def moving(settings: Settings, store: TaskStore, submit: Submit) -> Moving:
    """A picture of this model takes 3 seconds."""
    card = CARD.model_dump(mode="json")
    measured = {"step": 0.5, "other": 1.0, "pixels": 64 * 64}
    store.write_health(report(settings, Clock()(), card=card, reason=None, measured=measured))
    submit.submit('{"prompt": "fox", "task_id": "fox-1"}')
    return Moving(settings, store)


def test_who_polls_by_etag_sees_the_queue_move(moving: Moving) -> None:
    moving.now = backlog(9, 4)
    tag = moving.poll()[1]["ETag"]
    assert moving.poll(tag)[0] == 304
    moving.now = backlog(5, 4)
    assert moving.poll(tag)[0] == 304, "SQS is asked once in a while"
    moving.at += 5
    code, headers, result = moving.poll(tag)
    assert (code, result["ahead"], result["wait_seconds"]) == (200, 4, 6.0)
    assert moving.poll(headers["ETag"])[0] == 304


def test_a_long_poll_ends_where_the_queue_moves(moving: Moving) -> None:
    tag = moving.poll()[1]["ETag"]
    assert moving.poll(tag, wait="20")[0] == 304
    moving.now = backlog(3, 0)
    began = moving.at
    assert moving.poll(tag, wait="20")[2]["ahead"] == 2
    assert moving.at - began < 7


def test_a_second_more_or_less_is_no_news(moving: Moving) -> None:
    tags = set()
    for hidden in (20, 21):
        moving.now, moving.at = backlog(9, hidden), moving.at + 5
        tags.add(moving.poll()[1]["ETag"])
    assert len(tags) == 1


@pytest.mark.parametrize(("visible", "seconds"), [(1, "2"), (3, "6"), (500, "15")])
def test_one_asks_again_when_it_is_begun(moving: Moving, visible: int, seconds: str) -> None:
    """Not when it is done: the page shows it being drawn."""
    moving.now = backlog(visible, 0)
    assert moving.poll()[1]["Retry-After"] == seconds


def test_where_nobody_can_tell_one_asks_again_soon(settings: Settings, store: TaskStore, submit: Submit) -> None:
    submit.submit('{"prompt": "fox", "task_id": "fox-1"}')
    assert Moving(settings, store).poll()[1]["Retry-After"] == "2"
