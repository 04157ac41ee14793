"""What a message asks for: a task that has a record, or a request that may not have one yet."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ..contract.ids import TENANT
from ..contract.pointer import pointer_in
from ..contract.request import Parsed, parse
from ..errors import Conflict, FieldError, Finished, InvalidRequest
from .envelopes import FILE, File, beginning, file_in, is_other_news_of_s3, unwrapped

if TYPE_CHECKING:
    from ..aws.queue import Message
    from ..contract.pointer import Pointer
    from ..contract.record import Record
    from ..contract.request import CardChecks


NOTHING = Parsed(None, (), None)


@dataclass(frozen=True)
class Asked:
    """``pointer``: the message is Darkroom's own, and the record tells the request. Else ``parsed`` does, and ``body``
    is the beginning of what the message held.
    """

    task_id: str
    tenant: str | None
    pointer: Pointer | None = None
    parsed: Parsed = NOTHING
    body: str = ""

    @classmethod
    def unnamed(cls, message: Message, tenant: str | None = None, parsed: Parsed = NOTHING) -> Asked:
        """By a message whose task can have no name but the message's own."""
        return cls(message.message_id, tenant, parsed=parsed, body=beginning(message.body))

    @property
    def send(self) -> int:
        """Which of the task's messages it is, as the record counts them; 0 for a caller's own."""
        return self.pointer.send if self.pointer else 0

    def check(self, record: Record) -> None:
        """Raises Finished for a message that there is nothing to do for: the record never was a request's, or the
        pointer is another task's of the same name. Raises Conflict for a request under a name that another one has.
        """
        if record.fingerprint is None:
            raise Finished("the record holds no request")
        if self.pointer is not None:
            if self.pointer.fingerprint != record.fingerprint:
                raise Finished("the message is for an earlier task of this name")
        elif self.parsed.request is not None and not record.asks_for(self.parsed.request):
            raise Conflict(f"the task_id {self.task_id} names another request")


class Files(Protocol):
    """The part of TaskStore that holds requests in files."""

    def read_request(self, bucket: str, key: str) -> bytes | None: ...


def asked_by(message: Message, card: CardChecks | None = None, files: Files | None = None) -> Asked:
    """Reads a message, and what it holds in envelopes of other services, or in the one of ``files`` that S3 says is
    new. A request is checked against the ``card`` of the model that will run it, where it is known.

    Raises Finished for a message that asks for nothing, and ServiceFault where a file cannot be read.

    Raises InvalidRequest where no tenant can be called what the message names as one: no record may be written then
    but one under the message's own id, and without a tenant.
    """
    pointer = pointer_in(message.body)
    tenant = pointer.tenant if pointer else message.tenant
    if tenant is not None and not re.fullmatch(TENANT, tenant):
        raise InvalidRequest([FieldError("tenant", f"the message attribute must match {TENANT}")])
    if pointer:
        return Asked(pointer.task_id, tenant, pointer)
    body, name = unwrapped(message.body), message.message_id
    if is_other_news_of_s3(body):
        raise Finished("S3 tells of something else than a new object")
    if (file := file_in(body)) is not None:
        body, name = _in_file(file, files), file.task_id
    parsed = parse(body, card)
    return Asked(parsed.task_id or name, tenant, parsed=parsed, body=beginning(body))


def _in_file(file: File, files: Files | None) -> str:
    """What a file holds that S3 tells of. Raises InvalidRequest for one that may not be read, or is gone; Finished for
    any other object: where S3 tells of all, a record of each would be news again.
    """
    if not FILE.fullmatch(file.key):
        raise Finished("S3 tells of an object that is no requests/….json")
    if files is None:
        raise InvalidRequest([FieldError("body", "files with requests are not read here")])
    found = files.read_request(file.bucket, file.key)
    if found is None:
        raise InvalidRequest([FieldError("body", f"{file.key} is not in this deployment's bucket")])
    return found.decode("utf-8", "surrogateescape")
