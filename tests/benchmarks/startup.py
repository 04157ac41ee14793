"""How long a fresh process takes until a handler is ready (imports, settings, clients), and its memory; and until its
first answer is given, with an embedded AWS in another process.

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

import handler
from handler.cli.local.aws import CREDENTIALS, create_resources
from tests.support import http_event

from .counted import CountedAws
from .report import Report

ROUNDS = 9
READY = "import handler.{0} as room; room.app()"
CASES = {
    "handler.status": READY.format("status"),
    "handler.submit": READY.format("submit"),
    "handler.generate (no model)": READY.format("generate"),
    "FastAPI + diffusers": "import fastapi; from diffusers import DiffusionPipeline",
}
MOST_MS = {"handler.status": 200, "handler.submit": 400}
ANSWERED = "import handler.{0} as room; assert room.handle({1!r}, None)['statusCode'] == {2}"
FIRST_ANSWERS = {
    "handler.status, first answer": ANSWERED.format("status", http_event("GET", "/results/nobody"), 404),
    "handler.submit, first answer": ANSWERED.format(
        "submit", http_event("POST", "/generate", body='{"prompt": "fox"}'), 202
    ),
}
MOST_ANSWER_MS = 600
MOST_MB = 80
TELL = "; print(open('/proc/self/status').read().partition('VmHWM:')[2].split()[0], flush=True)"
"""Its peak since the start of its program. (Not ``ru_maxrss``, which begins with the size of the parent.)"""
ENVIRON = {
    "PATH": os.environ["PATH"],
    "BUCKET": "bucket",
    "QUEUE_URL": "https://sqs.us-east-1.amazonaws.com/1/q",
    "AWS_REGION": "us-east-1",
    "AWS_ACCESS_KEY_ID": "x",
    "AWS_SECRET_ACCESS_KEY": "x",
}


def measure(code: str, environ: dict[str, str] | None = None) -> tuple[float, float]:
    """Milliseconds until ready, and MB of resident memory at its peak."""
    began = time.perf_counter()
    command = [sys.executable, "-c", code + TELL]
    with subprocess.Popen(command, env=ENVIRON | (environ or {}), stdout=subprocess.PIPE, text=True) as child:
        line = child.stdout.readline() if child.stdout else ""
        ready = time.perf_counter() - began
    return ready * 1000, int(line) / 1024


def main() -> None:
    """Prints the table. The cases take turns, so that a noisy moment hits them all."""
    report = Report("startup")
    compileall.compile_dir(Path(handler.__file__).parent, quiet=1)
    codes = {"python": "pass", **CASES}
    for code in codes.values():
        measure(code)
    rounds = [{name: measure(code) for name, code in codes.items()} for _ in range(ROUNDS)]
    base = statistics.median(one["python"][0] for one in rounds)
    slowest = statistics.median(one["FastAPI + diffusers"][0] for one in rounds) - base
    for name in CASES:
        ready = statistics.median(one[name][0] for one in rounds) - base
        memory = statistics.median(one[name][1] for one in rounds)
        report.add(f"{name}: ready after", ready, "ms", ("FastAPI + diffusers", slowest))
        if name in MOST_MS:
            report.add(f"{name}: ready after", ready, "ms", ("at most", MOST_MS[name]))
        report.add(f"{name}: memory", memory, "MB", ("at most", MOST_MB) if name in MOST_MS else None)
    with CountedAws() as aws:
        there = {"AWS_ENDPOINT_URL": aws.endpoint, **CREDENTIALS, **create_resources(aws.endpoint).variables}
        for code in FIRST_ANSWERS.values():
            measure(code, there)
        answers = [{name: measure(code, there) for name, code in FIRST_ANSWERS.items()} for _ in range(ROUNDS)]
    for name in FIRST_ANSWERS:
        # Python's own start counts here: a caller waits for that as well.
        report.add(name, statistics.median(one[name][0] for one in answers), "ms", ("at most", MOST_ANSWER_MS))
    report.show()
