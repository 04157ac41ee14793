"""The messages that Darkroom itself sends: not a request, but a pointer to the record of one."""

from __future__ import annotations

from pydantic import ConfigDict, ValidationError
from pydantic_core import from_json

from .request import Contract, TaskId


class Pointer(Contract):
    """Names a task that has a record. ``send`` is the record's ``sends`` when the message was sent, so that of several
    messages for one task the current one can be told from those that it took the place of.

    Fields that it does not know are passed over: while a deployment rolls, two versions read the same queue.
    """

    model_config = ConfigDict(extra="ignore")

    task_id: TaskId
    tenant: str | None = None
    fingerprint: str
    send: int = 0

    def to_json(self) -> str:
        """The message's body."""
        return self.model_dump_json(exclude_none=True)


def pointer_in(body: str) -> Pointer | None:
    """The pointer that a message's body is; None for a request, and for what is neither."""
    try:
        data = from_json(body.encode("utf-8", "surrogatepass"), allow_inf_nan=False)
    except ValueError:
        return None
    if not isinstance(data, dict) or "fingerprint" not in data or "prompt" in data:
        return None
    try:
        return Pointer.model_validate(data)
    except ValidationError:
        return None
