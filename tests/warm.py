"""Commands as whole processes that are forked from a warm parent, see zygote.py: without the import of torch."""

from __future__ import annotations

import atexit
import json
import os
import queue
import random
import subprocess
import sys
import tempfile
import threading
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ROOT = Path(__file__).parents[1]
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""Several processes share two cores; and the zygote must not have a second thread when it forks."""


class Zygote:
    """The warm parent. ``modules`` are imported in it beside torch and its friends."""

    def __init__(self, modules: Sequence[str] = ()) -> None:
        inherited = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.zygote", *modules],
            cwd=ROOT,
            env={**inherited, **ONE_THREAD, "HOME": "/nonexistent", "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._answers: queue.Queue[dict[str, Any]] = queue.Queue()
        self._ended = threading.Condition()
        self._statuses: dict[int, int] = {}
        threading.Thread(target=self._listen, name="zygote", daemon=True).start()
        assert self._answers.get(timeout=120)["ready"]

    def start(
        self,
        module: str,
        arguments: Sequence[str],
        environ: Mapping[str, str],
        *,
        out: Path,
        err: Path,
        core: int | None = None,
    ) -> int:
        """Returns the pid of a new ``python -m module``. It writes to these files and computes on this core."""
        order = {"module": module, "arguments": list(arguments), "environ": dict(environ), "core": core}
        assert self._process.stdin
        self._process.stdin.write(json.dumps({**order, "out": str(out), "err": str(err)}).encode() + b"\n")
        self._process.stdin.flush()
        return int(self._answers.get(timeout=30)["pid"])

    def status(self, pid: int, timeout: float = 0.0) -> int | None:
        """The exit status (negative: ended by that signal), or None while the process lives."""
        with self._ended:
            self._ended.wait_for(lambda: pid in self._statuses, timeout)
            return self._statuses.get(pid)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                pipe.close()

    def _listen(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            told = json.loads(line)
            if "status" in told:
                with self._ended:
                    self._statuses[told["pid"]] = told["status"]
                    self._ended.notify_all()
            else:
                self._answers.put(told)


@cache
def zygote() -> Zygote:
    """That of this process's tests."""
    made = Zygote()
    atexit.register(made.close)
    return made


class Command:
    """``python -m module arguments`` with these variables and no others, in a process of its own, on one core: see
    support.on_one_core.
    """

    def __init__(self, module: str, arguments: Sequence[str], environ: Mapping[str, str]) -> None:
        # MAX_BATCH: how many tasks at a time are worth it is measured elsewhere, once.
        base = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "TERM": "dumb", "MAX_BATCH": "2"}
        self._folder = tempfile.TemporaryDirectory(prefix="command-")
        self._out, self._err = (Path(self._folder.name, name) for name in ("out", "err"))
        core = random.choice(sorted(os.sched_getaffinity(0)))
        self.pid = zygote().start(module, arguments, {**base, **environ}, out=self._out, err=self._err, core=core)

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_: object) -> None:
        if zygote().status(self.pid) is None:  # not reaped: the pid is still its own
            os.kill(self.pid, 9)
            self.wait(10)
        self._folder.cleanup()

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, timeout: float) -> int:
        """Returns the exit status. Raises TimeoutError."""
        status = zygote().status(self.pid, timeout)
        if status is None:
            raise TimeoutError(f"it goes on after {timeout:g} s: {self.err[-2000:]}")
        return status

    @property
    def out(self) -> str:
        """What it has written to stdout."""
        return self._out.read_text() if self._out.exists() else ""

    @property
    def err(self) -> str:
        return self._err.read_text() if self._err.exists() else ""


def darkroom(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """``darkroom`` as a user types it, until it has ended."""
    with Command("handler.cli.main", arguments, environ) as command:
        status = command.wait(120)
        return subprocess.CompletedProcess(arguments, status, command.out, command.err)
