"""The proxy itself: every kind of fault reaches the clients as what it is, and storage and queue say ServiceFault."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from handler.errors import DarkroomError, ServiceFault
from handler.local.aws import create_resources
from handler.settings import Settings
from handler.storage import TaskStore
from handler.taskqueue import TaskQueue

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
    outcomes = []
    for _ in range(4):
        try:
            outcomes.append(calls[call]())
        except ServiceFault as fault:
            assert isinstance(fault, DarkroomError)
    schedule.armed = False
    assert schedule.counts[kind] >= 2
    if call == "get":
        assert set(outcomes) <= {b"x" * 4096}
    if call == "send":
        assert all(outcomes)
    proxy.close()
