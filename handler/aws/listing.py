"""How tasks are called in the two lists of the bucket: all of a tenant's, and those that somebody has to come for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

FAR_FUTURE_MS = 9_999_999_999_999
"""Index keys count down from it (to the year 2286), because S3 lists in ascending order only."""
NO_TENANT = "-"
"""In keys where a tenant's name stands: no tenant can be called that."""
AGAIN = "/again"
"""Ends the place in the list of a task that had ended before; no task's name has a slash."""
TOLD, ENDED = b"told", b"ended"
"""The content of the place of a task that has ended and left something to clear up: once the event bus has heard of it,
and where there is no bus. That of one that is open is empty, and so is that of an end of which the bus has not heard.
"""


def index_name(task_id: str, created_at: datetime) -> str:
    """A task's name in the index, under which a listing shows the newest tasks first."""
    return f"{FAR_FUTURE_MS - int(created_at.timestamp() * 1000):013d}-{task_id}"


@dataclass(frozen=True)
class OpenTask:
    """A task that somebody has to come for: ``since`` is when it was listed, by S3's clock; ``name`` its place in the
    list; ``told``: the event bus knows how it ended.
    """

    tenant: str | None
    task_id: str
    since: datetime
    name: str
    told: bool = False

    @classmethod
    def named(cls, name: str, since: datetime, size: int = 0) -> OpenTask:
        """``size``: of the place's content, which a listing says."""
        tenant, _, task_id = name.partition("/")
        of = None if tenant == NO_TENANT else tenant
        return cls(of, task_id.removesuffix(AGAIN), since, name, told=size == len(TOLD))

    @property
    def again(self) -> bool:
        """Whether it had ended before."""
        return self.name.endswith(AGAIN)
