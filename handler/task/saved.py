"""A task's checkpoint: read from an earlier attempt, written by this one."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Protocol

from ..errors import ServiceFault
from ..logs import logger

if TYPE_CHECKING:
    from ..engine import Running


class Checkpoints(Protocol):
    """The part of TaskStore that SavedSteps needs."""

    def read_checkpoint(self, task_id: str, name: str = "") -> bytes: ...
    def put_checkpoint(self, task_id: str, body: bytes, name: str = "") -> None: ...
    def delete_checkpoint(self, task_id: str, name: str = "") -> None: ...


class SavedSteps:
    """One attempt's view of the checkpoint. ``may_exist``: an earlier attempt may have left one."""

    def __init__(self, checkpoints: Checkpoints, task_id: str, *, may_exist: bool) -> None:
        self._checkpoints, self._task_id, self.may_exist = checkpoints, task_id, may_exist
        self._writing = threading.Lock()
        self.name = ""
        """What the checkpoint is called: the picture's identity, dtype included. Set before ``load``."""
        self.step = 0
        """Steps in the checkpoint that this attempt wrote last."""

    def load(self) -> bytes:
        """An earlier attempt's checkpoint, empty if there is none. No request is made unless there may be one."""
        return self._checkpoints.read_checkpoint(self._task_id, self.name) if self.may_exist else b""

    def save(self, running: Running | None, step: int) -> int:
        """Writes a checkpoint of ``step`` steps; returns its size in bytes, 0 if there is nothing to save."""
        with self._writing:  # one after another: an older one must not land on a newer one
            body = running.snapshot() if running else b""
            if body:
                self.may_exist = True
                self._checkpoints.put_checkpoint(self._task_id, body, self.name)
                self.step = max(step, self.step)
        return len(body)

    def clear(self) -> None:
        """Deletes the checkpoint of an ended task. If that fails, the bucket's lifecycle rule deletes it later."""
        if not self.may_exist:
            return
        try:
            self._checkpoints.delete_checkpoint(self._task_id, self.name)
        except ServiceFault as fault:
            logger.warning("a checkpoint was left behind", task_id=self._task_id, fault=fault.message)
