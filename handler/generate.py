"""The Lambda handler for the task queue: draws the pictures and writes them to S3."""

from __future__ import annotations

import sys
from typing import Any

from .logs import warm
from .work.serving import build

app = warm(build)


def handle(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """Serves an SQS event. Returns the messages to retry as ``batchItemFailures``.

    The pipeline is loaded once per warm process, on first use.
    """
    response = app().handle(event, context)
    if app().broken is not None:
        # Lambda starts a new environment and delivers the messages again: to terminal records, or to released tasks.
        sys.exit(1)
    return response
