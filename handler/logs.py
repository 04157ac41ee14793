"""The log: one JSON object per line on stderr, so that stdout is free for a command's output."""

from __future__ import annotations

import logging
import secrets
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


def new_log_id() -> str:
    """What a caller is told in place of a cause, which may hold paths, hosts and keys: the log has it under this id."""
    return secrets.token_hex(4)


def configured(settings: Settings | None = None) -> Settings:
    """Sets the log's level from the settings, which are read from the environment unless given; returns them."""
    settings = settings or Settings.load()
    logger.setLevel(settings.log_level)
    return settings


def log(*, at_all: bool) -> None:
    """Without ``at_all`` nothing is logged: a command tells its user in words what there is to know."""
    logging.getLogger(logger.name).setLevel("INFO" if at_all else logging.CRITICAL + 1)


def warm(build: Callable[[Settings], T]) -> _lru_cache_wrapper[T]:
    """A function that builds its result at the first call and returns the same one later: what a warm Lambda keeps."""

    @cache
    def built() -> T:
        return build(configured())

    return built
