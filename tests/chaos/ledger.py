"""What must hold at every write of a record, whoever makes it; for the model of test_machine.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

from handler.contract.statuses import TERMINAL

if TYPE_CHECKING:
    from handler.contract.record import Record

    from .memory import Written


class Ledger:
    """Keeps all that went wrong."""

    def __init__(self) -> None:
        self.wrong: list[str] = []
        self.completed: list[str] = []

    def seen(self, write: Written) -> None:
        old, new = write.old, write.new
        if old is None:
            self.expect(new.sequence in {1, 2}, f"begins with {new.sequence}", new)
        else:
            self.expect(new.sequence == old.sequence + 1, f"sequence {old.sequence} to {new.sequence}", new)
            self.expect(old.status not in TERMINAL, f"{new.status} over {old.status}", new)
            self.expect(new.fingerprint == old.fingerprint, "another request", new)
            seeds = [one.request.seed for one in (old, new) if one.request]
            self.expect(len(set(seeds)) <= 1, f"seeds {seeds}", new)
            holder = old.lease.owner if old.lease else ""
            if write.writer:
                self.expect(write.writer == holder, f"{write.writer} wrote what {holder or 'nobody'} held", new)
            self.expect(new.attempt - old.attempt in {0, 1}, "attempts were skipped", new)
            if old.lease and new.attempt > old.attempt:
                self.expect(write.age >= (old.lease.seconds or 0), f"claimed while {holder} held it", new)
        if new.status == "completed":
            self.expect(new.task_id not in self.completed, "completed twice", new)
            self.expect(all(f"/{new.attempt}/" in one.key for one in new.images), "another attempt's images", new)
            self.completed.append(new.task_id)

    def expect(self, holds: bool, what: str, record: Record) -> None:
        if not holds:
            self.wrong.append(f"{record.task_id}, {record.sequence}: {what}")
