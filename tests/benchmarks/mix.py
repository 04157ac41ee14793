"""The tasks that servers are compared with: the same at every run, each of other steps, guidance, prompt and seed."""

from __future__ import annotations

import itertools
import random
from typing import TYPE_CHECKING

from .load import Task

if TYPE_CHECKING:
    from collections.abc import Sequence

WARM_UP = (Task(0, "a fox", 20, 4.0, 1), Task(0, "a key on a blue background", 20, 4.0, 2))
STEPS = range(8, 33, 4)
GUIDANCE = (1.0, 2.5, 4.0, 5.5, 7.5, 9.0)
THINGS = ("red apple", "lemon", "pizza", "cat", "fox", "panda", "owl", "crab", "rose", "cactus", "rainbow", "rocket")
COLOURS = ("black", "red", "green", "blue", "yellow", "orange", "purple", "pink", "gray", "teal", "brown")


def draw_lots(dues: Sequence[float]) -> list[Task]:
    """A task for each time of arrival. Steps and guidance are round numbers, so that some requests are of equal
    parameters and peers can batch them.
    """
    lots = random.Random(42)
    pairs = lots.sample(list(itertools.product(THINGS, COLOURS)), len(dues))
    return [
        Task(
            due, f"a {thing} on a {colour} background", lots.choice(STEPS), lots.choice(GUIDANCE), lots.getrandbits(31)
        )
        for due, (thing, colour) in zip(dues, pairs, strict=True)
    ]
