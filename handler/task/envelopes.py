"""What other services put around a request on its way to the queue, taken off again.

Sources: Amazon SNS developer guide, "HTTP/HTTPS notification JSON format" (subscriptions of a queue without raw message
delivery have the same); Amazon EventBridge user guide, "Events" and "EventBridge Pipes" (a pipe from a queue sends the
record as Lambda gets it). An envelope is recognised by all that it must have and by having nothing else: a request that
merely looks a little like one is refused by its own unknown fields.
"""

from __future__ import annotations

import json
from typing import Any

DEEPEST = 3
"""Envelopes in envelopes: an event that SNS was sent, by way of a pipe."""
MOST_KEPT = 4096
"""Bytes that are kept of a message that holds no request."""
SNS_ALWAYS = frozenset({"Type", "MessageId", "TopicArn", "Message", "Timestamp"})
SNS_PERHAPS = frozenset(
    {"Subject", "SignatureVersion", "Signature", "SigningCertURL", "UnsubscribeURL", "MessageAttributes"}
)
EVENT_ALWAYS = frozenset({"version", "id", "detail-type", "source", "account", "time", "region", "resources", "detail"})
EVENT_PERHAPS = frozenset({"replay-name", "trace-header"})
RECORD_ALWAYS = frozenset({"messageId", "receiptHandle", "body", "attributes", "eventSource", "eventSourceARN"})
RECORD_PERHAPS = frozenset({"messageAttributes", "md5OfBody", "md5OfMessageAttributes", "awsRegion"})


def unwrapped(body: str) -> str:
    """The request that a message's body is or holds. A body in no envelope is returned as it is."""
    for _ in range(DEEPEST):
        held = _held(body)
        if held is None:
            break
        body = held
    return body


def beginning(body: str) -> str:
    """The first MOST_KEPT bytes of a body, at most, as text."""
    return body.encode("utf-8", "surrogatepass")[:MOST_KEPT].decode("utf-8", "ignore")


def _held(body: str) -> str | None:
    """What is in the outermost envelope; None if there is none."""
    try:
        outer: Any = json.loads(body) if body.lstrip().startswith("{") else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(outer, dict):
        return None
    if _is(outer, SNS_ALWAYS, SNS_PERHAPS) and outer["Type"] == "Notification":
        held = outer["Message"]
    elif _is(outer, EVENT_ALWAYS, EVENT_PERHAPS):
        held = json.dumps(outer["detail"]) if isinstance(outer["detail"], dict) else None
    elif _is(outer, RECORD_ALWAYS, RECORD_PERHAPS) and outer["eventSource"] == "aws:sqs":
        held = outer["body"]
    else:
        return None
    return held if isinstance(held, str) else None


def _is(outer: dict[str, Any], always: frozenset[str], perhaps: frozenset[str]) -> bool:
    return always <= outer.keys() <= always | perhaps
