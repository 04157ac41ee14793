"""Installs a peer into an environment of its own, and runs servers as processes that never outlive the benchmark."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

ROOT = Path(__file__).parents[2]
PIPELINE = ("torch", "diffusers==0.42.1", "transformers>=5.23,<6", "accelerate>=1.15,<2", "safetensors", "pillow")
INSTALL_WITHIN, READY_WITHIN, STOP_WITHIN = 900, 180, 15
INHERITED = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}


class Unavailable(Exception):
    """The server cannot be measured here; says why."""


def environment(name: str, *packages: str) -> str:
    """The Python of ``.venv-{name}`` with the packages and what the pipeline needs; kept from one run to the next."""
    folder = ROOT / f".venv-{name}"
    done, wanted = folder / "installed", "\n".join((*PIPELINE, *packages))
    python = folder / "bin" / "python"
    if done.is_file() and done.read_text() == wanted:
        return str(python)
    print(f"installing {', '.join(packages)} into {folder.name}", file=sys.stderr)
    venv = [sys.executable, "-m", "venv", str(folder)]
    pip = [str(python), "-m", "pip", "install", "--quiet", "-c", "infra/constraints.txt", *PIPELINE, *packages]
    try:
        for command in (venv, pip):
            subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=INSTALL_WITHIN)
    except subprocess.CalledProcessError as fault:
        lines = (fault.stderr or fault.stdout).strip().splitlines()
        raise Unavailable(f"not installed: {lines[-1] if lines else fault}") from fault
    except subprocess.TimeoutExpired as fault:
        raise Unavailable(f"not installed within {INSTALL_WITHIN} s") from fault
    done.write_text(wanted)
    return str(python)


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@contextmanager
def running(command: Sequence[str], environ: dict[str, str], ready: Callable[[], bool]) -> Iterator[None]:
    """Runs the server in the block, which is entered when it is ``ready``. Raises Unavailable if it never is."""
    with tempfile.TemporaryDirectory(prefix="servers-") as folder:
        log = Path(folder, "log")
        with log.open("wb") as sink:
            child = subprocess.Popen(
                command, env=INHERITED | {"TMPDIR": folder} | environ, cwd=ROOT, stdout=sink, stderr=sink
            )
        try:
            _await(child, ready, log)
            yield
        finally:
            _stop(child)


def _await(child: subprocess.Popen[bytes], ready: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + READY_WITHIN
    while not ready():
        if child.poll() is not None or time.monotonic() > deadline:
            lines = log.read_text(errors="replace").strip().splitlines()
            raise Unavailable(f"not started: {lines[-1] if lines else 'no word in its log'}")
        time.sleep(0.2)


def _stop(child: subprocess.Popen[bytes]) -> None:
    """Asks it to end, then ends it and all its descendants; some of them live in sessions of their own."""
    family = []
    with suppress(psutil.NoSuchProcess):
        family = psutil.Process(child.pid).children(recursive=True)
    child.terminate()
    with suppress(subprocess.TimeoutExpired):
        child.wait(STOP_WITHIN)
    for one in family:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    child.kill()
    child.wait()


def end_on_sigterm() -> None:
    """Makes SIGTERM unwind the stack like Ctrl-C, so that every server is stopped."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
