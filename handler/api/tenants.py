"""Finds the tenant of an HTTP request.

API Gateway has authenticated the caller by an API key, a signature or a token; ``TENANTS`` says which of these
identifies the tenant. ``TENANTS=header`` trusts an unverified header and is for local use.

The tenant of an SQS message is whatever its sender wrote: whoever may send to the queue can act for any tenant.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Any

from ..contract.ids import TENANT
from ..errors import FieldError, Unidentified

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ..settings import Settings

HASHED = "sha256-"
ASSUMED_ROLE = re.compile(r"(arn:[^:]+:sts::\d+:assumed-role/[^/]+)/.+")


def tenant_of(event: Mapping[str, Any], settings: Settings) -> str | None:
    """The tenant of an API Gateway event (either payload format); None with ``TENANTS=off``.

    Raises Unidentified if the event has no identity: it must not be served as one without a tenant.
    """
    if settings.tenants == "off":
        return None
    identity = IDENTITIES[settings.tenants](event)
    if not isinstance(identity, str) or not identity:
        raise Unidentified(
            "the request does not tell who sends it", [FieldError(WANTED[settings.tenants], "is missing")]
        )
    return tenant_name(identity)


def tenant_name(identity: str) -> str:
    """The tenant's name: the identity itself if it is a valid name, else a hash of it. No two identities share one."""
    if re.fullmatch(TENANT, identity) and not identity.startswith(HASHED):
        return identity
    return HASHED + hashlib.sha256(identity.encode("utf-8", "surrogatepass")).hexdigest()[:48]


def _context(event: Mapping[str, Any], *path: str) -> Any:
    value: Any = event.get("requestContext")
    for step in path:
        value = value.get(step) if isinstance(value, dict) else None
    return value


def _api_key(event: Mapping[str, Any]) -> Any:
    """The API key's id, never its value, which is a secret, while tenant names appear in S3 keys and logs."""
    return _context(event, "identity", "apiKeyId")


def _iam(event: Mapping[str, Any]) -> Any:
    """The ARN without a role's session name, which whoever assumes the role can choose."""
    arn = _context(event, "identity", "userArn") or _context(event, "authorizer", "iam", "userArn")
    role = ASSUMED_ROLE.fullmatch(arn) if isinstance(arn, str) else None
    return role[1] if role else arn


def _jwt(event: Mapping[str, Any]) -> Any:
    return _context(event, "authorizer", "claims", "sub") or _context(event, "authorizer", "jwt", "claims", "sub")


def _header(event: Mapping[str, Any]) -> Any:
    return next((value for name, value in (event.get("headers") or {}).items() if name.lower() == "x-api-key"), None)


IDENTITIES: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    "api-key": _api_key,
    "iam": _iam,
    "jwt": _jwt,
    "header": _header,
}
WANTED = {"api-key": "x-api-key", "iam": "Authorization", "jwt": "Authorization", "header": "X-API-Key"}
"""The header that a caller has to send, for the error message."""
