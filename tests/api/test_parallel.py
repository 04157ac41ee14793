"""64 clients at once over real HTTP: nobody reads another's task, and what has ended has ended for everybody."""

from __future__ import annotations

import http.client
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pytest

from handler.contract.statuses import TERMINAL
from handler.work.serving import Generate
from handler.worker import Worker

from ..cli.test_http import served
from ..support import PlainEngine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from handler.aws.queue import TaskQueue
    from handler.aws.store import TaskStore
    from handler.settings import Settings

pytestmark = pytest.mark.slow

CLIENTS = 64
TASKS = 8
"""Of each of two tenants, under the same names; so four clients ask for each."""
WITHIN = 60.0
BETWEEN = 0.4
"""Seconds from an answer to the next question."""


@dataclass(frozen=True)
class Read:
    """What one client was told of a task, and when it asked and heard (time.monotonic)."""

    asked: float
    heard: float
    status: str
    sequence: int


@dataclass
class Ledger:
    reads: dict[tuple[str, str], list[Read]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, tenant: str, task_id: str, read: Read) -> None:
        with self.lock:
            self.reads.setdefault((tenant, task_id), []).append(read)


class Client:
    """One caller; a fresh connection for each request, as load balancers make them."""

    def __init__(self, port: int, tenant: str) -> None:
        self._port, self._tenant = port, tenant

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, str], Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        sent = {"X-API-Key": self._tenant, "Content-Type": "application/json"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.request(method, path, json.dumps(body) if body is not None else None, sent)
            reply = connection.getresponse()
            text = reply.read()
            return reply.status, dict(reply.getheaders()), json.loads(text) if text else None
        finally:
            connection.close()


@pytest.fixture
def port(settings: Settings, store: TaskStore, queue: TaskQueue) -> Iterator[int]:
    here = replace(settings, tenants="header", first_beat=0.0, beat_every=0.1)
    engine = PlainEngine(between=lambda: time.sleep(0.1))
    worker = Worker(Generate(here, store, queue, lambda _: engine), queue, here, poll_seconds=1)
    thread = threading.Thread(target=worker.run, daemon=True)
    thread.start()
    with served(here, store, queue) as site:
        yield int(site.url.rpartition(":")[2])
    worker.stop()
    thread.join()


def live(number: int, port: int, ledger: Ledger) -> str:
    """One client's life: submits (as three others do), asks in its own way until the end, and once more after it."""
    tenant, task_id = "ab"[number % 2], f"task-{number // 2 % TASKS}"
    client, prompt = Client(port, tenant), f"{tenant} draws {task_id}"
    code, _, told = client.call("POST", "/generate", {"prompt": prompt, "seed": 1}, Idempotency_Key=task_id)
    assert (code, told["task_id"]) == (202, task_id)
    if number < 6:  # of six tasks the first client changes its mind
        assert client.call("DELETE", f"/results/{task_id}")[0] in {200, 409}
    query = ["", "?wait=5", "?inline=base64", "?wait=2"][number // 16]
    tag, known, rounds_after = "", "", 0
    deadline = time.monotonic() + WITHIN
    while rounds_after < 3:
        assert time.monotonic() < deadline, f"{tenant} {task_id} never ended"
        asked = time.monotonic()
        code, headers, shown = client.call("GET", f"/results/{task_id}{query}", If_None_Match=tag)
        if code == 304:
            assert headers["ETag"] == tag
            rounds_after += known in TERMINAL
            time.sleep(BETWEEN)
            continue
        assert code == 200
        assert (shown["task_id"], shown["prompt"]) == (task_id, prompt)  # and not the other tenant's
        ledger.add(tenant, task_id, Read(asked, time.monotonic(), shown["status"], shown["sequence"]))
        tag, known = headers["ETag"], shown["status"]
        assert ("Retry-After" in headers) == (known not in TERMINAL)
        rounds_after += known in TERMINAL
        if number % 5 == 0:
            tag = ""  # this one always wants the whole of it
        time.sleep(BETWEEN)
    code, _, page = client.call("GET", f"/results?limit=100&status={known}")
    assert code == 200
    assert task_id in {one["task_id"] for one in page["results"]}
    assert all(one["prompt"].startswith(f"{tenant} draws") for one in page["results"])
    return known


def test_64_clients(port: int) -> None:
    ledger = Ledger()
    with ThreadPoolExecutor(CLIENTS) as pool:
        ends = list(pool.map(lambda number: live(number, port, ledger), range(CLIENTS)))
    assert len(ends) == CLIENTS
    assert set(ends) <= {"completed", "cancelled"}
    assert len(ledger.reads) == 2 * TASKS
    for (tenant, task_id), reads in ledger.reads.items():
        final = {(one.status, one.sequence) for one in reads if one.status in TERMINAL}
        assert len(final) == 1, (tenant, task_id, final)
        since = min(one.heard for one in reads if one.status in TERMINAL)
        late = [one for one in reads if one.asked > since and one.status not in TERMINAL]
        assert late == [], (tenant, task_id)
        heard = sorted(reads, key=lambda one: one.heard)
        for at, one in enumerate(heard):
            after = [later for later in heard[at + 1 :] if later.asked > one.heard]
            assert all(later.sequence >= one.sequence for later in after), (tenant, task_id)
