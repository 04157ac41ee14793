"""Asks ECS for scale-in protection while this worker is busy, so that scaling in stops an idle one.

Source of the protocol: Amazon ECS developer guide, "Amazon ECS task scale-in protection endpoint" (PUT to
``$ECS_AGENT_URI/task-protection/v1/state``). It keeps away scaling and deployments, not a spot interruption.

A fleet that is never idle would thereby never be updated: CloudFormation gives up after three hours. So a busy worker
is protected for some minutes at a time and then open for a while. Stopped in that while it saves its tasks' steps, and
another worker goes on with them.
"""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from typing import TYPE_CHECKING

from ..logs import logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..settings import Settings

LOOK_EVERY = 2.0
EXPIRES_MINUTES = 5
"""Protection ends by itself soon after this process dies."""
PROTECTED_FOR = 240.0
OPEN_FOR = 60.0
"""Seconds that a busy worker is protected, and after that open, in turns. An update ends some minutes after its new
workers are ready, and one scaling in that has a choice finds an idle worker first for four fifths of the time."""
TIMEOUT = 5.0


class ScaleInProtection:
    """Checks ``busy`` in a thread of its own every ``every`` seconds, and tells ECS when it changes.

    ``protected_for``, ``open_for``: seconds that a worker which stays busy is protected and open, in turns.
    """

    def __init__(
        self,
        settings: Settings,
        busy: Callable[[], bool],
        *,
        every: float = LOOK_EVERY,
        protected_for: float = PROTECTED_FOR,
        open_for: float = OPEN_FOR,
    ) -> None:
        self._agent = settings.ecs_agent_uri.rstrip("/")
        self._busy, self._every = busy, every
        self._protected_for, self._open_for = protected_for, open_for
        self._told = False
        self._since = 0.0
        """When it began to be protected; monotonic."""
        self._open_until = 0.0
        self._over = threading.Event()

    def start(self) -> None:
        """Starts the thread; outside ECS does nothing."""
        if self._agent:
            threading.Thread(target=self._watch, name="protection", daemon=True).start()

    def stop(self) -> None:
        self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(self._every):
            wanted = self._wanted(time.monotonic())
            if wanted != self._told:
                self._tell(wanted)

    def _wanted(self, now: float) -> bool:
        if not self._busy():
            self._open_until = 0.0
            return False
        if self._told and now - self._since >= self._protected_for:
            self._open_until = now + self._open_for
        return now >= self._open_until

    def _tell(self, protected: bool) -> None:
        """Tells ECS. After a failure the next check tries again; a worker stopped meanwhile checkpoints its tasks."""
        state = (
            {"ProtectionEnabled": True, "ExpiresInMinutes": EXPIRES_MINUTES}
            if protected
            else {"ProtectionEnabled": False}
        )
        request = urllib.request.Request(  # noqa: S310
            f"{self._agent}/task-protection/v1/state",
            data=json.dumps(state).encode(),
            headers={"Content-Type": "application/json"},
            method="PUT",
        )
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as reply:  # noqa: S310
                answer = json.load(reply)
            if "protection" not in answer:  # refused with 200: {"failure": …} or {"error": …}
                raise ValueError(json.dumps(answer))
        except (OSError, ValueError) as fault:
            logger.warning("ECS was not told whether to spare this worker", spare=protected, fault=str(fault))
            return
        self._told, self._since = protected, time.monotonic()
