"""The servers: each starts in a context and yields the client that asks it for pictures."""

from __future__ import annotations

import base64
import json
import os
import sys
import time
import urllib.request
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from handler.aws.queue import TaskQueue
from handler.aws.store import TaskStore
from handler.cli.local.aws import CREDENTIALS, EmbeddedAws, create_resources
from handler.contract.record import Record
from handler.contract.statuses import TERMINAL
from handler.process import use

from .hosting import ROOT, environment, free_port, running
from .load import LIMIT, Client, Outcome, Task

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def tutorial(locked: str) -> Iterator[Client]:
    python, port = environment("tutorial", "fastapi>=0.120", "uvicorn"), free_port()
    command = [python, "-m", "uvicorn", "tests.benchmarks.peers.tutorial:app", "--port", port, "--log-level", "warning"]
    url = f"http://127.0.0.1:{port}"
    with running(command, {"LOCKED": locked}, lambda: answers(f"{url}/health")):
        yield Tutorial(url)


@contextmanager
def litserve() -> Iterator[Client]:
    python, port = environment("litserve", "litserve==0.2.19"), free_port()
    url = f"http://127.0.0.1:{port}"
    command = [python, "-m", "tests.benchmarks.peers.litserver", port]
    with running(command, {}, lambda: answers(f"{url}/health")):
        yield LitServe(url)


@contextmanager
def bentoml() -> Iterator[Client]:
    python, port = environment("bentoml", "bentoml==1.4.39"), free_port()
    url = f"http://127.0.0.1:{port}"
    service = "tests.benchmarks.peers.bentoserver:Pictures"
    command = [python, "-m", "bentoml", "serve", service, "--host", "127.0.0.1", "--port", port]
    environ = {"BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(ROOT / ".venv-bentoml" / "home")}
    with running(command, environ, lambda: answers(f"{url}/readyz")):
        yield BentoMl(url)


@contextmanager
def darkroom(dtype: str) -> Iterator[Client]:
    """The worker in a process of its own; the embedded AWS in this one, on the same cores."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    with EmbeddedAws() as aws:
        environ = CREDENTIALS | create_resources(aws.endpoint).variables | {"AWS_ENDPOINT_URL": aws.endpoint}
        settings = use(**environ)
        store = TaskStore(settings)
        command = [sys.executable, "-m", "handler"]
        with running(command, environ | {"DTYPE": dtype, "DEVICE": "cpu"}, lambda: is_available(store)):
            yield Darkroom(TaskQueue(settings), store)


def is_available(store: TaskStore) -> bool:
    health = store.read_health()
    return health is not None and health["model_status"] == "available"


class Tutorial:
    def __init__(self, url: str) -> None:
        self._url = url

    def ask(self, task: Task) -> Outcome | str:
        return str(call(f"{self._url}/generate", task.body())["task_id"])

    def look(self, name: str) -> Outcome | None:
        result = call(f"{self._url}/results/{name}")
        if result["status"] == "completed":
            return Outcome(result["completed_at"], base64.b64decode(result["image_base64"]))
        return Outcome(time.time(), fault=result["error_message"]) if result["status"] == "failed" else None


class _Waiting:
    """A server that answers with the picture itself."""

    def __init__(self, url: str) -> None:
        self._url = url

    def look(self, name: str) -> Outcome | None:
        raise NotImplementedError


class LitServe(_Waiting):
    def ask(self, task: Task) -> Outcome | str:
        answer = call(f"{self._url}/generate", task.body())
        return Outcome(time.time(), base64.b64decode(answer["image_base64"]))


class BentoMl(_Waiting):
    def ask(self, task: Task) -> Outcome | str:
        (answer,) = call(f"{self._url}/generate", {"requests": [task.body()]})
        return Outcome(time.time(), base64.b64decode(answer))


class Darkroom:
    """By SQS and S3 alone, as a caller without the HTTP API would."""

    def __init__(self, queue: TaskQueue, store: TaskStore) -> None:
        self._queue, self._store = queue, store

    def ask(self, task: Task) -> Outcome | str:
        return self._queue.send(json.dumps(task.body()))

    def look(self, name: str) -> Outcome | None:
        stored = self._store.read(name)
        record = Record.from_json(stored.body) if stored else None
        if record is None or record.status not in TERMINAL or record.completed_at is None:
            return None
        finished = record.completed_at.timestamp()
        if record.status != "completed":
            return Outcome(finished, fault=record.error.message if record.error else record.status)
        return Outcome(finished, self._store.read_image(record.images[0].key))


def call(url: str, body: object = None) -> Any:
    """POST with a body, else GET; JSON both ways."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=LIMIT) as reply:
        return json.load(reply)


def answers(url: str) -> bool:
    """Whether a GET there succeeds now."""
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False
