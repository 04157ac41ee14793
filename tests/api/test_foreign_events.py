"""Events that are no HTTP requests at the doors: answered, told in the log, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from handler.api.routing import is_http

from ..support import http_event

if TYPE_CHECKING:
    import logging


FOREIGN: list[Any] = [{}, {"source": "aws.events"}, {"version": "0", "detail": {}}, {"warmup": 1}]
FOREIGN += [{"version": "2.0"}, "ping", [1], None, 7]


@pytest.mark.parametrize("event", FOREIGN, ids=str)
def test_what_is_no_request(event: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        assert not is_http(event)
    line: logging.LogRecord = caplog.records[-1]
    assert line.getMessage() == "an event that is none of ours"


@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_what_is_one(version: str) -> None:
    assert is_http(http_event("GET", "/health", version=version))
