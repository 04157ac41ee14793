"""The worker: long-polls the queue and serves its messages as the Lambda handler does, in a container or on a laptop.

Exit status: 0 after a stop; 1 if the model cannot be loaded, or the device or the disk has failed. Its host then starts
another worker; no message is lost.
"""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING

from .aws.interruptions import InterruptionNotices
from .aws.queue import TaskQueue
from .aws.scale_in import ScaleInProtection
from .care import deadletters
from .errors import ModelUnavailable, ServiceFault
from .logs import configured, logger
from .work import liveness, serving
from .work.polling import POLL_SECONDS, Poller, serve_dead_letters
from .work.serving import MOST_TASKS
from .work.signals import Signals, end

if TYPE_CHECKING:
    from .aws.queue import Message
    from .errors import DarkroomError
    from .settings import Settings
    from .work.serving import Generate

AHEAD = 1
"""Messages that are received though all slots are taken; they are kept hidden."""
MOST_MESSAGES = 10
"""The most messages that SQS returns per request."""
FINISH_WITHIN = 5.0
"""Seconds. When the worker stops, a task that will be done by then is finished: resuming it would cost more."""
LAST_SECONDS = 5.0
"""The last seconds of the grace period: what still runs then is checkpointed and released in the middle of a step."""


class Worker:
    """One process with one engine. Serves as many messages at a time as the engine has slots."""

    def __init__(
        self, app: Generate, queue: TaskQueue, settings: Settings, *, poll_seconds: int = POLL_SECONDS
    ) -> None:
        self._app, self._queue, self._grace = app, queue, settings.shutdown_grace
        self._alive_file = settings.alive_file
        self._stop = threading.Event()
        # The visibility timeout is as long as a lease: if this process is killed, both end together.
        self._poller = Poller(queue, self._stop, hidden=settings.lease, wait=poll_seconds)
        self._free = threading.Condition()
        self._running = 0
        self._in_hand = 0
        """Of those that run: the ones that are drawn, or wait to be. The others encode, upload and commit."""
        self._capacity = 0
        self._failed = threading.Event()
        self._load_fault: ModelUnavailable | None = None
        self._released_all = False
        self._alarm: threading.Timer | None = None
        self._loading = threading.Thread(target=self._load, name="load", daemon=True)
        app.on_broken = lambda: self.stop("it is broken", suspend=True)

    @property
    def failed(self) -> bool:
        """Whether the worker ends because of a failure of its own: of the model, the device or the disk."""
        return self._failed.is_set() or self._app.broken is not None

    @property
    def fault(self) -> DarkroomError | None:
        """What it failed of."""
        return self._load_fault or self._app.broken

    @property
    def loaded(self) -> bool:
        """Whether it has a model, and takes messages."""
        return self._capacity > 0

    @property
    def busy(self) -> bool:
        """Whether the model is loading or messages are being served."""
        return self._loading.is_alive() or self._running > 0

    def wait_failed(self) -> None:
        """Blocks until the model could not be loaded; for ever if it could."""
        self._failed.wait()

    def stop(self, why: str = "", *, suspend: bool = False, finish_within: float = FINISH_WITHIN) -> None:
        """Takes no further messages. Running tasks are finished; with ``suspend`` they are checkpointed and requeued,
        unless they will be done within ``finish_within`` seconds. ``why`` is logged.
        """
        if why:
            logger.info("the worker stops", why=why)
        self._stop.set()
        if suspend:
            self._app.suspend(min(finish_within, self._grace / 2))
        with self._free:
            if suspend and self._alarm is None:
                self._alarm = threading.Timer(max(self._grace - LAST_SECONDS, self._grace / 2), self.release_all)
                self._alarm.daemon = True
                self._alarm.start()
            self._free.notify_all()

    def run(self) -> int:
        """Loads the model, then serves until stopped. Returns the exit status.

        No message is received while the model loads: it would become visible again and count as one more receipt.
        """
        self._loading.start()
        while free := self._wait_for_slot():
            for message in self._poller.receive(min(free, MOST_MESSAGES)):
                with self._free:
                    self._running += 1
                    self._in_hand += 1
                self._app.threads.submit(self._serve, message)
        with self._free:
            self._free.wait_for(lambda: self._running == 0 or self._released_all)
            if self._alarm is not None:
                self._alarm.cancel()
        if self._failed.is_set():
            for message in self._poller.receive_now(MOST_MESSAGES):
                with self._free:
                    self._running += 1
                    self._in_hand += 1
                self._serve(message)  # without a model: recorded as pending, and returned to the queue
        return int(self.failed)

    def wait_idle(self, timeout: float) -> bool:
        """Blocks until nothing is served any more, for ``timeout`` seconds at most. Returns whether that is so."""
        with self._free:
            return self._free.wait_for(lambda: self._running == 0, timeout)

    def release_all(self) -> None:
        """Checkpoints and releases what still runs, in the middle of a step, and no longer waits: when the grace period
        is almost over, or at a second signal.
        """
        self._app.release_all()
        with self._free:
            self._released_all = True
            self._free.notify_all()

    def _load(self) -> None:
        try:
            capacity = self._app.engine().capacity
        except ModelUnavailable as fault:
            self._load_fault = fault
            self._failed.set()
            return self.stop("its model cannot be loaded")
        with self._free:
            self._capacity = capacity
            self._free.notify_all()
        return None

    def _wait_for_slot(self) -> int:
        """Waits until there is room for a message and returns for how many; 0 once stopped. Tells meanwhile that it is
        alive.
        """
        while True:
            self._tell_alive()
            with self._free:
                self._free.wait_for(lambda: self._stop.is_set() or self._room() > 0, POLL_SECONDS)
                if self._stop.is_set():
                    return 0
                if (room := self._room()) > 0:
                    return room

    def _room(self) -> int:
        """The engine's free slots and one message more, so that the engine never waits for a poll."""
        ahead = AHEAD if self._capacity else 0
        return min(self._capacity + ahead - self._in_hand, MOST_TASKS - self._running)

    def _tell_alive(self) -> None:
        """To its container, unless it is broken or SQS did not answer the last poll; and to the API's health."""
        if self._app.broken is None and self._poller.answered:
            liveness.touch(self._alive_file)
        self._app.renew()

    def _serve(self, message: Message) -> None:
        drawn = threading.Event()

        def leaves() -> None:
            """The engine's slot is free, or none was taken: the next message may come, while this one's task ends."""
            with self._free:
                self._in_hand -= not drawn.is_set()
                drawn.set()
                self._free.notify_all()

        try:
            if self._app.serve(message, leaves):
                # After a crash before the delete the message is delivered again, to a terminal record: nothing is
                # rerun.
                self._queue.delete(message.receipt_handle)
        except ServiceFault as fault:
            logger.warning("the message was not deleted and comes back", fault=fault.message)
        except Exception:
            logger.exception("the handler broke", message_id=message.message_id)
        finally:
            leaves()
            with self._free:
                self._running -= 1
                self._free.notify_all()


def main(settings: Settings | None = None) -> int:
    """Runs a worker until SIGTERM or SIGINT. Returns the exit status."""
    settings = configured(settings)
    logger.info(
        "the worker starts",
        queue=settings.queue_url,
        bucket=settings.bucket,
        model=settings.model_name,
        device=settings.device,
        dtype=settings.dtype,
    )
    worker = Worker(serving.build(settings), TaskQueue(settings), settings)
    Signals(partial(worker.stop, "a signal", suspend=True), worker.release_all).listen()
    notices = InterruptionNotices(settings, partial(worker.stop, "its host told it to", suspend=True))
    notices.start()
    if settings.dead_letter_url:
        serve_dead_letters(deadletters.build(settings), TaskQueue(settings, settings.dead_letter_url))
    protection = ScaleInProtection(settings, lambda: worker.busy)
    protection.start()
    status = worker.run()
    logger.info("the worker has stopped", status=status)
    notices.stop()
    protection.stop()
    if worker.busy:
        end(status)  # all tasks are released
    return status
