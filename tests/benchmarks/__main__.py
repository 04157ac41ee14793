"""``make bench``, or one by name: ``make bench ONLY=startup``. Each prints a table; nothing here is a test."""

from __future__ import annotations

import sys

from . import (
    busy,
    compiling,
    dtypes,
    engine,
    gpu,
    latency,
    loading,
    memory,
    overhead,
    profile,
    rounds,
    servers,
    startup,
    weight,
)

BENCHMARKS = {
    "startup": startup.main,
    "engine": engine.main,
    "busy": busy.main,
    "compile": compiling.main,
    "dtypes": dtypes.main,
    "overhead": overhead.main,
    "gpu": gpu.main,
    "latency": latency.main,
    "profile": profile.main,
    "loading": loading.main,
    "memory": memory.main,
    "rounds": rounds.main,
    "servers": servers.main,
    "weight": weight.main,
}

if __name__ == "__main__":
    for name in sys.argv[1:] or list(BENCHMARKS):
        BENCHMARKS[name]()
