"""The log: one JSON object a line on stderr, so that a command's output stays its own."""

from __future__ import annotations

import sys

from aws_lambda_powertools import Logger

logger = Logger(service="darkroom", stream=sys.stderr)
