"""The heartbeat under slow and failing calls: one attempt's trouble is its own."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, cast

from handler.task.heartbeat import Heartbeat, Sign

if TYPE_CHECKING:
    from collections.abc import Callable

    from handler.task.attempt import Attempt


class Beating:
    """An attempt that counts its signs of life; ``slow`` is what its call to S3 waits for."""

    def __init__(self, slow: threading.Event | None = None, keeps_every: float = 60.0) -> None:
        self.keeps_every = keeps_every
        self.kept: list[float] = []
        self.beats: list[float] = []
        self.hides = 0
        self.slow = slow
        self.wound_up: list[float] = []
        self.seconds: float | None = None
        self.released = False

    def beat(self) -> None:
        self.beats.append(time.monotonic())
        if self.slow is not None:
            self.slow.wait(30)

    def extend_visibility(self) -> None:
        self.hides += 1

    def keep(self) -> None:
        self.kept.append(time.monotonic())

    @property
    def signs(self) -> tuple[Sign, ...]:
        return (Sign(self.beat), Sign(self.extend_visibility), Sign(self.keep, self.keeps_every))

    def stuck(self) -> float | None:
        return self.seconds

    def suspend_by(self, finish_by: float) -> None:
        self.wound_up.append(finish_by)

    def release_now(self) -> None:
        self.released = True
        if self.slow is not None:
            self.slow.wait(30)


def wait_until(true: Callable[[], bool]) -> None:
    for _ in range(1000):
        if true():
            return
        time.sleep(0.01)
    raise AssertionError("it never became true")


def as_attempt(beating: Beating) -> Attempt:
    return cast("Any", beating)  # type: ignore[no-any-return]


def test_a_slow_call_delays_nothing_but_itself() -> None:
    over = threading.Event()
    slow, quick = Beating(over), Beating()
    heartbeat = Heartbeat(0.02, 0.0, lambda: 0.5)
    with heartbeat.watching(as_attempt(slow)), heartbeat.watching(as_attempt(quick)):
        wait_until(lambda: len(quick.beats) > 20 and slow.hides > 20)
        assert len(slow.beats) == 1  # never two at a time
        over.set()
        wait_until(lambda: len(slow.beats) > 5)


def test_the_first_sign_waits_and_the_last_is_the_last() -> None:
    beating = Beating()
    heartbeat = Heartbeat(0.02, 0.2, lambda: 0.5)
    began = time.monotonic()
    with heartbeat.watching(as_attempt(beating)):
        wait_until(lambda: len(beating.beats) > 3)
    assert beating.beats[0] - began >= 0.2
    time.sleep(0.1)  # what was under way ends
    count = len(beating.beats)
    time.sleep(0.2)
    assert len(beating.beats) == count


def test_what_has_a_rhythm_of_its_own_waits_for_no_heartbeat() -> None:
    """A task that is killed before its first sign of life has been saved all the same."""
    beating = Beating(keeps_every=0.05)
    heartbeat = Heartbeat(60.0, 60.0, lambda: 0.5)
    with heartbeat.watching(as_attempt(beating)):
        wait_until(lambda: len(beating.kept) > 3)
    assert beating.beats == []
    assert all(later - one > 0.04 for one, later in zip(beating.kept, beating.kept[1:], strict=False))


def test_signs_are_jittered() -> None:
    assert [Heartbeat(2.0, 0.0, lambda: chance).pause() for chance in (0.0, 0.5, 1.0)] == [1.6, 2.0, 2.4]  # noqa: B023


def test_who_comes_late_hears_of_the_end_too() -> None:
    early, late = Beating(), Beating()
    heartbeat = Heartbeat(1.0, 1.0, lambda: 0.5)
    with heartbeat.watching(as_attempt(early)):
        heartbeat.suspend(123.0)
        with heartbeat.watching(as_attempt(late)):
            assert (early.wound_up, late.wound_up) == ([123.0], [123.0])


def test_who_makes_no_more_steps_gets_no_more_signs() -> None:
    told: list[tuple[object, float]] = []
    beating, other = Beating(), Beating()
    heartbeat = Heartbeat(0.02, 0.0, lambda: 0.5, on_stuck=lambda *stuck: told.append(stuck))
    with heartbeat.watching(as_attempt(beating)), heartbeat.watching(as_attempt(other)):
        wait_until(lambda: len(beating.beats) > 3)
        beating.seconds = 121.0
        wait_until(lambda: bool(told))
        time.sleep(0.1)  # what was under way ends
        count, others = len(beating.beats), len(other.beats)
        wait_until(lambda: len(other.beats) > others + 5)
        assert len(beating.beats) == count
    assert told == [(beating, 121.0)]


def test_a_process_that_ends_waits_for_no_snapshot_that_never_comes() -> None:
    over = threading.Event()
    lost, well = Beating(over), Beating()
    heartbeat = Heartbeat(60.0, 60.0, lambda: 0.5)
    began = time.monotonic()
    with heartbeat.watching(as_attempt(lost)), heartbeat.watching(as_attempt(well)):
        heartbeat.release_all(within=1.0)
    assert time.monotonic() - began < 3
    assert lost.released
    assert well.released
    over.set()
