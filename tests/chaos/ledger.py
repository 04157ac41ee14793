"""What must hold at every write, whoever makes it; for the model of world.py."""

from __future__ import annotations

import re
from collections import Counter
from datetime import timedelta
from hashlib import sha256
from typing import TYPE_CHECKING

from handler.contract.record import Record
from handler.contract.statuses import TERMINAL

from .processes import running

if TYPE_CHECKING:
    from datetime import datetime

    from handler.settings import Settings

    from ..memory import Bucket, Kept

IMAGE = re.compile(r"tasks/([^/]+)/(\d+)/\d+\.png")
RECORD = re.compile(r"tasks/([^/]+)/status\.json")


class Ledger:
    """Keeps all that went wrong, and counts what was written."""

    def __init__(self, settings: Settings, bucket: Bucket) -> None:
        self._tries, self._lease = settings.max_tries, timedelta(seconds=settings.lease)
        self._bucket = bucket
        self.clear()

    def clear(self) -> None:
        self.wrong: list[str] = []
        self.counts: Counter[str] = Counter()
        self._signs: dict[str, datetime] = {}
        """When each task's holder last gave a sign of life: when it was written, by the bucket's own time."""

    def seen(self, key: str, old: Kept | None, new: Kept) -> None:
        """Of each put that was done."""
        if found := IMAGE.fullmatch(key):
            self.expect(old is None or old.by == new.by, found[1], f"{key} of {old and old.by} written over")
        elif found := RECORD.fullmatch(key):
            was = Record.from_json(old.body) if old else None
            record = Record.from_json(new.body)
            self.counts["writes"] += 1
            if was is None:
                self.expect(record.sequence == 1 + (record.attempt > 0), found[1], f"begins with {record.sequence}")
                self.expect(not record.images, found[1], "begins with images")
            else:
                self._goes_on(was, record)
                self._is_the_holders(was, record)
                self._is_counted(was, record)
            self._ends(was, record)
            process = running()
            if process and record.lease and (was is None or record.attempt > was.attempt):
                process.owner = record.lease.owner  # from here on what it writes is this attempt's
            if record.lease is not None:
                self._signs[record.task_id] = self._bucket.now()

    def expect(self, holds: bool, task_id: str, what: str) -> None:
        if not holds:
            self.wrong.append(f"{task_id}: {what}")

    def _goes_on(self, old: Record, new: Record) -> None:
        name = old.task_id
        self.expect(new.sequence == old.sequence + 1, name, f"sequence {old.sequence} to {new.sequence}")
        self.expect(new.fingerprint == old.fingerprint, name, "another request")
        seeds = {one.request.seed for one in (old, new) if one.request}
        self.expect(len(seeds) <= 1, name, f"seeds {seeds}")
        self.expect(new.attempt - old.attempt in {0, 1}, name, "attempts were skipped")
        self.expect(new.sends >= old.sends, name, f"sends {old.sends} to {new.sends}")
        self.expect(new.saved_step >= old.saved_step, name, "saved steps were forgotten")
        sent = new.status == "pending" and old.status in {"pending", "failed"}
        self.expect(not sent or new.sends == old.sends + 1, name, "a message that is not counted")
        redriven = self._by("redrive") and (old.status, new.status) == ("failed", "pending")
        self.expect(not redriven or new.tries == 0, name, f"{new.tries} tries at a redrive")
        self.expect(redriven or new.tries >= old.tries, name, f"tries {old.tries} to {new.tries}")
        self.expect(redriven or old.status not in TERMINAL, name, f"{new.status} over {old.status}")
        self.expect(new.tries < self._tries or new.status in TERMINAL, name, f"{new.status} after {new.tries} tries")

    def _is_the_holders(self, old: Record, new: Record) -> None:
        """An attempt writes what it holds, and claims what nobody holds."""
        name, holder = old.task_id, old.lease.owner if old.lease else ""
        process = running()
        if process is not None and process.owner:
            self.expect(process.owner == holder, name, f"{process.owner} wrote what {holder or 'nobody'} held")
        taken = holder and new.status != "cancelled" and not (process and process.owner == holder)
        if taken:
            since = self._bucket.now() - self._signs[name]
            self.expect(since >= self._lease, name, f"{holder} lost it {since} after a sign of life")

    def _is_counted(self, old: Record, new: Record) -> None:
        """A try is an attempt that ended by its own fault, or without a step saved."""
        if old.lease is None or new.status in {"completed", "cancelled"}:
            return
        process, saved = running(), new.saved_step > old.lease.saved_step
        if process is not None and process.owner == old.lease.owner:
            ended = new.lease is None and new.error is not None
            too_long = bool(new.attempts) and new.attempts[-1].code == "TIMED_OUT"
            suspended = bool(new.attempts) and new.attempts[-1].outcome == "suspended"
            counts = ended and (process.broke or too_long or (suspended and not saved))
            if ended and new.attempts[-1].outcome == "failed":
                return
        else:
            counts = not saved
        self.expect(new.tries == old.tries + counts, old.task_id, f"tries {old.tries} to {new.tries}, not {counts}")

    def _ends(self, old: Record | None, new: Record) -> None:
        if new.status in TERMINAL and not (old and old.status in TERMINAL):
            self.counts[new.status] += 1
        if new.status != "completed":
            return
        process = running()
        for image in new.images:
            there = self._bucket.objects.get(image.key)
            self.expect(f"/{new.attempt}/" in image.key, new.task_id, "another attempt's image")
            self.expect(there is not None, new.task_id, f"{image.key} is not there")
            if there is not None and process is not None:
                self.expect(there.by == process.owner, new.task_id, f"{image.key} is {there.by or 'nobody'}'s")
                self.expect(sha256(there.body).hexdigest() == image.sha256, new.task_id, "another picture")
        self.expect(bool(new.images), new.task_id, "completed without a picture")

    @staticmethod
    def _by(kind: str) -> bool:
        process = running()
        return process is not None and process.kind == kind
