"""What ECS's agent hears of a worker."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from handler.aws import scale_in
from handler.aws.scale_in import ScaleInProtection
from handler.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HEARD: list[tuple[str, dict[str, Any]]] = []
ANSWERS: list[tuple[int, dict[str, Any]]] = []


class _Agent(BaseHTTPRequestHandler):
    def do_PUT(self) -> None:
        HEARD.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
        status, answer = ANSWERS.pop(0) if ANSWERS else (200, {"protection": {"ProtectionEnabled": True}})
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Silent."""


@pytest.fixture
def agent() -> Iterator[str]:
    HEARD.clear()
    ANSWERS.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Agent)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/api/some-task"
    server.shutdown()
    server.server_close()


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_ecs_hears_when_work_begins_and_ends(agent: str) -> None:
    busy = threading.Event()
    protection = ScaleInProtection(Settings(ecs_agent_uri=agent), busy.is_set, every=0.01)
    protection.start()
    time.sleep(0.1)
    assert HEARD == []  # idle from the start: nothing to tell
    busy.set()
    until(lambda: len(HEARD) == 1)
    time.sleep(0.1)
    busy.clear()
    until(lambda: len(HEARD) == 2)
    protection.stop()
    path = "/api/some-task/task-protection/v1/state"
    assert [
        (path, {"ProtectionEnabled": True, "ExpiresInMinutes": 5}),
        (path, {"ProtectionEnabled": False}),
    ] == HEARD


@pytest.mark.parametrize("answer", [(200, {"failure": {"Reason": "DEPLOYMENT_BLOCKED"}}), (500, {}), (200, {})])
def test_what_ecs_did_not_take_is_told_again(agent: str, answer: tuple[int, dict[str, Any]]) -> None:
    ANSWERS.append(answer)
    protection = ScaleInProtection(Settings(ecs_agent_uri=agent), lambda: True, every=0.01)
    protection.start()
    until(lambda: len(HEARD) == 2)
    time.sleep(0.1)
    protection.stop()
    assert len(HEARD) == 2


def test_an_update_under_full_load_ends(agent: str) -> None:
    """ECS stops a task of the old version whenever it is not protected; five workers are never idle."""
    workers = [
        ScaleInProtection(
            Settings(ecs_agent_uri=f"{agent}/{name}"), lambda: True, every=0.01, protected_for=0.2, open_for=0.1
        )
        for name in "abcde"
    ]
    for worker in workers:
        worker.start()
    protected: dict[str, bool] = {}
    running = set("abcde")
    until(lambda: len(HEARD) >= len(running))
    began = time.monotonic()
    while running:
        assert time.monotonic() - began < 5, "the update does not end"
        for path, state in HEARD:
            protected[path.split("/")[3]] = state["ProtectionEnabled"]
        running -= {name for name in running if not protected[name]}
        time.sleep(0.01)
    for worker in workers:
        worker.stop()


def test_a_busy_worker_is_protected_most_of_the_time(agent: str) -> None:
    protection = ScaleInProtection(
        Settings(ecs_agent_uri=agent), lambda: True, every=0.01, protected_for=0.2, open_for=0.05
    )
    protection.start()
    until(lambda: len(HEARD) == 5)
    protection.stop()
    assert [state["ProtectionEnabled"] for _, state in HEARD] == [True, False, True, False, True]
    assert scale_in.OPEN_FOR < scale_in.PROTECTED_FOR < scale_in.EXPIRES_MINUTES * 60


def test_outside_ecs_nobody_is_told() -> None:
    before = threading.active_count()
    ScaleInProtection(Settings(), lambda: True).start()
    assert threading.active_count() == before
