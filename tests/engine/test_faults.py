"""Faults in the compute thread: nobody waits for ever, and one bad call fails alone. A network without a pipeline."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
import torch

from handler.engine import batcher as batching
from handler.engine.batcher import Batcher
from handler.engine.faults import translated
from handler.errors import Internal, OutOfMemory, WorkerBroken

from .callers import PATIENCE, Doubles, all_of, network, together

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable

    from handler.engine.compute import Compute

CALLERS = 4


def end_in_next(batcher: Batcher, monkeypatch: pytest.MonkeyPatch, fault: BaseException) -> None:
    def broken(now: float) -> Any:
        raise fault

    monkeypatch.setattr(batcher, "next", broken)


def end_in_run(batcher: Batcher, monkeypatch: pytest.MonkeyPatch, fault: BaseException) -> None:
    """After the group was taken off the list, before any of its callers is released."""

    def broken(group: Any) -> Any:
        raise fault

    monkeypatch.setattr(batcher, "_outcomes", broken)


def end_in_splitting(batcher: Batcher, monkeypatch: pytest.MonkeyPatch, fault: BaseException) -> None:
    def fill(_: torch.Tensor) -> None:
        raise torch.OutOfMemoryError("no more")

    def broken(calls: Any) -> Any:
        raise fault

    network(batcher).check = fill
    monkeypatch.setattr(batcher, "_fitting", broken)


def end_in_freeing(batcher: Batcher, monkeypatch: pytest.MonkeyPatch, fault: BaseException) -> None:
    def fill(_: torch.Tensor) -> None:
        raise torch.OutOfMemoryError("no more")

    def broken() -> None:
        raise fault

    network(batcher).check = fill
    monkeypatch.setattr(batching, "free_memory", broken)


@pytest.mark.parametrize(
    ("end", "fault"),
    [
        (end_in_next, RuntimeError("/secret/path of a library")),
        (end_in_next, SystemExit(1)),
        (end_in_run, KeyError("bookkeeping")),
        (end_in_run, KeyboardInterrupt()),
        (end_in_splitting, MemoryError("out of memory")),
        (end_in_freeing, SystemExit("neither an Exception nor a lost device")),
    ],
)
def test_nobody_waits_for_a_compute_thread_that_has_ended(
    batcher: Batcher,
    monkeypatch: pytest.MonkeyPatch,
    told: list[logging.LogRecord],
    end: Callable[..., None],
    fault: BaseException,
) -> None:
    end(batcher, monkeypatch, fault)
    outcomes = together(batcher, [1.0] * CALLERS)
    late = all_of([lambda: batcher.call(object(), (), {"sample": torch.ones(1, 2)}), lambda: batcher._compute.run(int)])
    for outcome in (*outcomes, *late):
        assert isinstance(outcome, WorkerBroken), repr(outcome)
        assert outcome.message == f"the compute thread ended: {type(fault).__name__}"
        assert outcome.__cause__ is fault
    assert len({id(outcome) for outcome in outcomes}) == CALLERS  # each its own: they are raised in different threads
    batcher._compute.close()
    assert not batcher._compute._thread.is_alive()
    assert told[-1].exc_info
    assert told[-1].exc_info[1] is fault


def test_who_is_released_already_keeps_the_output(batcher: Batcher, monkeypatch: pytest.MonkeyPatch) -> None:
    class Breaks:
        """In place of a call: it cannot be finished."""

        owner = None
        __slots__ = ()

    real = batcher._outcomes

    def outcomes(group: Any) -> Any:
        first, *others = real(group)
        return [first, (Breaks(), None, None, 1), *others]

    monkeypatch.setattr(batcher, "_outcomes", outcomes)
    done = together(batcher, [1.0, 2.0, 3.0, 4.0])
    assert sum(isinstance(outcome, float) for outcome in done) == 1
    assert sum(isinstance(outcome, WorkerBroken) for outcome in done) == 3


def test_jobs_and_calls_of_other_networks_are_released_too(compute: Compute, monkeypatch: pytest.MonkeyPatch) -> None:
    ends, other = Batcher(Doubles(), compute), Batcher(Doubles(), compute)
    compute.serve(other)
    compute.serve(ends)
    held, go = threading.Event(), threading.Event()

    def broken(now: float) -> Any:
        raise RuntimeError("a source broke")

    def call_in(batcher: Batcher) -> Any:
        return batcher.call(object(), (), {"sample": torch.ones(1, 2)})

    def first_job() -> None:
        held.set()
        go.wait(PATIENCE)
        compute._jobs.appendleft(broken)  # type: ignore[arg-type]  # what no caller waits for has no caller to tell

    def meanwhile() -> None:
        assert held.wait(PATIENCE)
        deadline = time.monotonic() + PATIENCE
        while (not other._waiting or not ends._waiting or not compute._jobs) and time.monotonic() < deadline:
            time.sleep(0.001)
        go.set()

    def job() -> None:
        assert held.wait(PATIENCE)
        compute.run(int)

    first, *waiting = all_of(
        [lambda: compute.run(first_job), lambda: call_in(ends), lambda: call_in(other), job], meanwhile
    )
    assert first is None
    assert [type(outcome) for outcome in waiting] == [WorkerBroken] * 3


def test_a_call_after_close_is_refused(compute: Compute, batcher: Batcher) -> None:
    compute.close()
    refused = all_of([lambda: batcher.call(object(), (), {"sample": torch.ones(1, 2)}), lambda: compute.run(int)])
    assert [str(outcome) for outcome in refused] == ["the compute thread is closed"] * 2


def test_a_fault_of_a_job_is_its_callers_alone(compute: Compute, batcher: Batcher) -> None:
    (outcome,) = all_of([lambda: compute.run(lambda: exec("raise SystemExit(3)"))])
    assert isinstance(outcome, SystemExit)
    assert together(batcher, [1.0, 2.0]) == [2.0, 4.0]


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (RuntimeError("CUDA error: an illegal memory access was encountered"), WorkerBroken),
        (RuntimeError("something else"), OutOfMemory),
    ],
)
def test_memory_that_cannot_be_freed_loses_no_group(
    batcher: Batcher, monkeypatch: pytest.MonkeyPatch, fault: Exception, told: type
) -> None:
    end_in_freeing(batcher, monkeypatch, fault)
    for outcome in together(batcher, [1.0] * CALLERS):
        assert isinstance(translated(outcome, begun=True), told)
    network(batcher).check = lambda _: None
    assert together(batcher, [3.0]) == [6.0]


def test_a_merged_forward_that_fails_is_run_call_by_call(batcher: Batcher, told: list[logging.LogRecord]) -> None:
    def picky(sample: torch.Tensor) -> None:
        if sample.shape[0] > 2:
            raise ValueError("this model takes at most two rows, says /opt/model.py")

    network(batcher).check = picky
    assert together(batcher, [1.0, 2.0, 3.0, 4.0]) == [2.0, 4.0, 6.0, 8.0]
    assert network(batcher).rows == [4, 1, 1, 1, 1]
    assert batcher.calls == batcher.forwards == 4  # no forward was shared: the proof at load goes by that
    assert together(batcher, [5.0, 6.0, 7.0, 8.0]) == [10.0, 12.0, 14.0, 16.0]
    assert network(batcher).rows[5:] == [1] * 4  # not merged again
    assert together(batcher, [5.0, 6.0]) == [10.0, 12.0]
    assert network(batcher).rows[9:] == [1, 1]
    (line,) = told
    assert (line.levelname, vars(line)["fault"]) == ("WARNING", "ValueError")
    assert "model.py" not in line.getMessage()


def test_only_the_bad_call_fails_and_with_its_own_fault(batcher: Batcher) -> None:
    def picky(sample: torch.Tensor) -> None:
        bad = [value for value in sample[:, 0].tolist() if value < 0]
        if bad:
            raise ValueError(f"negative: {bad}")

    network(batcher).check = picky
    first, bad, third, worse = together(batcher, [1.0, -2.0, 3.0, -4.0])
    assert (first, third) == (2.0, 6.0)
    assert (str(bad), str(worse)) == ("negative: [-2.0]", "negative: [-4.0]")


def test_calls_that_are_not_merged_are_not_waited_for(batcher: Batcher) -> None:
    def picky(sample: torch.Tensor) -> None:
        if sample.shape[0] > 2:
            raise ValueError("not these")

    network(batcher).check = picky
    together(batcher, [1.0, 2.0, 3.0])
    batcher.patience, batcher.most_patience = 1e6, 5.0
    together(batcher, [1.0])
    began = time.monotonic()
    assert together(batcher, [1.0]) == [2.0]
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("words", ["CUDA error: unspecified launch failure", "CUBLAS_STATUS_EXECUTION_FAILED"])
def test_after_a_lost_device_nothing_is_tried_again(batcher: Batcher, words: str) -> None:
    def lose(_: torch.Tensor) -> None:
        raise RuntimeError(words)

    network(batcher).check = lose
    outcomes = together(batcher, [1.0] * CALLERS)
    assert network(batcher).rows == [CALLERS]
    assert [str(outcome) for outcome in outcomes] == [words] * CALLERS


@pytest.mark.parametrize("fault", [ValueError("x"), TypeError("x")])
def test_a_value_error_is_the_requests_until_the_denoiser_is_called(fault: Exception) -> None:
    assert translated(fault, begun=False) is fault
    named = translated(fault, begun=True)
    assert isinstance(named, Internal)
    assert named.retryable
    assert translated(KeyError("x"), begun=True).args == ("x",)
