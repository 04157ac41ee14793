"""A warm parent of worker processes: it has imported torch and diffusers, started no thread, loaded no model.

A process that starts Python and imports torch takes six to nine seconds of a core, a fork of this one none: that is all
the difference. Every child is a process of its own with its own memory, sockets and signal handlers, runs
``handler.__main__.main`` in its main thread, loads the model by itself and dies by real signals.

Orders come as JSON lines on stdin (``module``, ``environ``, ``log``); on stdout go ``{"ready": true}``, ``{"pid": …}``
for each order and ``{"pid": …, "status": …}`` for each child that ended (negative: by that signal).
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import select
import signal
import sys
import traceback
from typing import NoReturn

from . import scaled, steps

WARM = (
    "handler.worker",
    "handler.engine.starting",
    "handler.engine.running",
    "handler.engine.loading",
    "handler.engine.warmup",
    "handler.engine.checkpoint",
    "handler.engine.seam",
    "handler.engine.imaging",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
    "transformers.models.clip.modeling_clip",
    "transformers.models.clip.tokenization_clip",
)
PR_SET_PDEATHSIG = 1


def tell(**what: object) -> None:
    os.write(1, json.dumps(what).encode() + b"\n")


def child(order: dict[str, str], environ: dict[str, str], parent: int) -> NoReturn:
    """The new process, until it ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # no orphans, whatever happens to the run
    if os.getppid() != parent:
        os._exit(1)
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.environ.clear()
    os.environ.update(environ)
    if steps.FILE in environ:
        steps.install(environ[steps.FILE])
    scaled.install()
    status = 1
    try:
        status = importlib.import_module(order["module"]).main([])
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
    sys.exit(status)


def reap() -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        tell(pid=pid, status=os.waitstatus_to_exitcode(status))


def main() -> None:
    for name in WARM:
        importlib.import_module(name)
    threads = len(os.listdir("/proc/self/task"))
    assert threads == 1, f"{threads} threads: a fork would copy locks that nobody releases"
    parent = os.getpid()
    tell(ready=True)
    waiting = b""
    while True:
        if select.select([0], [], [], 0.05)[0]:
            got = os.read(0, 1 << 16)
            if not got:
                return
            waiting += got
        *lines, waiting = waiting.split(b"\n")
        for line in lines:
            order = json.loads(line)
            pid = os.fork()
            if pid == 0:
                child(order, order["environ"], parent)
            tell(pid=pid)
        reap()


if __name__ == "__main__":
    main()
