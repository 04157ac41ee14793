"""The table of ``make families``, which several processes fill."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _pytest.terminal import TerminalReporter


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    reports = [one for kind in ("passed", "failed") for one in terminalreporter.getreports(kind)]
    rows = sorted(str(value) for one in reports for name, value in one.user_properties if name == "row")
    for row in rows:
        terminalreporter.write_line(row)
