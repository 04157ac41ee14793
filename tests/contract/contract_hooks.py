"""What schemathesis has to know of the API and OpenAPI cannot say."""

from __future__ import annotations

import re
from typing import Any

import schemathesis

WHOLE = ("num_inference_steps", "seed", "width", "height", "num_images", "quality", "n", "output_compression")


@schemathesis.hook
def filter_case(context: Any, case: Any) -> bool:
    """A body's ``task_id`` and the Idempotency-Key name one task: two different names are refused. And to JSON Schema
    ``7.0`` is an integer, to us a mistake: nothing is converted in silence.
    """
    body = case.body if isinstance(case.body, dict) else {}
    key = next((value for name, value in (case.headers or {}).items() if name.lower() == "idempotency-key"), None)
    if any(isinstance(body.get(name), float) and body[name].is_integer() for name in WHOLE):
        return False
    if (size := re.fullmatch(r"(\d+)x(\d+)", str(body.get("size")))) and not all(
        32 <= int(side) <= 128 for side in size.groups()
    ):
        return False  # a string's limits, which no schema can say
    if size and any(int(side) % 8 for side in size.groups()):
        return False
    query = case.query or {}
    if query.get("unseen") == query.get("purge") == "1":
        return False  # of two parameters, OpenAPI cannot say that they exclude each other
    named = body.get("task_id")
    return key is None or named is None or named == key
