"""``darkroom invoke`` and ``serve``: the handlers, a worker and an embedded AWS in one process."""

from __future__ import annotations

import json
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...api.results import Status
from ...api.submission import Submit
from ...aws.queue import Message, TaskQueue, messages_of
from ...aws.store import TaskStore
from ...aws.weights import fetch_model
from ...care import deadletters
from ...contract.record import Record
from ...contract.statuses import TERMINAL
from ...errors import Conflict, Finished, InvalidRequest
from ...process import leave_aside, use
from ...settings import Settings
from ...task.messages import asked_by
from ...work.polling import serve_dead_letters
from ...work.serving import build
from ...work.signals import Signals
from ...worker import Worker
from ..deployment import deployment, with_model
from ..showing import ProgressLines
from .aws import CREDENTIALS, EmbeddedAws, create_resources
from .http import HttpApi, serve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Say = Callable[[str], None]

LOOK_EVERY = 0.1
GIVE_UP = 3
SAVED_WITHIN = 30.0
"""Seconds that an interrupted command waits for what is drawn to be saved."""
NO_OTHERS = dict.fromkeys(
    (
        *(f"AWS_ENDPOINT_URL_{service}" for service in ("S3", "SQS", "STS", "EVENTBRIDGE")),
        "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS",
    ),
    "",
)
"""So that an ``endpoint`` that a command is given is for all services, whatever the environment says."""
NO_FILES = {"AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null"}


@contextmanager
def aws_environment(endpoint: str | None, model: str | None, *, own: bool, say: Say) -> Iterator[Settings]:
    """Settings of an embedded AWS that runs inside the block; with ``own``, or an ``endpoint``, those of the
    environment. ``say`` is told what the embedded AWS leaves aside.

    Raises SettingsError.
    """
    settings = with_model(model, **({**NO_OTHERS, "AWS_ENDPOINT_URL": endpoint} if endpoint else {}))
    if own or endpoint:
        yield deployment("bucket", "queue_url")
        return
    chosen = {}
    if settings.model_id.startswith("s3://"):
        # Downloaded from the real S3, before the settings switch to the embedded one.
        chosen["MODEL_ID"] = str(fetch_model(settings.model_id, settings)[0])
    if left := leave_aside():
        say(f"the embedded AWS leaves aside {', '.join(left)}; --aws uses them")
    with EmbeddedAws() as aws:
        # Requests cost nothing here, and the user is watching.
        quick = {"FIRST_BEAT": "0", "PREVIEWS": "1"}
        made = create_resources(aws.endpoint)
        names = {**made.variables, "DEAD_LETTER_URL": made.dead_letter_queue_url}
        yield use(AWS_ENDPOINT_URL=aws.endpoint, **NO_FILES, **quick, **chosen, **CREDENTIALS, **names)


class Interrupted(Exception):
    """Ctrl-C or SIGTERM ended the command. ``status``: its exit status; ``left``: the task as it was left, if any."""

    def __init__(self, status: int, left: Record | None = None) -> None:
        super().__init__(status)
        self.status, self.left = status, left


@dataclass
class Local:
    """A worker that runs in a thread, and the signals that end it."""

    worker: Worker
    signals: Signals

    @property
    def goes_on(self) -> bool:
        return not self.signals.number and not self.worker.failed

    def end(self) -> None:
        """Waits for what was drawn to be saved. Raises Interrupted if a signal has come."""
        if self.signals.number:
            self.worker.wait_idle(SAVED_WITHIN)  # not for its long poll, whose messages come back after a lease
            raise Interrupted(self.signals.status)


@contextmanager
def running_worker(settings: Settings, say: Say) -> Iterator[Local]:
    """Runs a worker in a thread while the block runs, until a signal suspends it. It ends early if the model cannot be
    loaded.
    """
    worker = Worker(build(settings), TaskQueue(settings), settings, poll_seconds=1)

    def suspend() -> None:
        say("stopping: what is drawn is saved at its next step; once more ends at once")
        worker.stop(suspend=True, finish_within=0.0)

    signals = Signals(suspend, worker.release_all).listen()
    thread = threading.Thread(target=worker.run, name="worker", daemon=True)
    thread.start()
    try:
        yield Local(worker, signals)
    finally:
        worker.stop()
        signals.leave()
        if not signals.number:
            thread.join()


