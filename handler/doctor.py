"""The Lambda handler for a schedule: finds and repairs stuck tasks, and deletes orphaned images and checkpoints."""

from __future__ import annotations

from typing import Any

from .care.rounds import build
from .logs import warm

app = warm(build)


def handle(_event: dict[str, Any], _context: Any) -> dict[str, Any]:
    """Returns how many findings there were, and how many were repaired."""
    findings = app().examine(fix=True)
    return {"found": len(findings), "mended": sum(finding.mended for finding in findings)}
