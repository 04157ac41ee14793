"""A compute thread, a batcher of a network that doubles, and what the log says meanwhile."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from handler.engine.batcher import Batcher
from handler.engine.compute import Compute
from handler.logs import logger

from .callers import Doubles

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def compute() -> Iterator[Compute]:
    made = Compute()
    yield made
    made.close()


@pytest.fixture
def batcher(compute: Compute) -> Batcher:
    made = Batcher(Doubles(), compute)
    compute.serve(made)
    return made


@pytest.fixture
def told() -> Iterator[list[logging.LogRecord]]:
    """The log's lines from now on."""

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    records: list[logging.LogRecord] = []
    handler = Kept()
    logger.addHandler(handler)
    yield records
    logger._logger.removeHandler(handler)
