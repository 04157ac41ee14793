"""What loading costs: seconds and memory of ``handler.engine.loading.load_pipeline`` for a model of SD 2.1's size.

Float16 files lie in the page cache and are loaded as they are, and as bfloat16. Beside it: reading the same files into
memory. Files that are mapped count as read only when every weight has been touched, so that is timed as well. Then what
a worker's start takes beyond that: the first one, which proves and measures the model, and one with what it kept.
"""

from __future__ import annotations

import gc
import json
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from handler.settings import Settings

from .report import Report, in_fresh_process

if TYPE_CHECKING:
    from collections.abc import Iterator

MODULE = "tests.benchmarks.loading"
MOST_MEMORY, MOST_TIME = 1.2, 1.5
SAMPLE_EVERY = 0.02
MOST_FIRST, MOST_KEPT = 20, 3
"""Seconds of the first start and of later ones beyond loading, for the built-in model."""
ROUNDS = 3
"""The fastest counts, and the largest: memory that the machine has to fetch from its host is slow to touch."""
MIB = 2**20


def memory() -> dict[str, float]:
    """This process's resident memory in MiB: all, its peak, and the part that is no file's."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(lines[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM", "RssAnon")}


@contextmanager
def peaks() -> Iterator[dict[str, float]]:
    """At the block's end holds the peaks above its beginning: ``resident``, and ``anonymous`` by sampling."""
    gc.collect()
    found: dict[str, float] = {}
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    base, highest, done = memory(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(SAMPLE_EVERY):
            highest[0] = max(highest[0], memory()["RssAnon"])

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()
    ended = memory()
    found["resident"] = ended["VmHWM"] - base["VmRSS"]
    found["anonymous"] = max(highest[0], ended["RssAnon"]) - base["RssAnon"]


def write(folder: str, _: str) -> dict[str, float]:
    from . import models

    models.write_sd21(Path(folder))
    return {"weights": sum(file.stat().st_size for file in files(folder)) / MIB}


def read(folder: str, _: str) -> dict[str, float]:
    """The first reading fills the page cache and does not count; of the others the fastest does."""
    seconds = []
    for _round in range(1 + ROUNDS):
        began = time.perf_counter()
        held = [file.read_bytes() for file in files(folder)]
        seconds.append(time.perf_counter() - began)
        del held
    return {"seconds": min(seconds[1:])}


def load(folder: str, dtype: str) -> dict[str, float]:
    """The built-in model comes first: imports are not what is measured."""
    import torch

    from handler.engine.loading import load_pipeline

    load_pipeline(Settings(device="cpu", dtype=dtype))
    with peaks() as peak:
        began = time.perf_counter()
        pipe, _card = load_pipeline(Settings(model_id=folder, device="cpu", dtype=dtype))
        loaded = time.perf_counter() - began
        for part in (pipe.unet, pipe.vae, pipe.text_encoder):
            for weights in part.parameters():
                weights.detach().flatten().view(torch.uint8)[::4096].sum()
        touched = time.perf_counter() - began
    return {"loaded": loaded, "touched": touched, **peak}


def begin(folder: str, cache: str) -> dict[str, float]:
    """Loads the model alone, so that imports do not count, then starts an engine with it as a worker does."""
    from handler.engine.loading import load_pipeline
    from handler.engine.starting import start
    from handler.logs import logger

    logger.setLevel("ERROR")
    settings = Settings(model_id=folder, device="cpu", cache_dir=cache)
    load_pipeline(settings)
    began = time.perf_counter()
    pipe, _card = load_pipeline(settings)
    loading = time.perf_counter() - began
    del pipe
    engine = start(settings)
    engine.close()
    return {"loading": loading, "beyond": engine.load_seconds - loading}


def files(folder: str) -> list[Path]:
    return sorted(Path(folder).rglob("*.safetensors"))


def show(report: Report, folder: str) -> None:
    """Adds the rows."""
    weights = in_fresh_process(MODULE, "write", folder)["weights"]
    reading = in_fresh_process(MODULE, "read", folder)["seconds"]
    report.add("weights on disk, float16", weights, "MiB")
    report.add("reading the files into memory", reading, "s")
    for dtype in ("float16", "bfloat16"):
        rounds = [in_fresh_process(MODULE, "load", folder, dtype) for _ in range(ROUNDS)]
        one = {name: min(each[name] for each in rounds) for name in ("loaded", "touched")}
        one |= {name: max(each[name] for each in rounds) for name in ("resident", "anonymous")}
        report.add(f"load as {dtype}", one["loaded"], "s", ("reading", reading))
        against = f"reading (at most {MOST_TIME} times)"
        report.add(f"load as {dtype}, until every weight is touched", one["touched"], "s", (against, reading))
        against = f"weights (at most {MOST_MEMORY} times)"
        report.add(f"load as {dtype}, peak above the process's base", one["resident"], "MiB", (against, weights))
        report.add("of it no file's: what cannot be reclaimed", one["anonymous"], "MiB", ("weights", weights))


def starts(report: Report, name: str, folder: str) -> None:
    """Adds the rows of a worker's start: the first one, and the fastest of later ones."""
    with tempfile.TemporaryDirectory() as cache:
        first, *later = [in_fresh_process(MODULE, "begin", folder, cache) for _ in range(1 + ROUNDS)]
    kept = min(one["beyond"] for one in later)
    report.add(f"{name}: first start, beyond loading", first["beyond"], "s", ("at most", MOST_FIRST))
    report.add(f"{name}: start with what was kept, beyond loading", kept, "s", ("at most", MOST_KEPT))


def main() -> None:
    """Prints the table."""
    report = Report("loading")
    with tempfile.TemporaryDirectory() as folder:
        show(report, folder)
        starts(report, "SD 2.1's size on this processor", folder)
    starts(report, "built-in model", "")
    report.remark("Mapped files count as resident; the kernel drops their pages before it runs out of memory.")
    report.show()


CASES = {"write": write, "read": read, "load": load, "begin": begin}

if __name__ == "__main__":
    print(json.dumps(CASES[sys.argv[1]](*[*sys.argv[2:], ""][:2])))
