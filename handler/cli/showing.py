"""The command line's output: a live progress line for each task on stderr, results and tables on stdout."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from ..contract.statuses import TERMINAL
from ..process import terminal_variables
from .terminal import picture_escape

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime
    from pathlib import Path

    from ..client import Picture
    from ..contract.record import Record
    from ..contract.responses import ResultResponse

COLOURS = {"pending": "yellow", "processing": "cyan", "completed": "green", "failed": "red", "cancelled": "magenta"}
UNSEEN = "not seen yet"
PROMPT = 40
"""Characters of a prompt in a table."""
LEAST_SHOWN = 0.005
"""Seconds of a part that a person is told of."""


class ProgressLines:
    """A live line for each task: status, steps done, seconds left. If stderr is no terminal, one line of text for each
    change of a status instead; nothing if ``quiet``. Thread-safe.
    """

    def __init__(self, names: Iterable[str], *, quiet: bool, transient: bool = False, first: str = "pending") -> None:
        console = Console(stderr=True)
        self._plain = not quiet and not console.is_terminal
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[about]}", markup=False),
            TimeElapsedColumn(),
            console=console,
            disable=quiet or self._plain,
            transient=transient,
        )
        self._lines = {name: self._bars.add_task(_line(name, first), total=1.0, about="") for name in names}
        self._told: dict[str, str] = {}

    def __enter__(self) -> ProgressLines:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def show_unseen(self, name: str) -> None:
        """Says that the task ``name`` has no record yet."""
        if self._plain:
            typer.echo(_line(name, UNSEEN), err=True)
        self._bars.update(self._lines[name], description=_line(name, UNSEEN))

    def show(self, name: str, task: Record | ResultResponse) -> None:
        """Updates the line of the task ``name``."""
        if self._plain and self._told.get(name) != task.status:
            self._told[name] = task.status
            typer.echo(_line(name, task.status), err=True)
        ended = task.status in TERMINAL
        fraction = 1.0 if ended else task.progress.fraction if task.progress else 0.0
        line = self._lines[name]
        self._bars.update(line, description=_line(name, task.status), completed=fraction, about=_about(task))
        if ended:
            self._bars.stop_task(line)


def _line(name: str, status: str) -> str:
    return f"{name}  {status}" if name else status


def _about(task: Record | ResultResponse) -> str:
    """``12/20, 3 s left``"""
    if task.error is not None:
        return task.error.code
    if task.progress is None:
        return ""
    steps = f"{task.progress.step}/{task.progress.steps}"
    left = task.progress.eta_seconds
    return f"{steps}, {left:.0f} s left" if left is not None and task.status == "processing" else steps


def print_table(results: list[ResultResponse], now: datetime) -> None:
    """Prints tasks as a table, in the given order."""
    made = Table(box=None, pad_edge=False)
    for name, style in (("task", {"no_wrap": True}), ("status", {}), ("progress", {}), ("age", {"justify": "right"})):
        made.add_column(name, **style)
    made.add_column("prompt", overflow="ellipsis", no_wrap=True, max_width=PROMPT)
    for one in results:
        # Text, so that rich does not read what users typed as markup.
        status = Text(one.status, COLOURS[one.status])
        made.add_row(Text(one.task_id), status, _about(one), age(now, one.created_at), Text(one.prompt or ""))
    Console().print(made)


def age(now: datetime, then: datetime) -> str:
    """A time difference as ``5 s``, ``12 min``, ``3 h`` or ``9 d``."""
    seconds = max(0.0, (now - then).total_seconds())
    for unit, least in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= least:
            return f"{seconds / least:.0f} {unit}"
    return f"{seconds:.0f} s"


def print_json(results: list[dict[str, Any]]) -> None:
    """Prints one JSON document: the task, or an array if there is not exactly one."""
    typer.echo(json.dumps(results[0] if len(results) == 1 else results))


def print_results(told: list[tuple[ResultResponse, list[tuple[Picture, Path]]]], now: datetime) -> None:
    """Prints tasks for a person: one in full, several as a table and where their pictures are."""
    if len(told) != 1:
        print_table([result for result, _ in told], now)
    for result, saved in told:
        _print_pictures(result, saved)
        if len(told) == 1:
            typer.echo(_summary(result))
        if result.error:
            typer.echo(f"{result.task_id}: {result.error.code}: {result.error.message}", err=True)
        for warning in result.warnings or ():
            about = f"{warning.field}: " if warning.field else ""
            typer.echo(f"{result.task_id}: {about}{warning.message}", err=True)
        for image in result.images:
            if image.unsafe:
                said = f"the picture of seed {image.seed} was not kept: the model's safety checker flagged it"
                typer.echo(f"{result.task_id}: {said}", err=True)


def _print_pictures(result: ResultResponse, saved: list[tuple[Picture, Path]]) -> None:
    """Where each picture is, and the picture itself if the terminal is known to show one."""
    for picture, path in saved:
        about = picture.about
        drawn = picture_escape(picture.body, about.content_type, terminal_variables())
        if drawn and sys.stdout.isatty():
            typer.echo(drawn)
        typer.echo(f"{path}  {about.width}x{about.height}  seed {about.seed}")
    for image in result.images if not saved else ():
        if image.url:
            typer.echo(image.url)


def _summary(result: ResultResponse) -> str:
    """``apple-1  completed in 3.2 s: queue 0.1, text 0.2, denoise 2.5``"""
    if result.timings is None:
        about = _about(result)
        return f"{result.task_id}  {result.status}" + (f"  {about}" if about else "")
    seconds = result.timings.model_dump()
    total = seconds.pop("total")
    parts = ", ".join(f"{name} {value:.2g}" for name, value in seconds.items() if value >= LEAST_SHOWN)
    return f"{result.task_id}  {result.status} in {total:.3g} s: {parts}"
