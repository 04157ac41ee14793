"""Limits of queries for results: page size, tags, long polls."""

from __future__ import annotations

import re

from .ids import TASK_ID

MAX_PAGE = 100
MAX_TAG = 64
"""Characters."""
MAX_WAIT = 20
"""Seconds of a long poll, of the 29 that API Gateway grants a call."""
CURSOR = re.compile(rf"\d{{13}}-{TASK_ID}")
"""A cursor is a name of the index: the next page begins after it."""
