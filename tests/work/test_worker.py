"""The worker as a process of its own, as a container runs it; and the same image's entrypoint under Lambda."""

from __future__ import annotations

import json
import signal
import time
from typing import TYPE_CHECKING

import pytest

from handler.aws.queue import TaskQueue
from handler.contract.record import Record

from ..runtime_api import RuntimeApi
from ..support import sqs_event
from ..warm import Command

if TYPE_CHECKING:
    from pathlib import Path

    from handler.aws.store import TaskStore
    from handler.cli.local.aws import Resources
    from handler.settings import Settings

APPLE = '{"prompt": "a red apple", "num_inference_steps": 2}'


def process(environ: dict[str, str], *arguments: str) -> Command:
    return Command("handler", arguments, environ)


def wait_for(store: TaskStore, task_id: str, status: str) -> Record:
    for _ in range(600):
        stored = store.read(task_id)
        if stored is not None:
            record = Record.from_json(stored.body)
            if record.status == status:
                return record
        time.sleep(0.1)
    raise AssertionError(f"{task_id} did not become {status}")


def test_a_worker_serves_until_it_is_told_to_stop(environ: dict[str, str], store: TaskStore, queue: TaskQueue) -> None:
    with process(environ) as worker:
        first = queue.send(APPLE)
        assert wait_for(store, first, "completed").cold_start
        second = queue.send(APPLE)
        assert wait_for(store, second, "completed").cold_start is False
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(15) == 0
    health = store.read_health()
    assert health is not None
    assert health["model"]["pipeline"] == "StableDiffusionPipeline"
    assert queue.receive(wait=1) == []


def test_a_worker_without_a_model_loses_nothing(
    environ: dict[str, str], store: TaskStore, queue: TaskQueue, tmp_path: Path
) -> None:
    task_id = queue.send(APPLE)
    with process({**environ, "MODEL_ID": str(tmp_path / "nothing")}) as worker:
        assert worker.wait(90) == 1
        log = worker.err
    assert wait_for(store, task_id, "pending").attempt == 0
    lines = [json.loads(line) for line in log.splitlines()]
    assert sum(line["message"] == "the model cannot be loaded" for line in lines) == 1
    health = store.read_health()
    assert health is not None
    assert health["model_status"] == "unavailable"
    (message,) = queue.receive(wait=10)  # back in the queue, after a delay
    assert message.message_id == task_id
    queue.change_visibility(message.receipt_handle, 0)
    with process(environ) as worker:
        assert wait_for(store, task_id, "completed").attempt == 1
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(15) == 0


def test_a_worker_with_bad_settings_says_so(environ: dict[str, str]) -> None:
    with process({**environ, "LEASE": "soon"}) as worker:
        assert worker.wait(30) == 2
        log = worker.err
    assert "LEASE='soon': must be a whole number from 5 to 3600" in log


@pytest.mark.parametrize(
    ("handler", "event", "expected"),
    [
        ("handler.status.handle", {"httpMethod": "GET", "path": "/health"}, '"model_status": "available"'),
        ("handler.generate.handle", sqs_event(APPLE, ids=["from-lambda"]), '{"batchItemFailures": []}'),
    ],
)
def test_under_lambda_the_same_entrypoint_serves_its_handler(
    environ: dict[str, str], store: TaskStore, handler: str, event: dict[str, object], expected: str
) -> None:
    with RuntimeApi(event) as api, process({**environ, **api.variables}, handler):
        answer = api.answer(60)
    unescaped = json.loads(answer).get("body", answer)
    assert expected in unescaped
    if handler == "handler.generate.handle":
        assert wait_for(store, "from-lambda", "completed")


def test_a_worker_writes_down_what_ends_in_the_dead_letter_queue(
    environ: dict[str, str], resources: Resources, store: TaskStore, settings: Settings
) -> None:
    dead = TaskQueue(settings, resources.dead_letter_queue_url)
    task_id, unreadable = dead.send(APPLE), dead.send("nonsense")
    with process(environ | {"DEAD_LETTER_URL": dead.url}):
        record = wait_for(store, unreadable, "failed")
        assert wait_for(store, task_id, "pending").sends == 1  # it comes back in a quarter of an hour
    assert record.error is not None
    assert record.error.code == "RETRIES_EXHAUSTED"
