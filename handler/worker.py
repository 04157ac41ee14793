"""The worker: long-polls the queue, shapes what it receives into Lambda's event and calls the same handler.

It is the GPU container and the laptop. It exits 0 when told to stop, 1 when the model cannot be loaded: its host then
starts another, and no message was lost.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import generate
from .errors import ModelUnavailable, ServiceFault
from .logs import logger
from .notices import Notices
from .protection import Protection
from .settings import Settings
from .taskqueue import Message, TaskQueue

if TYPE_CHECKING:
    from .generate import Generate

POLL_SECONDS = 5
"""A long poll cannot be interrupted: it bounds how long a stop may take."""
PAUSE_AFTER_FAULT = 2.0
MOST_TASKS = 64
MOST_MESSAGES = 10
"""What SQS gives at a time."""


@dataclass(frozen=True)
class WorkerContext:
    """What a Lambda context tells; a worker has no deadline, so a large constant stands for the time left."""

    aws_request_id: str
    function_name: str = "worker"
    memory_limit_in_mb: int = 0
    invoked_function_arn: str = "arn:aws:lambda:local:000000000000:function:worker"

    def get_remaining_time_in_millis(self) -> int:
        return 12 * 3600 * 1000


class Worker:
    """One process, one engine, as many messages at a time as the engine has places."""

    def __init__(self, app: Generate, queue: TaskQueue, *, poll_seconds: int = POLL_SECONDS) -> None:
        self._app, self._queue, self._poll_seconds = app, queue, poll_seconds
        self._stop = threading.Event()
        self._free = threading.Condition()
        self._running = 0
        self._capacity = 0
        self._failed = threading.Event()
        self._loading = threading.Thread(target=self._load, name="load", daemon=True)

    @property
    def failed(self) -> bool:
        """Whether the worker ended, or is ending, because the model cannot be loaded."""
        return self._failed.is_set()

    @property
    def busy(self) -> bool:
        return self._running > 0

    @property
    def loading(self) -> bool:
        return self._loading.is_alive()

    def wait_failed(self) -> None:
        """Returns when the model could not be loaded; never otherwise."""
        self._failed.wait()

    def stop(self, *, suspend: bool = False) -> None:
        """Takes no further messages. What is running is finished, or saved and put back if it is to ``suspend``."""
        self._stop.set()
        if suspend:
            self._app.suspend()
        with self._free:
            self._free.notify_all()

    def run(self) -> int:
        """Loads the model, then serves until stopped. Returns the exit status.

        No message is taken while it loads: nothing would keep it from others, and it would count as received.
        """
        self._loading.start()
        with ThreadPoolExecutor(MOST_TASKS, thread_name_prefix="task") as pool:
            while free := self._wait_for_place():
                for message in self._receive(free):
                    with self._free:
                        self._running += 1
                    pool.submit(self._serve, message)
        if not self.failed:
            return 0
        for message in self._received(MOST_MESSAGES, 0):
            self._serve(message)  # without a model: recorded as pending, and back
        return 1

    def _load(self) -> None:
        try:
            capacity = self._app.engine().capacity
        except ModelUnavailable:
            self._failed.set()
            return self.stop()
        with self._free:
            self._capacity = capacity
            self._free.notify_all()
        return None

    def _wait_for_place(self) -> int:
        """The number of free places, once there is one; 0 when it is time to stop."""
        with self._free:
            self._free.wait_for(lambda: self._stop.is_set() or self._running < self._capacity)
            return 0 if self._stop.is_set() else self._capacity - self._running

    def _receive(self, free: int) -> list[Message]:
        messages = self._received(min(free, MOST_MESSAGES), self._poll_seconds)
        if not self._stop.is_set():
            return messages
        for message in messages:
            self._give_back(message)
        return []

    def _received(self, most: int, wait: int) -> list[Message]:
        try:
            return self._queue.receive(most, wait)
        except ServiceFault as fault:
            logger.warning("no messages received", fault=fault.message, cause=str(fault.__cause__))
            self._stop.wait(PAUSE_AFTER_FAULT)
            return []

    def _give_back(self, message: Message) -> None:
        try:
            self._queue.hide(message.receipt_handle, 0)
        except ServiceFault as fault:
            logger.warning("the message comes back at the queue's own time", fault=fault.message)

    def _serve(self, message: Message) -> None:
        try:
            response = self._app.handle(event_of(message), WorkerContext(message.message_id))
            if not response["batchItemFailures"]:
                # A crash before the delete brings the message back to a terminal record: nothing runs again.
                self._queue.delete(message.receipt_handle)
        except ServiceFault as fault:
            logger.warning("the message was not deleted and comes back", fault=fault.message)
        except Exception:
            logger.exception("the handler broke", message_id=message.message_id)
        finally:
            with self._free:
                self._running -= 1
                self._free.notify_all()


def event_of(message: Message) -> dict[str, Any]:
    """The SQS event that Lambda would make of the message."""
    record = {
        "messageId": message.message_id,
        "receiptHandle": message.receipt_handle,
        "body": message.body,
        "attributes": dict(message.attributes),
        "messageAttributes": {},
        "eventSource": "aws:sqs",
        "eventSourceARN": "arn:aws:sqs:local:000000000000:worker",
        "awsRegion": "local",
    }
    return {"Records": [record]}


def main(settings: Settings | None = None) -> int:
    """Runs a worker until SIGTERM or SIGINT. Returns the exit status."""
    settings = settings or Settings.load()
    logger.setLevel(settings.log_level)
    worker = Worker(generate.build(settings), TaskQueue(settings))

    def on_signal(*_: object) -> None:
        # Not from here: a handler interrupts the main thread, which may hold the lock that stop() needs.
        threading.Thread(target=worker.stop, kwargs={"suspend": True}, name="stop").start()
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, signal.SIG_DFL)  # a second one ends the process at once

    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, on_signal)
    notices = Notices(settings, lambda: worker.stop(suspend=True))
    notices.start()
    protection = Protection(settings, lambda: worker.busy)
    protection.start()
    status = worker.run()
    notices.stop()
    protection.stop()
    if worker.loading:
        # Told to stop in the middle of loading: nothing is held, and the import of torch cannot be interrupted.
        sys.stderr.flush()
        os._exit(status)
    return status
