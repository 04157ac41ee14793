"""The worker: long-polls the queue and serves its messages as the Lambda handler does.

It is the GPU container and the laptop. It exits 0 when told to stop, 1 when the model cannot be loaded or the device
or the disk has gone: its host then starts another, and no message was lost.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import TYPE_CHECKING

from .aws.interruptions import InterruptionNotices
from .aws.queue import TaskQueue
from .aws.scale_in import ScaleInProtection
from .care import deadletters
from .errors import ModelUnavailable, ServiceFault
from .logs import configured, logger
from .work import liveness, serving
from .work.polling import POLL_SECONDS, Poller, serve_dead_letters

if TYPE_CHECKING:
    from .aws.queue import Message
    from .settings import Settings
    from .work.serving import Generate

MOST_MESSAGES = 10
"""What SQS gives at a time."""
FINISH_WITHIN = 5.0
"""Seconds. A task that will be done by then is finished when the worker stops: saving and resuming it costs more."""
LAST_SECONDS = 5.0
"""Of the grace: what still runs then is saved and given back in the middle of a step."""


class Worker:
    """One process, one engine, as many messages at a time as the engine has places."""

    def __init__(
        self, app: Generate, queue: TaskQueue, settings: Settings, *, poll_seconds: int = POLL_SECONDS
    ) -> None:
        self._app, self._queue, self._grace = app, queue, settings.shutdown_grace
        self._alive_file = settings.alive_file
        self._stop = threading.Event()
        # Hidden for no longer than a lease at a time: when this process is killed, both end together.
        self._poller = Poller(queue, self._stop, hidden=settings.lease, wait=poll_seconds)
        self._free = threading.Condition()
        self._running = 0
        self._capacity = 0
        self._failed = threading.Event()
        self._released_all = False
        self._alarm: threading.Timer | None = None
        self._loading = threading.Thread(target=self._load, name="load", daemon=True)
        app.on_broken = lambda: self.stop(suspend=True)

    @property
    def failed(self) -> bool:
        """Whether the worker ended, or is ending, because of itself: no model, no device, no disk."""
        return self._failed.is_set() or self._app.broken is not None

    @property
    def busy(self) -> bool:
        """Whether something is left that only the end of the process stops: a load, or pipelines given up on."""
        return self._loading.is_alive() or self._running > 0

    def wait_failed(self) -> None:
        """Returns when the model could not be loaded; never otherwise."""
        self._failed.wait()

    def stop(self, *, suspend: bool = False) -> None:
        """Takes no further messages. What is running is finished; or, to ``suspend``, saved and put back unless it is
        almost done.
        """
        self._stop.set()
        if suspend:
            self._app.suspend(min(FINISH_WITHIN, self._grace / 2))
        with self._free:
            if suspend and self._alarm is None:
                self._alarm = threading.Timer(max(self._grace - LAST_SECONDS, self._grace / 2), self._release_all)
                self._alarm.daemon = True
                self._alarm.start()
            self._free.notify_all()

    def run(self) -> int:
        """Loads the model, then serves until stopped. Returns the exit status.

        No message is taken while it loads: nothing would keep it from others, and it would count as received.
        """
        self._loading.start()
        while free := self._wait_for_slot():
            for message in self._poller.receive(min(free, MOST_MESSAGES)):
                with self._free:
                    self._running += 1
                self._app.threads.submit(self._serve, message)
        with self._free:
            self._free.wait_for(lambda: self._running == 0 or self._released_all)
            if self._alarm is not None:
                self._alarm.cancel()
        if self._failed.is_set():
            for message in self._poller.receive_now(MOST_MESSAGES):
                self._serve(message)  # without a model: recorded as pending, and back
        return int(self.failed)

    def _release_all(self) -> None:
        """The grace is almost over: what still runs is saved as far as it is, given back, and left alone."""
        self._app.release_all()
        with self._free:
            self._released_all = True
            self._free.notify_all()

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

    def _wait_for_slot(self) -> int:
        """The number of free places, once there is one; 0 when it is time to stop. Shows that it is alive meanwhile."""
        with self._free:
            liveness.touch(self._alive_file)
            while not self._free.wait_for(lambda: self._stop.is_set() or self._running < self._capacity, POLL_SECONDS):
                liveness.touch(self._alive_file)
            return 0 if self._stop.is_set() else self._capacity - self._running

    def _serve(self, message: Message) -> None:
        try:
            if self._app.serve(message):
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


def main(settings: Settings | None = None) -> int:
    """Runs a worker until SIGTERM or SIGINT. Returns the exit status."""
    settings = configured(settings)
    worker = Worker(serving.build(settings), TaskQueue(settings), settings)

    def on_signal(*_: object) -> None:
        # Not from here: a handler interrupts the main thread, which may hold the lock that stop() needs.
        threading.Thread(target=worker.stop, kwargs={"suspend": True}, name="stop").start()
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, signal.SIG_DFL)  # a second one ends the process at once

    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, on_signal)
    notices = InterruptionNotices(settings, lambda: worker.stop(suspend=True))
    notices.start()
    if settings.dead_letter_url:
        serve_dead_letters(deadletters.build(settings), TaskQueue(settings, settings.dead_letter_url))
    protection = ScaleInProtection(settings, lambda: worker.busy)
    protection.start()
    status = worker.run()
    notices.stop()
    protection.stop()
    if worker.busy:
        # Neither the import of torch nor a pipeline in the middle of a step can be interrupted; nothing is held by now.
        sys.stderr.flush()
        os._exit(status)
    return status
