"""The figures as one table, that of tests/README.md."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table


def table(found: dict[str, Any]) -> None:
    kills, faults = dict(found["kills"]), dict(found["faults"])
    again = found["seconds_to_run_again"]
    shown = Table(
        title=f"Chaos, seed {found['seed']}: {found['tasks']} tasks in {found['seconds']:.0f} s", min_width=90
    )
    shown.add_column("figure")
    shown.add_column("value")
    interrupted = kills.pop("tasks_interrupted")
    for name, value in {
        "tasks": _counts(found["statuses"]),
        "kills": f"{kills.pop('total')}: {_counts(kills)}; {interrupted} tasks interrupted",
        "injected faults": f"{faults.pop('total')} of {found['requests']} requests: {_counts(faults)}",
        "the function": _counts(found["function"]),
        "messages sent twice": str(found["duplicated_messages"]),
        "redeliveries": str(found["redeliveries"]),
        "submissions repeated": str(found["submissions_repeated"]),
        "resumed": f"{found['resumed_attempts']} attempts, {found['resumed_steps']} steps not computed again",
        "denoiser steps": f"{found['steps_spent']} for {found['steps_needed']} needed",
        "wasted": f"{found['wasted_share']:.1%}" if found["wasted_share"] is not None else "",
        "signal to running again": "; ".join(
            f"{name}: median {one['median']:.1f} s, most {one['most']:.1f} s" for name, one in again.items()
        ),
        "pictures": f"{found['images']}, {found['bit_identical']} bit-identical with the undisturbed run, the others "
        f"within {found['largest_pixel_difference']} of 255",
        "lost, doubled, wrong, stuck": ", ".join(str(found[one]) for one in ("lost", "doubled", "wrong", "stuck")),
        "invariants violated": str(len(found["violations"])),
    }.items():
        shown.add_row(name, value)
    Console(width=120).print(shown)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items(), key=lambda one: -one[1]))
