"""The life of a task under any interleaving: hypothesis drives Darkroom's own classes over S3 and SQS in memory
(world.py) and looks for the shortest history in which a promise breaks. histories.py draws many more, and longer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from .histories import TROUBLES, WAITS
from .stepped import ORDERS
from .world import BODIES, INVOCATION, NAMES, SKEW, SKEWS, WORKERS, World

if TYPE_CHECKING:
    from tests.memory import Trouble

pytestmark = pytest.mark.slow

WORLDS: list[World] = []
names, bodies, picks = st.sampled_from(NAMES), st.sampled_from(BODIES), st.integers(0, 20)
skews = st.sampled_from((0.0, SKEW / 2, SKEW)) if SKEW else st.just(0.0)


class Life(RuleBasedStateMachine):
    """All that may happen to three tasks; what must never happen is checked at every write, by the ledger."""

    def __init__(self) -> None:
        super().__init__()
        self.world = WORLDS[0] if WORLDS else World()
        WORLDS[:] = [self.world]

    @initialize(off=st.tuples(*[skews] * SKEWS))
    def begin(self, off: tuple[float, ...]) -> None:
        self.world.begin(off)

    @invariant()
    def nothing_is_wrong(self) -> None:
        assert self.world.ledger.wrong == [], "\n".join(self.world.events)

    @rule(name=names, body=bodies)
    def submits(self, name: str, body: dict[str, Any]) -> None:
        self.world.submits(name, body)

    @rule(name=st.sampled_from((*NAMES, None)), body=st.sampled_from((*BODIES, {"prompt": ""})))
    def sends_a_message(self, name: str | None, body: dict[str, Any]) -> None:
        self.world.sends(name, body)

    @rule(name=names)
    def cancels(self, name: str) -> None:
        self.world.cancels(name)

    @rule(name=st.sampled_from((*NAMES, None)))
    def redrives(self, name: str | None) -> None:
        self.world.redrives(name)

    @precondition(lambda self: self.world.queue.visible())
    @rule(worker=st.integers(0, WORKERS - 1), pick=picks, twice=st.booleans())
    def a_message_comes(self, worker: int, pick: int, twice: bool) -> None:
        self.world.delivers(worker, pick, twice=twice)

    @precondition(lambda self: self.world.queue.visible())
    @rule(pick=picks, size=st.integers(1, 2), seconds=st.sampled_from(INVOCATION))
    def the_function_is_invoked(self, pick: int, size: int, seconds: int) -> None:
        self.world.invokes(pick, size, seconds)

    @precondition(lambda self: self.world.queue.visible())
    @rule(pick=picks)
    def a_message_is_lost_on_its_way(self, pick: int) -> None:
        self.world.loses(pick)

    @precondition(lambda self: self.world.dead.visible())
    @rule(pick=picks)
    def a_dead_letter_comes(self, pick: int) -> None:
        self.world.buries(pick)

    @rule()
    def the_doctor_looks(self) -> None:
        self.world.looks()

    @precondition(lambda self: self.world.live)
    @rule(pick=picks, calls=st.integers(1, 30))
    def somebody_goes_on_undisturbed(self, pick: int, calls: int) -> None:
        self.world.goes_on(pick, calls)

    @precondition(lambda self: self.world.live)
    @rule(
        pick=picks,
        calls=st.sampled_from((1, 2, 4, 30)),
        trouble=st.sampled_from(TROUBLES),
        order=st.sampled_from(ORDERS),
    )
    def somebody_goes_on(self, pick: int, calls: int, trouble: Trouble, order: str) -> None:
        self.world.goes_on(pick, calls, trouble, order)

    @precondition(lambda self: self.world.live)
    @rule(pick=picks)
    def somebody_dies(self, pick: int) -> None:
        self.world.dies(pick)

    @rule(seconds=st.sampled_from(WAITS))
    def time_passes(self, seconds: int) -> None:
        self.world.waits(seconds)

    def teardown(self) -> None:
        """Whatever happened, every task reaches an end."""
        try:
            if not self.world.ledger.wrong:
                self.world.settle()
                self.nothing_is_wrong()
        finally:
            self.world.end()


Life.TestCase.settings = settings(
    max_examples=150,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TestLife = Life.TestCase
