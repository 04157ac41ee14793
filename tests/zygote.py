"""A warm parent of processes: it has imported torch, diffusers and transformers, started no thread, loaded no model.

usage: python -m tests.zygote [MODULE ...]

A process that starts Python and imports torch takes four to nine seconds of a core, a fork of this one none: that is
all the difference. Every child is a process of its own with its own memory, sockets and signal handlers, runs its
module as ``python -m`` does, in its main thread, loads the model by itself and dies by real signals. The modules that
are named are imported beforehand, too.

Orders come as JSON lines on stdin (``module``, ``arguments``, ``environ``, ``out``, ``err``); on stdout go
``{"ready": true}``, ``{"pid": …}`` for each order and ``{"pid": …, "status": …}`` for each child that ended (negative:
by that signal).
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import runpy
import select
import signal
import sys
import traceback
from typing import Any, NoReturn

WARM = (
    "boto3",
    "torch",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
    "transformers.models.clip.modeling_clip",
    "transformers.models.clip.tokenization_clip",
)
PR_SET_PDEATHSIG = 1


def tell(**what: object) -> None:
    os.write(1, json.dumps(what).encode() + b"\n")


def child(order: dict[str, Any], parent: int) -> NoReturn:
    """The new process, until it ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # no orphans, whatever happens to the run
    if os.getppid() != parent:
        os._exit(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    out, err = (os.open(order[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600) for name in ("out", "err"))
    for source, target in ((nothing, 0), (out, 1), (err, 2)):
        os.dup2(source, target)
    os.environ.clear()
    os.environ.update(order["environ"])
    if order["core"] is not None:
        os.sched_setaffinity(0, {order["core"]})
    sys.argv[1:] = order["arguments"]
    status: Any = 1
    try:
        runpy.run_module(order["module"], run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as ended:
        status = ended.code
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


def main(modules: list[str]) -> None:
    for name in (*WARM, *modules):
        importlib.import_module(name)
    threads = len(os.listdir("/proc/self/task"))
    assert threads == 1, f"{threads} threads: a fork would copy locks that nobody releases"
    gc.freeze()  # children's collections leave what is shared alone
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
                child(order, parent)
            tell(pid=pid)
        reap()


if __name__ == "__main__":
    main(sys.argv[1:])
