"""What the chaos proof prints last: the fleet's figures as JSON, after pytest's own summary."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

FIGURES: list[dict[str, Any]] = []


def pytest_unconfigure(config: pytest.Config) -> None:
    for figures in FIGURES:
        print(json.dumps(figures))
