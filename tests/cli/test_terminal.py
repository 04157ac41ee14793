"""What a person sees who draws for the first time: how much is printed, and that something moves all the time."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
import time
from itertools import pairwise
from pathlib import Path

import pytest

pytestmark = pytest.mark.beginnings
ROOT = Path(__file__).parents[2]
MOST_LINES = 15
STILL = 2.0
"""Seconds for which nothing may move."""


def at_a_terminal(*words: str, columns: int) -> tuple[int, list[float], str]:
    """``darkroom`` in a terminal of 24 lines: its exit status, when something was drawn, and all that was."""
    began = time.monotonic()
    pid, terminal = pty.fork()
    if pid == 0:
        fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        environ = {"PATH": os.environ["PATH"], "TERM": "xterm-256color", "MAX_BATCH": "2"}
        os.execve(sys.executable, [sys.executable, "-m", "handler.cli.main", *words], environ)
    times, drawn = [began], b""
    while True:
        try:
            some = os.read(terminal, 1 << 16)
        except OSError:  # the process has ended, and with it the terminal
            break
        if not some:
            break
        times.append(time.monotonic())
        drawn += some
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), [*times, time.monotonic()], drawn.decode()


@pytest.mark.parametrize("columns", [34, 120])
def test_the_bar_is_never_still(tmp_path: Path, columns: int) -> None:
    status, times, drawn = at_a_terminal("invoke", "a red apple", "--out", str(tmp_path), columns=columns)
    assert status == 0
    assert max(later - one for one, later in pairwise(times)) <= STILL
    assert "\x1b[?25h" in drawn, "the cursor is shown again"
    last = drawn.rstrip().splitlines()[-1]
    assert " completed in " in drawn, last


def test_make_run_is_short() -> None:
    done = subprocess.run(
        ["make", "run", f"PYTHON={sys.executable}"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"]},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=True,
    )
    assert len(done.stdout.splitlines()) <= MOST_LINES, done.stdout
    assert " completed in " in done.stdout
