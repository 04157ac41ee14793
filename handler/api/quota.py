"""The daily budget: how many images, or dollars' worth of them, a tenant may ask for over HTTP in a day (UTC).

One small object per tenant and day, ``spend/{day}.json``, changed by compare-and-swap before a task's record is
created:

- Two submissions at the same moment: one write wins, the other reads again. So the budget is never overdrawn, however
  many API processes there are.
- The same task submitted twice: the object lists the latest tasks that it counted, and a listed one is not counted
  again.
- A crash between the count and the record: counted, and nothing is drawn. The same submission repeated with the same
  task_id is not counted again; otherwise its images are lost from the budget until midnight (UTC). In the other order a
  crash would give images away.
- An accepted task stays counted even if it fails or is cancelled. A redrive, by an operator, counts nothing.

Messages sent straight to SQS bypass all of this.
"""

from __future__ import annotations

import json
import random
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from ..errors import FieldError, LostRace, QuotaExceeded, ServiceFault

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..aws.s3 import Stored
    from ..aws.store import TaskStore
    from ..settings import Settings

KEPT_TASKS = 500
"""Latest tasks that the object lists: far more than are submitted while one caller retries."""
GIVE_UP = 15.0
"""Seconds, of the 29 that API Gateway grants a call."""
FIRST_PAUSE, LONGEST_PAUSE = 0.02, 0.5
MICRO = 1_000_000


@dataclass(frozen=True)
class Spent:
    """A day's spending. ``dollars``: in millionths, for exact sums; ``tasks``: the latest tasks and their images."""

    images: int = 0
    dollars: int = 0
    tasks: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, stored: Stored | None) -> Spent:
        return cls(**json.loads(stored.body)) if stored else cls()

    def plus(self, task_id: str, images: int, dollars: int) -> Spent:
        others = {name: count for name, count in self.tasks.items() if name != task_id}
        tasks = [*others.items(), (task_id, self.tasks.get(task_id, 0) + images)]
        return Spent(self.images + images, self.dollars + dollars, dict(tasks[-KEPT_TASKS:]))

    def to_json(self) -> bytes:
        return json.dumps(vars(self)).encode()


class Budget:
    """Enforces the daily budget. Thread-safe. Without a limit in the settings it makes no S3 requests."""

    def __init__(
        self,
        settings: Settings,
        now: Callable[[], datetime],
        *,
        sleep: Callable[[float], None] = time.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._most_images = settings.daily_images
        self._most_dollars = round(settings.daily_dollars * MICRO)
        self._image_dollars = round(settings.image_dollars * MICRO)
        self._now, self._sleep, self._chance = now, sleep, chance
        self._one_at_a_time = threading.Lock()  # the threads of one process need not race each other in S3

    def spend(self, store: TaskStore, task_id: str, images: int) -> None:
        """Counts a task's images for the store's tenant, unless that task was counted before.

        Raises QuotaExceeded if they exceed what is left of today's budget, and ServiceFault.
        """
        if not self._most_images and not self._most_dollars:
            return None
        until, pause = time.monotonic() + GIVE_UP, FIRST_PAUSE
        while time.monotonic() < until:
            try:
                with self._one_at_a_time:
                    return self._count(store, task_id, images)
            except LostRace:
                self._sleep(pause * self._chance())
                pause = min(2 * pause, LONGEST_PAUSE)
        raise ServiceFault("too many submissions at once: the budget could not be counted; nothing was done")

    def _count(self, store: TaskStore, task_id: str, images: int) -> None:
        """One try. Raises LostRace if another submission was counted meanwhile."""
        now = self._now().astimezone(UTC)
        stored = store.read_spending(now.date())
        spent = Spent.of(stored)
        # A listed task asks for more only if two requests race for one task_id: then the larger of them is counted.
        more = images - spent.tasks.get(task_id, 0)
        if more <= 0:
            return
        self._check(spent, more, now)
        counted = spent.plus(task_id, more, more * self._image_dollars)
        store.write_spending(now.date(), counted.to_json(), stored)

    def _check(self, spent: Spent, images: int, now: datetime) -> None:
        reasons = []
        if self._most_images and spent.images + images > self._most_images:
            left = max(0, self._most_images - spent.images)
            reasons.append(f"{left} of {self._most_images} images are left today, and it asks for {images}")
        cost = images * self._image_dollars
        if self._most_dollars and spent.dollars + cost > self._most_dollars:
            left = max(0, self._most_dollars - spent.dollars)
            of = f"${left / MICRO:.2f} of ${self._most_dollars / MICRO:.2f}"
            reasons.append(f"{of} are left today, and it counts as ${cost / MICRO:.4f}")
        if reasons:
            renews = datetime.combine(now.date() + timedelta(days=1), datetime.min.time(), UTC)
            message = (
                f"the daily budget does not hold this task: {'; '.join(reasons)}. It renews at {renews.isoformat()}"
            )
            raise QuotaExceeded(
                message, (renews - now).total_seconds(), [FieldError("num_images", one) for one in reasons]
            )
