"""``darkroom invoke`` and ``serve``: the handlers, a worker and an embedded AWS in one process."""

from __future__ import annotations

import json
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ...api.results import Status
from ...api.submission import Submit
from ...aws.queue import Message, TaskQueue, messages_of
from ...aws.store import TaskStore
from ...aws.weights import fetch_model
from ...contract.record import Record
from ...contract.statuses import TERMINAL
from ...errors import Conflict, Finished, InvalidRequest, ModelUnavailable
from ...settings import Settings, use
from ...task.messages import asked_by
from ...work.serving import build
from ...worker import Worker
from ..showing import ProgressLines
from .aws import CREDENTIALS, EmbeddedAws, create_resources
from .http import HttpApi, serve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from werkzeug.serving import BaseWSGIServer

LOOK_EVERY = 0.1
GIVE_UP = 3


@contextmanager
def aws_environment(endpoint: str | None, model: str | None) -> Iterator[Settings]:
    """Settings of an embedded AWS that runs inside the block, unless ``endpoint``, ``AWS_ENDPOINT_URL`` or
    ``AWS_PROFILE`` names another.
    """
    chosen = {"MODEL_ID": model} if model else {}
    if endpoint:
        chosen["AWS_ENDPOINT_URL"] = endpoint
    settings = use(**chosen)
    if settings.aws_endpoint_url or settings.aws_profile:
        yield settings.require("bucket", "queue_url")
        return
    if settings.model_id.startswith("s3://"):
        # Downloaded from the real S3, before the settings switch to the embedded one.
        chosen["MODEL_ID"] = str(fetch_model(settings.model_id, settings)[0])
    with EmbeddedAws() as aws:
        # Requests cost nothing here, and the user is watching.
        variables = {
            "FIRST_BEAT": "0",
            "PREVIEWS": "1",
            **chosen,
            **CREDENTIALS,
            **create_resources(aws.endpoint).variables,
        }
        yield use(AWS_ENDPOINT_URL=aws.endpoint, NO_PROXY="127.0.0.1", no_proxy="127.0.0.1", **variables)


@contextmanager
def running_worker(settings: Settings) -> Iterator[Worker]:
    """Runs a worker in a thread while the block runs. It ends early if the model cannot be loaded."""
    queue = TaskQueue(settings)
    worker = Worker(build(settings), queue, settings, poll_seconds=1)
    thread = threading.Thread(target=worker.run, name="worker", daemon=True)
    thread.start()
    try:
        yield worker
    finally:
        worker.stop()
        thread.join()


def invoke_request(settings: Settings, request: dict[str, Any], *, quiet: bool) -> dict[str, Any]:
    """Sends the request as an SQS message, runs a worker until the task is terminal, and returns its ResultResponse.

    Raises ModelUnavailable when the worker cannot load the model.
    """
    store, queue = TaskStore(settings), TaskQueue(settings)
    body = json.dumps(request)
    message = Message(queue.send(body), "", body)
    first = "queued; loading the model"
    with running_worker(settings) as worker, ProgressLines([""], quiet=quiet, transient=True, first=first) as lines:

        def show(record: Record | None) -> None:
            if record is not None and record.status != "pending":
                lines.show("", record)

        wait_for(store, lambda: _name(store, message)[1], show, lambda: not worker.failed)
        if worker.failed:
            health = store.read_health() or {}
            raise ModelUnavailable(str(health.get("reason")))
    return Status(settings, store).result(_name(store, message)[1])


def invoke_event(settings: Settings, event: dict[str, Any]) -> list[dict[str, Any]]:
    """Calls the handler with a recorded SQS event, as Lambda would. Returns the ResultResponse of each of its tasks."""
    store = TaskStore(settings)
    handler = build(settings)
    handler.handle(event, None)
    named = dict.fromkeys(_name(store, message) for message in messages_of(event))
    status = Status(settings, store)
    return [status.for_tenant(tenant).result(task_id) for tenant, task_id in named]


def _name(store: TaskStore, message: Message) -> tuple[str | None, str]:
    """Tenant and task_id of a message's task: those that it names, or its message_id if that names another request."""
    try:
        asked = asked_by(message)
        stored = store.for_tenant(asked.tenant).read(asked.task_id)
        if stored is not None:
            asked.check(Record.from_json(stored.body))
    except Finished:
        return asked.tenant, asked.task_id
    except Conflict:
        return asked.tenant, message.message_id
    except InvalidRequest:
        return None, message.message_id
    return asked.tenant, asked.task_id


def wait_for(
    store: TaskStore,
    task_id: Callable[[], str],
    show: Callable[[Record | None], None],
    keep_waiting: Callable[[], bool],
) -> Record | None:
    """Reads the record until it is terminal, failed too often, or ``keep_waiting`` returns False; returns the last."""
    record = None
    while keep_waiting():
        stored = store.read(task_id())
        record = Record.from_json(stored.body) if stored else None
        show(record)
        if record is not None and (record.status in TERMINAL or _left_to_retries(record)):
            break
        time.sleep(LOOK_EVERY)
    return record


def _left_to_retries(record: Record) -> bool:
    """Whether the task has failed so often that waiting for it is no use: the queue retries it after ever longer
    delays.
    """
    return record.status == "pending" and record.error is not None and record.attempt >= GIVE_UP


def serve_forever(settings: Settings, port: int, announce: Callable[[str], None]) -> bool:
    """Runs a worker and the HTTP API until Ctrl-C. Returns False if they ended because the model cannot be loaded."""
    store, queue = TaskStore(settings), TaskQueue(settings)
    api = HttpApi(Submit(settings, store, queue), Status(settings, store))
    server = serve(api, port)
    with running_worker(settings) as worker:
        announce(f"http://127.0.0.1:{server.server_port}")
        threading.Thread(target=_end_with, args=(worker, server), daemon=True).start()
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            announce("stopping: what is running is finished")
        finally:
            server.server_close()
        return not worker.failed


def _end_with(worker: Worker, server: BaseWSGIServer) -> None:
    """Stops the HTTP API when the worker fails: it would accept requests that nothing serves."""
    worker.wait_failed()
    server.shutdown()
