"""The Lambda handler for the queue: from messages to pictures in S3."""

from __future__ import annotations

import sys
from typing import Any

from .logs import warm
from .work.serving import build

app = warm(build)


def handle(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """Serves an SQS event; answers which of its messages go back (``batchItemFailures``).

    The pipeline is loaded once per warm process, on first use.
    """
    response = app().handle(event, context)
    if app().broken is not None:
        # Lambda starts a fresh environment. The messages come back: to terminal records, or to tasks given back.
        sys.exit(1)
    return response
