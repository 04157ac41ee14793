"""Is there time for a task before it is claimed? Asked once its record is read, and before anything is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..contract.statuses import TERMINAL
from ..errors import Suspended
from ..task.budget import RESERVE, size_of
from ..task.messages import Asked

if TYPE_CHECKING:
    from datetime import datetime

    from ..contract.card import ModelCard
    from ..contract.record import Record
    from ..contract.request import GenerationRequest
    from ..task.budget import Costs
    from .delivery import Delivery


@dataclass(frozen=True)
class Admission:
    """What a ``delivery`` has time for, by what this process knows of the ``costs``."""

    delivery: Delivery
    costs: Costs
    card: ModelCard
    now: datetime

    def record(self, record: Record) -> None:
        """Gives the message back at once if the task would be claimed in vain. One that nobody may claim passes: its
        message need not come back for that.
        """
        held = record.lease is not None and record.lease.expires_at > self.now
        if record.status not in TERMINAL and record.request is not None and not held:
            self.request(record.request, record.saved_step)

    def request(self, request: GenerationRequest, saved: int = 0) -> None:
        """Gives the message back at once if not one step more fits. What would fit into no invocation passes: its
        attempt ends as a try, and so does the task in the end.
        """
        request = self.card.resolve(request)
        least = RESERVE + self.costs.least(size_of(request), (request.steps or 1) - saved)
        if self.delivery.left < least <= self.delivery.whole:
            self.delivery.give_back(Suspended("too little of this invocation is left to begin it"), after=0)


@dataclass(frozen=True)
class Admitted(Asked):
    """What a message asks for, where the time for it is looked at as well."""

    admission: Admission | None = None

    def check(self, record: Record) -> None:
        """Raises Returned, too."""
        super().check(record)
        if self.admission is not None:
            self.admission.record(record)

    @classmethod
    def of(cls, asked: Asked, admission: Admission) -> Admitted:
        """Raises Returned for a caller's own message, which tells its request itself."""
        if asked.pointer is None and asked.parsed.request is not None:
            admission.request(asked.parsed.request)
        return cls(asked.task_id, asked.tenant, asked.pointer, asked.parsed, asked.body, admission)
