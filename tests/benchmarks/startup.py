"""How long a fresh process takes until a handler is ready (imports, settings, clients), and its memory.

Beside it the tutorial's server: FastAPI with diffusers, imported and no more. Times are from the start of a process to
its own word that it is ready, above those of a process that says so at once; medians, with bytecode present.
"""

from __future__ import annotations

import compileall
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

import handler

ROUNDS = 9
READY = "import handler.{0} as room; room._warm()"
CASES = {
    "handler.status": READY.format("status"),
    "handler.submit": READY.format("submit"),
    "handler.generate (no model)": READY.format("generate"),
    "FastAPI + diffusers": "import fastapi; from diffusers import DiffusionPipeline",
}
LIMITS = {"handler.status": "200 ms, 80 MB", "handler.submit": "400 ms, 80 MB"}
TELL = "; import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, flush=True)"
ENVIRON = {
    "PATH": os.environ["PATH"],
    "BUCKET": "bucket",
    "QUEUE_URL": "https://sqs.us-east-1.amazonaws.com/1/q",
    "AWS_REGION": "us-east-1",
    "AWS_ACCESS_KEY_ID": "x",
    "AWS_SECRET_ACCESS_KEY": "x",
}


def measure(code: str) -> tuple[float, float]:
    """Milliseconds until ready, and MB of resident memory at its peak."""
    began = time.perf_counter()
    with subprocess.Popen([sys.executable, "-c", code + TELL], env=ENVIRON, stdout=subprocess.PIPE, text=True) as child:
        line = child.stdout.readline() if child.stdout else ""
        ready = time.perf_counter() - began
    return ready * 1000, int(line) / 1024


def main() -> None:
    """Prints the table. The cases take turns, so that a noisy moment hits them all."""
    compileall.compile_dir(Path(handler.__file__).parent, quiet=1)
    codes = {"python": "pass", **CASES}
    for code in codes.values():
        measure(code)
    rounds = [{name: measure(code) for name, code in codes.items()} for _ in range(ROUNDS)]
    base = statistics.median(one["python"][0] for one in rounds)
    slowest = statistics.median(one["FastAPI + diffusers"][0] for one in rounds) - base
    table = Table("fresh process", "ready after", "of FastAPI's", "memory", "must reach", title="startup")
    for name in CASES:
        ready = statistics.median(one[name][0] for one in rounds) - base
        memory = statistics.median(one[name][1] for one in rounds)
        table.add_row(name, f"{ready:.0f} ms", f"1/{slowest / ready:.0f}", f"{memory:.0f} MB", LIMITS.get(name, ""))
    Console().print(table)
