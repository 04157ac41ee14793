"""How many tasks of a tenant may be pending or running at a time, so that one tenant cannot fill the queue.

Counted by the list of open tasks, one request; on it may be tasks that have ended and left something to clear up, so
where the list is full their records decide. Of submissions at the same moment a few more may pass. Messages sent
straight to SQS pass by.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from ..contract.statuses import TERMINAL
from ..errors import QuotaExceeded

if TYPE_CHECKING:
    from ..aws.store import TaskStore

ASK_AGAIN = 5.0
"""Seconds, for ``Retry-After``: nobody knows when a task of the tenant's ends."""
READ_AT_ONCE = 32
MOST_LISTED = 1000
"""One request's worth."""


def check_in_flight(store: TaskStore, most: int) -> None:
    """Raises QuotaExceeded if the store's tenant has ``most`` open tasks or more. 0: it may have any number."""
    if not most:
        return
    listed = store.open_here(max(2 * most, MOST_LISTED))
    if len(listed) < most:
        return
    with ThreadPoolExecutor(READ_AT_ONCE) as pool:
        found = list(pool.map(store.read, listed))
    running = sum(json.loads(stored.body)["status"] not in TERMINAL for stored in found if stored is not None)
    if running >= most:
        raise QuotaExceeded(f"{running} tasks are pending or running, and {most} may be at a time", ASK_AGAIN)
