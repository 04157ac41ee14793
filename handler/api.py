"""What the HTTP handlers share: Powertools' resolver for both payload formats, and one envelope for every error."""

from __future__ import annotations

import base64
import json
import threading
from typing import TYPE_CHECKING, Any

from aws_lambda_powertools.event_handler import Response
from aws_lambda_powertools.event_handler.api_gateway import ApiGatewayResolver, ProxyEventType

from .errors import DarkroomError, Fault, Internal, InvalidRequest, NotFound
from .logs import logger

if TYPE_CHECKING:
    from collections.abc import Callable

ONE_AT_A_TIME = threading.Lock()
"""Powertools keeps the event in a class attribute: Lambda serves one at a time, and so do threads elsewhere."""

Event = dict[str, Any]
Answer = dict[str, Any]


class Api:
    """One set of routes behind REST APIs (payload 1.0), HTTP APIs and function URLs (2.0)."""

    def __init__(self, register: Callable[[ApiGatewayResolver], None]) -> None:
        self._register = register
        self._apps: dict[ProxyEventType, ApiGatewayResolver] = {}

    def __call__(self, event: Event, context: Any) -> Answer:
        v2 = event.get("version") == "2.0"
        kind = ProxyEventType.APIGatewayProxyEventV2 if v2 else ProxyEventType.APIGatewayProxyEvent
        with ONE_AT_A_TIME:
            if kind not in self._apps:
                self._apps[kind] = self._build(kind)
            return self._apps[kind].resolve(event, context)

    def _build(self, kind: ProxyEventType) -> ApiGatewayResolver:
        app = ApiGatewayResolver(proxy_type=kind)
        app.exception_handler(DarkroomError)(_refuse)
        app.exception_handler(Exception)(_break)
        app.not_found(lambda _: _refuse(NotFound("there is nothing at this path")))
        self._register(app)
        return app


def _refuse(fault: DarkroomError) -> Response[str]:
    if fault.http_status >= 500:
        logger.error(fault.message, cause=str(fault.__cause__) if fault.__cause__ else None)
    return answer(fault.http_status, fault.envelope())


def _break(fault: Exception) -> Response[str]:
    """A fault of ours: the log has the trace, the caller gets a sentence."""
    logger.exception("unexpected fault", exc_info=fault)
    return answer(500, Internal("something broke on our side; the log tells what").envelope())


def answer(status: int, body: object) -> Response[str]:
    return Response(status_code=status, content_type="application/json", body=json.dumps(body))


def body_of(event: Event) -> bytes:
    """The request's body as it was sent; API Gateway encodes what it takes for binary."""
    body = event.get("body") or ""
    if not event.get("isBase64Encoded"):
        return body.encode("utf-8", "surrogatepass")
    try:
        return base64.b64decode(body, validate=True)
    except ValueError as fault:
        raise InvalidRequest([Fault("body", f"is not base64: {fault}")]) from fault
