"""The servers that are compared, by name."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from .clients import bentoml, darkroom, litserve, tutorial
from .load import Client, Load
from .mix import WARM_UP

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

DARKROOM, LOCKED, LITSERVE, BENTOML = "Darkroom", "tutorial, locked", "LitServe", "BentoML"
SERVERS: dict[str, tuple[str, Callable[[], AbstractContextManager[Client]]]] = {
    DARKROOM: ("fast", partial(darkroom, "auto")),
    "Darkroom float32": ("float32", partial(darkroom, "float32")),
    "tutorial": ("float32", partial(tutorial, "0")),
    LOCKED: ("float32", partial(tutorial, "1")),
    LITSERVE: ("fast", litserve),
    BENTOML: ("fast", bentoml),
}
"""By name: the type it draws with, and what starts it."""


@contextmanager
def warmed_up(name: str) -> Iterator[Client]:
    """Starts the server, and has it draw twice. Raises Unavailable."""
    _, start = SERVERS[name]
    with start() as client:
        for task in WARM_UP:
            Load(client, [task]).run()
        yield client
