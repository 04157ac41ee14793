"""What every benchmark prints with: a table for people, or with ``JSON=1`` one JSON object a line; and fresh processes.

All figures of a table come from one run. A ratio is a value over the one it is set against.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

WIDTH = 120
LONGEST = 900
"""Seconds after which a fresh process counts as hung."""


@dataclass(frozen=True)
class Against:
    """What a value is set against: a name, and its value in the same unit."""

    name: str
    value: float


@dataclass(frozen=True)
class Row:
    """A line of the JSON, and of the table."""

    benchmark: str
    measure: str
    value: float
    unit: str
    against: Against | None


class Report:
    """Collects the rows and remarks of one benchmark; ``show`` prints them."""

    def __init__(self, benchmark: str) -> None:
        self._benchmark = benchmark
        self._rows: list[Row] = []
        self._details: list[Row] = []
        self._remarks: list[str] = []
        self._clock = Clock()

    def add(self, measure: str, value: float, unit: str, against: tuple[str, float] | None = None) -> None:
        self._rows.append(Row(self._benchmark, measure, value, unit, Against(*against) if against else None))

    def detail(self, measure: str, value: float, unit: str) -> None:
        """A row of the JSON only."""
        self._details.append(Row(self._benchmark, measure, value, unit, None))

    def remark(self, text: str) -> None:
        """A line below the table; left out of the JSON."""
        self._remarks.append(text)

    def show(self) -> None:
        self.add("other processes' share of the processors meanwhile", 100 * self._clock.others(), "%")
        if os.environ.get("JSON") == "1":
            for row in self._rows + self._details:
                print(json.dumps(asdict(row)), flush=True)
            return
        table = Table("measure", title=self._benchmark)
        table.add_column("value", justify="right", no_wrap=True)
        table.add_column("against")
        table.add_column("ratio", justify="right", no_wrap=True)
        for row in self._rows:
            value = f"{figure(row.value)} {row.unit}".rstrip()
            if row.against is None:
                table.add_row(row.measure, value, "", "")
                continue
            ratio = figure(row.value / row.against.value) if row.against.value else ""
            table.add_row(row.measure, value, f"{row.against.name}: {figure(row.against.value)}", ratio)
        console = wide_console()
        console.print(table)
        for remark in self._remarks:
            console.print(remark, highlight=False, markup=False)


class Clock:
    """Tells how much of the processors went to processes that are neither this one nor its ended children."""

    def __init__(self) -> None:
        self._began = self._read()

    def others(self) -> float:
        """0 to 1 since the beginning. Above a few hundredths the figures are not to be relied on."""
        began, (busy, own, every) = self._began, self._read()
        return max(0.0, (busy - began[0]) - (own - began[1])) / max(every - began[2], 1e-9)

    def _read(self) -> tuple[float, float, float]:
        """Seconds of all processors busy, of them this process's, and those there were (Linux; else nobody's)."""
        own = sum(os.times()[:4])
        try:
            with open("/proc/stat") as stat:
                ticks = [int(word) / os.sysconf("SC_CLK_TCK") for word in stat.readline().split()[1:9]]
        except OSError:
            return own, own, time.monotonic()
        idle = ticks[3] + ticks[4]
        return sum(ticks) - idle, own, sum(ticks)


def figure(value: float) -> str:
    """Three significant digits, thousands separated, no exponent."""
    if value == 0 or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 0.001 else f"{value:.6f}".rstrip("0")


def wide_console() -> Console:
    """As wide as the terminal; wide enough for the tables where there is none."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)


def print_line(benchmark: str, measure: str, value: float | None, unit: str, against: str = "") -> None:
    """A line of JSON for benchmarks with tables of their own. Null: not measured."""
    line = {"benchmark": benchmark, "measure": measure, "value": value, "unit": unit, "against": against}
    print(json.dumps(line, ensure_ascii=False), flush=True)


def in_fresh_process(module: str, *arguments: str) -> dict[str, Any]:
    """Runs ``python -m module arguments`` and returns the JSON object on its last line of output."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=LONGEST)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer
