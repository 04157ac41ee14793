"""The Lambda handler for the dead-letter queue: writes down what the queue has given up on."""

from __future__ import annotations

from typing import Any

from .care.deadletters import build
from .logs import warm

app = warm(build)


def handle(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """Serves an SQS event; answers which of its messages stay (``batchItemFailures``)."""
    return app().handle(event, context)
