"""Workers as whole processes on one queue: started, killed by real signals, replaced."""

from __future__ import annotations

import os
import random
import signal
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from handler.aws.queue import TaskQueue
from handler.settings import Settings

from .function import LAMBDA, Function

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from ..warm import Zygote
    from .proxy import Proxy
    from .witness import Witness

STOPS_WITHIN = 30.0
"""Seconds from SIGTERM to the end of a worker: a long poll, what is left of a forward, and some retries."""
ANYONE = 0.1
"""Share of the signals that do not look for a worker with tasks in hand: they also meet one that loads or waits."""


@dataclass
class Member:
    """A process: a worker, or behind Lambda that of a ``function``."""

    who: str
    pid: int
    log: Path
    function: Function | None = None
    signalled: int = 0
    signalled_at: float = 0.0
    status: int | None = None


@dataclass(frozen=True)
class Kill:
    """A signal that was sent, and the tasks (with the attempt) that the worker held then."""

    at: float
    signal: int
    who: str
    held: Mapping[str, int] = field(default_factory=dict)


class Fleet:
    """``size`` workers and a function, always: what was killed is replaced at once, as ECS or Lambda would."""

    def __init__(
        self, size: int, zygote: Zygote, proxy: Proxy, witness: Witness, environ: Mapping[str, str], folder: Path
    ) -> None:
        self._zygote, self._proxy, self._witness = zygote, proxy, witness
        self._environ, self._folder = environ, folder
        self._polled = Settings.load({**environ, "AWS_ENDPOINT_URL": proxy.door(LAMBDA, calm=True)})
        self._draw = random.Random("the function's seconds")
        self.members: list[Member] = []
        self.kills: list[Kill] = []
        self.violations: list[str] = []
        for _ in range(size):
            self._start()
        self._start(function=True)

    @property
    def serving(self) -> list[Member]:
        return [one for one in self.members if not one.signalled and one.status is None]

    def strike(self, draw: random.Random) -> bool:
        """Sends SIGKILL or SIGTERM to a worker, if there is one to choose. The replacement starts at once."""
        held = {one.who: self._witness.held_by(one.who) for one in self.serving}
        anyone = draw.random() < ANYONE
        choice = [one for one in self.serving if anyone or held[one.who]]
        if not choice:
            return False
        member = draw.choice(choice)
        name = draw.choice((signal.SIGKILL, signal.SIGTERM))
        if member.function:
            name = signal.SIGKILL  # Lambda asks nobody
        self.kills.append(Kill(time.time(), name, member.who, self._witness.held_by(member.who)))
        self._signal(member, name)
        self._start(function=member.function is not None)
        return True

    def look(self) -> None:
        """Notes who has ended, and who should not have or should have by now."""
        for one in self.members:
            if one.status is not None:
                continue
            one.status = self._zygote.status(one.pid)
            if one.status is None:
                if one.signalled and time.time() - one.signalled_at > STOPS_WITHIN:
                    self.violations.append(f"{one.who} did not stop within {STOPS_WITHIN:.0f} s of signal")
                    self._signal(one, signal.SIGKILL)
                continue
            if one.function:
                one.function.end()
            if one.signalled == signal.SIGTERM and one.status != 0:
                self.violations.append(f"{one.who} exited {one.status} after SIGTERM")
            elif not one.signalled:
                if not (one.function and one.status == 1):  # what may not be done in time is given back, and ends it
                    self.violations.append(f"{one.who} exited {one.status} by itself")
                self._start(function=one.function is not None)

    def stop(self) -> None:
        """Ends all: workers with SIGTERM, the function when its invocation is over."""
        for one in self.serving:
            if one.function is None:
                self._signal(one, signal.SIGTERM)
                continue
            one.function.end()
            one.function.join(STOPS_WITHIN)
            self._signal(one, signal.SIGKILL)
        until = time.time() + STOPS_WITHIN + 5
        while time.time() < until and any(one.status is None for one in self.members):
            self.look()
            time.sleep(0.05)

    def read_logs(self) -> None:
        """No injected fault is an error of the handlers: what they log as one, or die of, would be tried again and
        hidden by the very retries that are proven here.
        """
        for one in self.members:
            if one.function and (one.function.outlasted or one.function.fault):
                self.violations.append(f"{one.who}: {one.function.fault or 'killed at its deadline'}")
            for line in one.log.read_text().splitlines() if one.log.exists() else []:
                if line.startswith("Traceback") or '"level":"ERROR"' in line:
                    self.violations.append(f"{one.who} logged {line[:300]}")

    def _start(self, *, function: bool = False) -> None:
        who = f"{'function' if function else 'worker'}-{len(self.members) + 1}"
        log = self._folder / f"{who}.log"
        environ = {**self._environ, "AWS_ENDPOINT_URL": self._proxy.door(who)}
        member = Member(who, 0, log)
        if function:
            member.function = Function(
                TaskQueue(self._polled), self._draw, lambda: self._signal(member, signal.SIGKILL)
            )
            environ |= member.function.environ
        member.pid = self._zygote.start("tests.chaos.member", [], environ, out=log, err=log)
        self._witness.pids[who] = member.pid
        self.members.append(member)
        if member.function:
            member.function.start()

    @property
    def functions(self) -> list[Function]:
        return [one.function for one in self.members if one.function]

    def _signal(self, member: Member, name: int) -> None:
        member.signalled, member.signalled_at = name, time.time()
        # The zygote has not reaped it, or it would have a status: the pid is still its own.
        if self._zygote.status(member.pid) is None:
            os.kill(member.pid, name)
