"""No log of the faults that are made on purpose; and what the chaos proof prints last: the fleet's figures as JSON,
after pytest's own summary.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from handler.logs import logger

if TYPE_CHECKING:
    from collections.abc import Iterator

FIGURES: list[dict[str, Any]] = []


def pytest_unconfigure(config: pytest.Config) -> None:
    for figures in FIGURES:
        print(json.dumps(figures))


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    level = logger.log_level
    logger.setLevel("CRITICAL")
    yield
    logger.setLevel(level)
