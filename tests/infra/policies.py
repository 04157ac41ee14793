"""What a template's roles may do, as IAM would decide it: as much of it as the templates use."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .recording import Call
    from .template import Template


@dataclass(frozen=True)
class Grant:
    """One action on one pattern of resources; ``prefixes`` are those of listings, empty for any."""

    role: str
    action: str
    resource: str
    prefixes: tuple[str, ...] = ()

    def covers(self, call: Call) -> bool:
        return (
            self.action == call.action
            and matches(self.resource, call.resource)
            and (not self.prefixes or any(matches(one, call.prefix or "") for one in self.prefixes))
        )


def matches(pattern: str, text: str) -> bool:
    """IAM's wildcards: a star is any text, slashes included."""
    return re.fullmatch(re.escape(pattern).replace(r"\*", ".*").replace(r"\?", "."), text) is not None


def grants(template: Template) -> Iterator[Grant]:
    """Everything that any role is allowed, by inline policies of its own and by those that name it."""
    for name, resource in template.resources().items():
        properties = resource.get("Properties", {})
        if resource["Type"] == "AWS::IAM::Role":
            for policy in properties.get("Policies", []):
                yield from _allowed(name, policy["PolicyDocument"])
        elif resource["Type"] == "AWS::IAM::Policy":
            for role in properties["Roles"]:
                yield from _allowed(role.strip("<>"), properties["PolicyDocument"])


def _allowed(role: str, document: dict[str, Any]) -> Iterator[Grant]:
    for statement in document["Statement"]:
        if statement["Effect"] != "Allow" or "NotAction" in statement or "NotResource" in statement:
            raise ValueError(f"{role}: {statement}: roles are told what they may do, and nothing else")
        conditions = statement.get("Condition", {})
        prefixes = [one for keys in conditions.values() for one in _list(keys.get("s3:prefix", []))]
        for action in _list(statement["Action"]):
            for resource in _list(statement["Resource"]):
                yield Grant(role, action, resource, tuple(prefixes))


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
