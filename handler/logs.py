"""The log: one JSON object a line on stderr, so that a command's output stays its own."""

from __future__ import annotations

import sys
from functools import cache
from typing import TYPE_CHECKING, TypeVar

from aws_lambda_powertools import Logger

from .settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from functools import _lru_cache_wrapper

T = TypeVar("T")

logger = Logger(service="darkroom", stream=sys.stderr)


def configured(settings: Settings | None = None) -> Settings:
    """The settings, read from the environment unless given, with the log at their level."""
    settings = settings or Settings.load()
    logger.setLevel(settings.log_level)
    return settings


def warm(build: Callable[[Settings], T]) -> _lru_cache_wrapper[T]:
    """What a Lambda handler keeps from one invocation to the next: built by the first one that needs it."""

    @cache
    def built() -> T:
        return build(configured())

    return built
