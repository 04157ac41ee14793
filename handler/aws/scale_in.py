"""Asks ECS for scale-in protection while this worker is busy, so that scaling in stops an idle one.

Source of the protocol: Amazon ECS developer guide, "Amazon ECS task scale-in protection endpoint" (PUT to
``$ECS_AGENT_URI/task-protection/v1/state``). It keeps away scaling and deployments, not a spot interruption.
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
EXPIRES_MINUTES = 10
RENEW_AFTER = EXPIRES_MINUTES * 60 / 2
"""Seconds. Protection is renewed rather than granted for long, so that it ends soon after this process dies."""
TIMEOUT = 5.0


class ScaleInProtection:
    """Checks ``busy`` in a thread of its own every ``every`` seconds, and tells ECS when it changes."""

    def __init__(self, settings: Settings, busy: Callable[[], bool], *, every: float = LOOK_EVERY) -> None:
        self._agent = settings.ecs_agent_uri.rstrip("/")
        self._busy, self._every = busy, every
        self._told = False
        self._told_at = 0.0
        self._over = threading.Event()

    def start(self) -> None:
        """Starts the thread; outside ECS does nothing."""
        if self._agent:
            threading.Thread(target=self._watch, name="protection", daemon=True).start()

    def stop(self) -> None:
        self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(self._every):
            busy = self._busy()
            if busy != self._told or (busy and time.monotonic() - self._told_at > RENEW_AFTER):
                self._tell(busy)

    def _tell(self, busy: bool) -> None:
        """Tells ECS. After a failure the next check tries again; a worker stopped meanwhile checkpoints its tasks."""
        state = (
            {"ProtectionEnabled": True, "ExpiresInMinutes": EXPIRES_MINUTES} if busy else {"ProtectionEnabled": False}
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
            logger.warning("ECS was not told whether this worker is busy", busy=busy, fault=str(fault))
            return
        self._told, self._told_at = busy, time.monotonic()
