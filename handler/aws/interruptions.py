"""Watches for signs that this host will stop: a stop file, EC2's spot interruption notice, or ECS stopping the task.

Sources of the protocols: EC2 user guide, "Spot Instance interruption notices" and "Use IMDSv2" (a token by PUT, sent by
GET of ``/latest/meta-data/spot/instance-action``, 404 until there is one); ECS developer guide, "Task metadata endpoint
version 4" (``${ECS_CONTAINER_METADATA_URI_V4}/task``: ``DesiredStatus`` becomes STOPPED).
"""

from __future__ import annotations

import json
import threading
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

from ..logs import logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..settings import Settings

LOOK_EVERY = 5.0
"""Seconds between polls; EC2 gives two minutes' notice and recommends polling every five seconds."""
TIMEOUT = 2.0


class InterruptionNotices:
    """Polls in a thread of its own, every ``every`` seconds. At the first notice it calls ``tell`` once and ends."""

    def __init__(self, settings: Settings, tell: Callable[[], None], *, every: float = LOOK_EVERY) -> None:
        self._stop_file = Path(settings.stop_file) if settings.stop_file else None
        self._metadata = settings.aws_ec2_metadata_service_endpoint.rstrip("/") if settings.spot_notices else ""
        self._ecs = settings.ecs_container_metadata_uri_v4.rstrip("/")
        self._tell, self._every = tell, every
        self._over = threading.Event()

    def start(self) -> None:
        """Starts the thread if the settings name anything to watch."""
        if self._stop_file or self._metadata or self._ecs:
            threading.Thread(target=self._watch, name="notices", daemon=True).start()

    def stop(self) -> None:
        self._over.set()

    def notice(self) -> str | None:
        """Where a notice was found, as words for the log; None if there is none."""
        if self._stop_file and self._stop_file.exists():
            return f"the stop file {self._stop_file}"
        if self._metadata and self._interrupted():
            return "EC2's spot interruption notice"
        if self._ecs and self._stopped():
            return "ECS wants this task to stop"
        return None

    def _watch(self) -> None:
        while not self._over.wait(self._every):
            if notice := self.notice():
                logger.warning("the host is about to go", notice=notice)
                self._tell()
                return

    def _interrupted(self) -> bool:
        try:
            token = _call(self._metadata + "/latest/api/token", "PUT", {"X-aws-ec2-metadata-token-ttl-seconds": "60"})
            _call(self._metadata + "/latest/meta-data/spot/instance-action", "GET", {"X-aws-ec2-metadata-token": token})
        except (OSError, ValueError):  # 404: none yet; any other error: unknown, so none
            return False
        return True

    def _stopped(self) -> bool:
        try:
            return bool(json.loads(_call(self._ecs + "/task", "GET", {})).get("DesiredStatus") == "STOPPED")
        except (OSError, ValueError, AttributeError):  # unknown; ECS sends SIGTERM as well
            return False


def _call(url: str, method: str, headers: dict[str, str]) -> str:
    request = urllib.request.Request(url, headers=headers, method=method)  # noqa: S310
    with urllib.request.urlopen(request, timeout=TIMEOUT) as reply:  # noqa: S310
        return str(reply.read().decode())
