"""The HTTP API over real HTTP, as ``darkroom serve`` offers it; and the tutorial's client, word for word."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from handler.api.results import Status
from handler.api.submission import Submit
from handler.cli.local.http import HttpApi, serve
from handler.errors import ModelUnavailable
from handler.work.serving import Generate
from handler.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from handler.aws.queue import TaskQueue
    from handler.aws.store import TaskStore
    from handler.engine.running import PipelineEngine
    from handler.settings import Settings

    from ..support import PlainEngine


class Site:
    """A served API and calls to it."""

    def __init__(self, url: str) -> None:
        self.url = url

    def call(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, Any]:
        request = urllib.request.Request(self.url + path, body, headers, method=method)
        try:
            with urllib.request.urlopen(request) as reply:
                return reply.status, json.loads(reply.read())
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, json.loads(refused.read())


@pytest.fixture(params=[False, True], ids=["inline-by-query", "inline-by-setting"])
def inline_images(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def site(settings: Settings, store: TaskStore, queue: TaskQueue) -> Iterator[Site]:
    with served(settings, store, queue) as site:
        yield site


@contextmanager
def served(settings: Settings, store: TaskStore, queue: TaskQueue) -> Iterator[Site]:
    server = serve(HttpApi(Submit(settings, store, queue), Status(settings, store)), 0)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield Site(f"http://127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def worker(settings: Settings, store: TaskStore, queue: TaskQueue, engine: PipelineEngine) -> Iterator[Worker]:
    worker = Worker(Generate(settings, store, queue, lambda _: engine), queue, settings, poll_seconds=1)
    thread = threading.Thread(target=worker.run, daemon=True)
    thread.start()
    yield worker
    worker.stop()
    thread.join()


def test_the_tutorials_client(
    settings: Settings, store: TaskStore, queue: TaskQueue, worker: Worker, inline_images: bool
) -> None:
    """POST /generate, poll GET /results/{task_id}, decode image_base64: the fields as the tutorial spells them."""
    here = replace(settings, inline_images=inline_images)
    query = "" if inline_images else "?inline=base64"
    with served(here, store, queue) as site:
        code, answer = site.call("GET", "/health")
        assert (code, answer["status"], answer["model_status"]) == (200, "ok", "available")
        payload = {
            "prompt": "a red apple on a blue background",
            "negative_prompt": "blurry",
            "num_inference_steps": 10,
            "guidance_scale": 4.0,
            "seed": 42,
        }
        code, answer = site.call(
            "POST", "/generate", json.dumps(payload).encode(), **{"Content-Type": "application/json"}
        )
        assert code == 202
        assert {"task_id", "status", "message"} <= set(answer)
        assert answer["status"] == "pending"
        task_id = answer["task_id"]
        result: dict[str, Any] = {}
        for _ in range(600):
            code, result = site.call("GET", f"/results/{task_id}{query}")
            assert code == 200
            assert {"task_id", "status", "prompt", "image_base64", "error_message"} <= set(result)
            if result["status"] in ("completed", "failed"):
                break
            time.sleep(0.05)
        assert (result["status"], result["task_id"], result["prompt"]) == ("completed", task_id, payload["prompt"])
        assert result["error_message"] is None
        picture = Image.open(io.BytesIO(base64.b64decode(result["image_base64"])))
        assert picture.size == (64, 64)
        assert site.call("GET", "/results/unknown")[0] == 404


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (b"not json", {"body"}),
        (b"\xff\xfe", {"body"}),
        (b'{"prompt": "x", "num_images": 99, "colour": 1}', {"num_images", "colour"}),
    ],
)
def test_bad_input_over_http(site: Site, body: bytes, fields: set[str]) -> None:
    code, answer = site.call("POST", "/generate", body)
    assert (code, answer["error"]["code"]) == (422, "INVALID_REQUEST")
    assert {one["field"] for one in answer["error"]["details"]} == fields


@pytest.mark.parametrize("size", [300_000, 2_000_000, 11_000_000])
def test_a_body_that_is_too_large_over_http(site: Site, size: int) -> None:
    """The largest API Gateway refuses by itself, before any handler."""
    code, answer = site.call("POST", "/generate", b'{"prompt": "' + b"x" * size + b'"}')
    assert (code, answer["error"]["code"]) == (413, "INVALID_REQUEST")


def test_an_unknown_path(site: Site) -> None:
    assert site.call("GET", "/nothing/here")[0] == 404


def test_without_a_model(settings: Settings, store: TaskStore, queue: TaskQueue, site: Site) -> None:
    def load(_: Settings) -> PlainEngine:
        raise ModelUnavailable("the folder is empty")

    worker = Worker(Generate(settings, store, queue, load), queue, settings, poll_seconds=1)
    assert worker.run() == 1
    code, answer = site.call("GET", "/health")
    assert (code, answer["model_status"]) == (200, "unavailable")
    assert "the worker's log has the cause under id" in answer["reason"]
    code, answer = site.call("POST", "/generate", b'{"prompt": "fox"}')
    assert (code, answer["error"]["code"]) == (503, "MODEL_UNAVAILABLE")
