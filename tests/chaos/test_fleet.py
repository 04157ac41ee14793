"""The fleet under fire, one seed and 60 tasks. ``make chaos SEED=3 TASKS=300`` runs it with others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from .conftest import FIGURES
from .figures import figures
from .report import table
from .run import run

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.chaos
MOST_WASTED = 0.15


def test_exactly_one_picture_for_each_task_whatever_breaks(tmp_path: Path) -> None:
    found = figures(run(1, 60, tmp_path, limit=300))
    FIGURES.append(found)
    table(found)
    assert found["violations"] == []
    assert found["kills"]["total"] == 12
    assert found["faults"]["total"] >= 100
    assert found["wasted_share"] <= MOST_WASTED
