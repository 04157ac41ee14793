"""The Lambda handler for a schedule: finds stuck tasks and what was left lying, and mends it."""

from __future__ import annotations

from typing import Any

from .care.rounds import build
from .logs import warm

app = warm(build)


def handle(_event: dict[str, Any], _context: Any) -> dict[str, Any]:
    """Answers how many findings there were, and how many were mended."""
    findings = app().examine(fix=True)
    return {"found": len(findings), "mended": sum(finding.mended for finding in findings)}
