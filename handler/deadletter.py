"""The Lambda handler for the dead-letter queue: marks the tasks of its messages as failed."""

from __future__ import annotations

from typing import Any

from .care.deadletters import build
from .logs import warm

app = warm(build)


def handle(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """Serves an SQS event. Returns the messages to keep as ``batchItemFailures``."""
    return app().handle(event, context)
