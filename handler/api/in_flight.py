"""How many tasks of a tenant may be pending or running at a time, so that one tenant cannot fill the queue.

Counted by the list of open tasks, one request for 1,000; on it may be some that have ended, so where it is full their
records decide. Of submissions at the same moment a few more may pass. Messages sent straight to SQS pass by.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from typing import TYPE_CHECKING

from ..contract.statuses import TERMINAL
from ..errors import QuotaExceeded

if TYPE_CHECKING:
    from ..aws.s3 import Stored
    from ..aws.store import TaskStore

ASK_AGAIN = 5.0
"""Seconds, for ``Retry-After``: nobody knows when a task of the tenant's ends."""
READ_AT_ONCE = 32
MOST_READ = 2000
"""Records. Behind so many that have ended, as when the event bus was away for long, nobody is kept waiting."""


def check_in_flight(store: TaskStore, most: int) -> None:
    """Raises QuotaExceeded if the store's tenant has ``most`` open tasks or more. 0: it may have any number."""
    if not most:
        return
    listed = store.open_here()
    first = list(islice(listed, most))
    if len(first) < most:
        return
    running, names = 0, islice(chain(first, listed), MOST_READ)
    with ThreadPoolExecutor(READ_AT_ONCE) as pool:
        while some := list(islice(names, READ_AT_ONCE)):
            running += sum(_runs(stored) for stored in pool.map(store.read, some))
            if running >= most:
                raise QuotaExceeded(f"{most} tasks may be pending or running at a time, and as many are", ASK_AGAIN)


def _runs(stored: Stored | None) -> bool:
    return stored is not None and json.loads(stored.body)["status"] not in TERMINAL
