"""Ctrl-C and SIGTERM: the first saves what is drawn, the second ends at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

BOTH = (signal.SIGINT, signal.SIGTERM)
AT_ONCE = 2.0
"""Seconds that the second signal waits for what it gives back."""


class Signals:
    """Made in the main thread. ``number``: the signal that came, 0 before; ``came`` is set then.

    At the first signal ``suspend`` is called, in a thread: whoever is interrupted may hold a lock that it needs. At the
    second one ``release``, and the process ends.
    """

    def __init__(self, suspend: Callable[[], None], release: Callable[[], None]) -> None:
        self._suspend, self._release = suspend, release
        self.number = 0
        self.came = threading.Event()

    @property
    def status(self) -> int:
        """The exit status, as a shell tells it: 130 or 143."""
        return 128 + self.number

    def listen(self) -> Signals:
        """From now on, in place of whoever listened, until ``leave``."""
        self._before = {name: signal.signal(name, self._on_signal) for name in BOTH}
        return self

    def leave(self) -> None:
        """Gives the signals back. Not after one came: a second one is to end the process all the same."""
        if not self.number:
            for name, handler in self._before.items():
                signal.signal(name, handler)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self.number:
            _in_thread(self._release).join(AT_ONCE)
            end(128 + number)
        self.number = number
        self.came.set()
        _in_thread(self._suspend)


def _in_thread(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, name="signal", daemon=True)
    thread.start()
    return thread


def end(status: int) -> None:
    """Ends the process at once: an import of torch, a load or a step cannot be interrupted, and Python would wait for
    its threads, or abort where one is inside torch.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