def invoke_request(settings: Settings, request: dict[str, Any], *, quiet: bool, say: Say) -> dict[str, Any]:
    """Sends the request as an SQS message, runs a worker until the task is terminal, and returns its ResultResponse.

    Raises ModelUnavailable when the worker cannot load the model, WorkerBroken, and Interrupted.
    """
    store, queue = TaskStore(settings), TaskQueue(settings)
    body = json.dumps(request)
    message = Message(queue.send(body), "", body)
    first = "queued; loading the model"
    with running_worker(settings, say) as local, ProgressLines([""], quiet=quiet, transient=True, first=first) as lines:

        def show(record: Record | None) -> None:
            if record is not None and record.status != "pending":
                lines.show("", record)

        wait_for(store, lambda: _name(store, message)[1], show, lambda: local.goes_on)
        if local.worker.fault is not None:
            raise local.worker.fault
        try:
            local.end()
        except Interrupted as ended:
            stored = store.read(_name(store, message)[1])
            raise Interrupted(ended.status, Record.from_json(stored.body) if stored else None) from None
    return Status(settings, store).result(_name(store, message)[1])


def invoke_event(settings: Settings, event: dict[str, Any], say: Say) -> list[dict[str, Any]]:
    """Calls the handler with a recorded SQS event, as Lambda would. Returns the ResultResponse of each of its tasks.

    Raises ModelUnavailable, and Interrupted.
    """
    store = TaskStore(settings)
    handler = build(settings)

    def suspend() -> None:
        say("stopping: what is drawn is saved at its next step; once more ends at once")
        handler.suspend()

    signals = Signals(suspend, handler.release_all).listen()
    served = threading.Thread(target=handler.handle, args=(event, None), name="event", daemon=True)
    served.start()
    while served.is_alive() and not signals.number:
        served.join(LOOK_EVERY)
    if signals.number:
        served.join(SAVED_WITHIN)
        raise Interrupted(signals.status)
    signals.leave()
    handler.engine()  # tells why there is none, if that is what became of the messages
    named = dict.fromkeys(_name(store, message) for message in messages_of(event))
    status = Status(settings, store)
    return [status.for_tenant(tenant).result(task_id) for tenant, task_id in named]


def _name(store: TaskStore, message: Message) -> tuple[str | None, str]:
    """Tenant and task_id of a message's task: those that it names, or its message_id if that names another request."""
    try:
        asked = asked_by(message, files=store)
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


def serve_forever(settings: Settings, port: int, say: Say, ready: Say) -> None:
    """Runs a worker and the HTTP API until a signal comes, or until the worker ends because it cannot load the model.
    ``ready`` is told the API's address.

    Raises Interrupted, ModelUnavailable, and WorkerBroken.
    """
    store, queue = TaskStore(settings), TaskQueue(settings)
    submit, status = Submit(settings, store, queue), Status(settings, store, queue=queue)
    server = serve(HttpApi(submit, status), port)
    with running_worker(settings, say) as local:
        if settings.dead_letter_url:
            serve_dead_letters(deadletters.build(settings), TaskQueue(settings, settings.dead_letter_url))
        ready(f"http://127.0.0.1:{server.server_port}")
        threading.Thread(target=server.serve_forever, name="http", daemon=True).start()
        known = False
        while local.goes_on:
            local.signals.came.wait(LOOK_EVERY)
            if not known and local.worker.loaded:
                known = True
                submit.health.look_again()
                status.health.look_again()
        server.shutdown()  # before the worker ends: it would accept requests that nothing serves
        server.server_close()
        local.end()
        if local.worker.fault is not None:
            raise local.worker.fault
