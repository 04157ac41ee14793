"""The proxy itself: every kind of fault reaches the clients as what it is, and storage and queue say ServiceFault."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from handler.aws.queue import TaskQueue
from handler.aws.store import TaskStore
from handler.cli.local.aws import create_resources
from handler.contract.request import GenerationRequest
from handler.errors import ServiceFault
from handler.settings import Settings
from handler.task import moves

from .proxy import RATES, Kind, Proxy, Schedule
from .witness import Witness

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.chaos


@pytest.mark.parametrize("kind", RATES)
@pytest.mark.parametrize("call", ["put", "get", "send", "receive"])
def test_nothing_but_a_service_fault_leaks(endpoint: str, kind: Kind, call: str) -> None:
    """Two of three requests meet the fault: some calls succeed on a retry, some do not."""
    schedule = Schedule(1, {kind: 2 / 3})
    proxy = Proxy(endpoint, schedule, Witness())
    door = proxy.door("client")
    resources = create_resources(door, visibility=30, max_receives=3)
    settings = Settings.load({**os.environ, **resources.variables, "AWS_ENDPOINT_URL": door})
    store, queue = TaskStore(settings), TaskQueue(settings)
    store.put_checkpoint("there", b"x" * 4096)
    calls: dict[str, Callable[[], object]] = {
        "put": lambda: store.put_checkpoint("t", b"x" * 4096),
        "get": lambda: store.read_checkpoint("there"),
        "send": lambda: queue.send("{}"),
        "receive": lambda: queue.receive(1, 0),
    }
    schedule.armed = True
    outcomes: list[object] = []
    for _ in range(4):
        try:
            outcomes.append(calls[call]())
        except ServiceFault:
            outcomes.append(None)
    schedule.armed = False
    assert schedule.counts[kind] >= 2
    assert len(outcomes) == 4
    if call == "get":
        assert set(outcomes) <= {b"x" * 4096, None}  # never half of it
    proxy.close()


@pytest.mark.parametrize("kind", ["reset", "reset after", "500 after", "truncated"])
def test_a_record_is_written_once_whatever_becomes_of_the_answer(endpoint: str, kind: Kind) -> None:
    """obstore does not repeat a conditional put whose connection broke: the store does, and knows its own bytes."""
    witness, schedule = Witness(), Schedule(4, {kind: 0.15})
    proxy = Proxy(endpoint, schedule, witness)
    door = proxy.door("client")
    resources = create_resources(door, visibility=30, max_receives=3)
    store = TaskStore(Settings.load({**os.environ, **resources.variables, "AWS_ENDPOINT_URL": door}))
    request, now = GenerationRequest(prompt="fox"), datetime.now(UTC)
    schedule.armed = True
    for number in range(25):
        record = moves.create(f"t{number}", request, 1, now, timedelta(days=1))
        stored = store.create(record)
        store.change(stored, moves.cancel(record, now=now))
    schedule.armed = False
    assert schedule.counts[kind] >= 5
    assert [len(seen) for seen in witness.history.values()] == [2] * 25
    assert witness.violations == []
    proxy.close()
