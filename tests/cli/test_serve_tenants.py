"""Several tenants at once over real HTTP, as ``darkroom serve --tenants`` serves them, and on the command line."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from handler.api.results import Status
from handler.api.submission import Submit
from handler.cli.local.http import HttpApi, serve
from handler.cli.local.session import invoke_event
from handler.settings import Settings
from handler.work.serving import Generate
from handler.worker import Worker

from ..support import PlainEngine, sqs_event

if TYPE_CHECKING:
    from collections.abc import Iterator

    from handler.aws.queue import TaskQueue
    from handler.aws.store import TaskStore

CLIENTS, TENANTS = 64, 8


@pytest.fixture
def site(settings: Settings, store: TaskStore, queue: TaskQueue) -> Iterator[str]:
    """Submit, status and a worker; the address."""
    on = replace(settings, tenants="header", first_beat=0)
    server = serve(HttpApi(Submit(on, store, queue), Status(on, store)), 0)
    worker = Worker(Generate(on, store, queue, lambda _: PlainEngine()), queue, on, poll_seconds=1)
    threads = [threading.Thread(target=run, daemon=True) for run in (partial(server.serve_forever, 0.02), worker.run)]
    for thread in threads:
        thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    worker.stop()
    server.shutdown()
    server.server_close()
    for thread in threads:
        thread.join()


def call(site: str, tenant: str | None, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    headers = {"Content-Type": "application/json", **({"X-API-Key": tenant} if tenant else {})}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{site}{path}", data=data, method=method, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return reply.status, json.loads(reply.read())
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, json.loads(refused.read())


@pytest.mark.slow
def test_of_64_clients_none_meets_anothers_task(site: str) -> None:
    """Eight of each tenant, whose task ids are the same in all tenants. Each looks for its own and at a neighbour's."""

    def client(number: int) -> None:
        tenant, neighbour = f"tenant-{number % TENANTS}", f"tenant-{(number + 1) % TENANTS}"
        task_id = f"t{number // TENANTS}"
        own = f"{task_id} of {tenant}"
        code, _ = call(site, tenant, "POST", "/generate", {"prompt": own, "task_id": task_id})
        assert code == 202
        # A task of this tenant alone: the neighbour guesses its name.
        secret = f"only-{number}"
        assert call(site, tenant, "POST", "/generate", {"prompt": own, "task_id": secret})[0] == 202
        for method in ("GET", "DELETE"):
            assert call(site, neighbour, method, f"/results/{secret}")[0] == 404
        assert call(site, neighbour, "POST", f"/generate/{secret}/retry")[0] == 404
        for name in (task_id, secret):
            result: dict[str, Any] = {"status": "pending"}
            while result["status"] in {"pending", "processing"}:
                code, result = call(site, tenant, "GET", f"/results/{name}?wait=10")
                assert (code, result["prompt"]) == (200, own)
            assert result["status"] == "completed"
            assert f"/tenants/{tenant}/tasks/{name}/" in result["images"][0]["url"]
            again = call(site, tenant, "GET", f"/results/{name}")[1]  # a final status stays
            assert (again["status"], again["sequence"]) == ("completed", result["sequence"])
        _, page = call(site, tenant, "GET", "/results?limit=6")
        assert page["results"]
        assert {one["prompt"].rpartition(" of ")[2] for one in page["results"]} == {tenant}

    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(client, range(CLIENTS)))


def test_without_a_header_nothing_but_what_is_everybodys(site: str) -> None:
    for method, path in (("GET", "/results"), ("GET", "/results/a"), ("DELETE", "/results/a"), ("POST", "/generate")):
        code, answer = call(site, None, method, path, {"prompt": "fox"} if method == "POST" else None)
        assert (code, answer["error"]["code"]) == (403, "INVALID_REQUEST")
    for path in ("/health", "/models", "/openapi.json"):
        assert call(site, None, "GET", path)[0] == 200


@pytest.mark.pipeline
def test_a_recorded_event_is_answered_for_its_tenant(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    alices = sqs_event('{"prompt": "fox", "task_id": "mine"}', ids=["m-1"], tenant="alice")["Records"]
    nobodys = sqs_event('{"prompt": "owl", "task_id": "mine"}', ids=["m-2"], tenant="b/")["Records"]
    results = invoke_event(Settings.load(environ), {"Records": alices + nobodys}, print)
    assert [(one["task_id"], one["status"]) for one in results] == [("mine", "completed"), ("m-2", "failed")]
