"""The load: tasks by raw SQS messages and by ``POST /generate``, a third sent twice, some bad, some cancelled."""

from __future__ import annotations

import heapq
import json
import random
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from handler.errors import ServiceFault
from tests.support import answer_of, http_event

if TYPE_CHECKING:
    from handler.api.submission import Submit
    from handler.aws.queue import TaskQueue

    from .witness import Witness

PROMPTS = ("fox", "owl", "a red apple", "pizza", "a sailboat on a teal background", "ghost", "panda", "a key")
DIFFERENT = 30
"""Requests that are drawn from: each is developed once undisturbed, to compare with."""
DUPLICATED, BY_HTTP, NAMELESS, SEEDLESS, BAD, CANCELLED = 1 / 3, 0.4, 0.15, 0.1, 0.03, 0.03
LATER = 12.0
"""Seconds until the second message of a pair, at most; half of them come at once."""
OUTSTANDING = 10
"""Tasks in flight at most: fewer than the workers have places for, so that none waits but for its worker."""


@dataclass(frozen=True)
class Planned:
    """A task to come. ``name`` is None where the MessageId will be its name."""

    name: str | None
    request: dict[str, Any]
    by_http: bool
    again_after: float | None
    cancel_after: float | None
    good: bool = True

    @property
    def body(self) -> str:
        return json.dumps(self.request | ({"task_id": self.name} if self.name and not self.by_http else {}))


def requests(draw: random.Random) -> list[dict[str, Any]]:
    made = []
    for number in range(DIFFERENT):
        request: dict[str, Any] = {
            "prompt": draw.choice(PROMPTS),
            "seed": number,
            "num_inference_steps": draw.randint(8, 20),
            "guidance_scale": draw.choice((1.0, 4.0, 4.0, 7.5)),
        }
        if draw.random() < 0.15:
            request["num_images"] = 2
        if draw.random() < 0.15:
            request["width"] = 96
        made.append(request)
    return made


def plan(seed: int, count: int) -> list[Planned]:
    """``count`` tasks, the same for the same seed."""
    draw = random.Random(f"load {seed}")
    pool = requests(draw)
    planned = []
    for number in range(count):
        by_http, named, good = draw.random() < BY_HTTP, draw.random() >= NAMELESS, draw.random() >= BAD
        request = dict(draw.choice(pool))
        if draw.random() < SEEDLESS:
            del request["seed"]
        if not good:
            by_http, named, request["num_inference_steps"] = False, True, "many"
        # A message without a name cannot be sent twice: the second would be another task.
        twice = (named or by_http) and draw.random() < DUPLICATED / (1 - NAMELESS * (1 - BY_HTTP))
        again = draw.choice((0.0, draw.uniform(0, LATER))) if twice else None
        cancel = draw.uniform(0, 3) if good and (named or by_http) and draw.random() < CANCELLED else None
        name = f"task-{number:04d}" if named or by_http else None
        planned.append(Planned(name, request, by_http, again, cancel, good))
    return planned


class Load(threading.Thread):
    """Sends the plan, as fast as tasks end. A call whose outcome is unknown is repeated, as its contract says."""

    def __init__(self, planned: list[Planned], submit: Submit, queue: TaskQueue, witness: Witness) -> None:
        super().__init__(name="load", daemon=True)
        self._planned, self._submit, self._queue, self._witness = planned, submit, queue, witness
        self._later: list[tuple[float, int, str, Planned]] = []
        self.accepted: dict[str, Planned] = {}
        self.duplicates = self.repeated = 0
        self.fault: BaseException | None = None

    def run(self) -> None:
        try:
            for number, one in enumerate(self._planned):
                while len(self.accepted.keys() - self._witness.terminal()) >= OUTSTANDING:
                    self._do_due()
                    time.sleep(0.02)
                self.accepted[self._accept(one)] = one
                for delay, what in ((one.again_after, "again"), (one.cancel_after, "cancel")):
                    if delay is not None:
                        heapq.heappush(self._later, (time.monotonic() + delay, number, what, one))
                self._do_due()
            while self._later:
                self._do_due()
                time.sleep(0.02)
        except BaseException as fault:
            self.fault = fault

    def _do_due(self) -> None:
        while self._later and self._later[0][0] <= time.monotonic():
            *_, what, one = heapq.heappop(self._later)
            if what == "again":
                self._accept(one)
                self.duplicates += 1
            else:
                self._cancel(one)

    def _accept(self, one: Planned) -> str:
        """The name of the accepted task."""
        for _ in range(50):
            if one.by_http:
                headers = {"Idempotency-Key": str(one.name)}
                status, answer = answer_of(
                    self._submit.handle(http_event("POST", "/generate", body=one.body, headers=headers), None)
                )
                if status == 202:
                    return str(answer["task_id"])
                assert status == 503, f"POST /generate: {status} {answer}"
            else:
                try:
                    message_id = self._queue.send(one.body)
                    return one.name or message_id
                except ServiceFault:
                    pass
            self.repeated += 1
            time.sleep(0.1)
        raise AssertionError(f"{one.name} was not accepted in fifty tries")

    def _cancel(self, one: Planned) -> None:
        for _ in range(50):
            status, answer = answer_of(self._submit.handle(http_event("DELETE", f"/results/{one.name}"), None))
            if status in {200, 409}:
                return
            assert status in {404, 503}, f"DELETE: {status} {answer}"  # 404: nobody has read its message yet
            time.sleep(0.1)
