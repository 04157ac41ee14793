"""HTTP for the Lambda handlers: requests in both payload formats, routing, and one envelope for every error."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from aws_lambda_powertools.utilities.data_classes import APIGatewayProxyEvent, APIGatewayProxyEventV2

from ..contract.paths import PATHS
from ..errors import DarkroomError, FieldError, Internal, InvalidRequest, MethodNotAllowed, NotFound, ServiceFault
from ..logs import logger, new_log_id
from . import openai_errors
from .cors import with_cors

if TYPE_CHECKING:
    from collections.abc import Iterable

LONE_SURROGATE = re.compile(r"[\ud800-\udfff]")
HOST = re.compile(r"[A-Za-z0-9.:\[\]-]{1,255}")
SIGNATURE = "x-amz-"
"""What the parameters begin with by which a call may be signed in its query; API Gateway reads those."""
NO_BODY = frozenset({204, 304})

Event = dict[str, Any]
"""API Gateway's event for an HTTP request."""
LambdaResponse = dict[str, Any]
"""What API Gateway takes as the response to it."""
Route = Callable[..., "Reply"]
"""Takes the Call, and the path's variables as keyword arguments."""


def is_http(event: Event) -> bool:
    """Whether it is a request. What else comes (a schedule's test, a warm-up) is told in the log and does nothing."""
    if isinstance(event, dict):
        if "httpMethod" in event or (event.get("version") == "2.0" and "requestContext" in event):
            return True
        logger.info("an event that is none of ours", keys=sorted(map(str, event))[:8])
    else:
        logger.info("an event that is none of ours", kind=type(event).__name__)
    return False


def _below_its_base(event: Event, path: str) -> str:
    """A REST API's path without the base path under which a custom domain has it: ``path`` begins with that, and the
    resource and its ``{proxy+}`` do not (aws/serverless-java-container, issue 34).
    """
    resource, held = str(event.get("resource") or ""), (event.get("pathParameters") or {}).get("proxy")
    if not resource.endswith("{proxy+}") or not isinstance(held, str):
        return "/" if resource == "/" and path else path
    own = f"{resource.removesuffix('{proxy+}')}{held}"
    end = "/" if path.endswith("/") and not own.endswith("/") else ""
    return own + end if path.removesuffix("/").endswith(own.removesuffix("/")) else path


class Call:
    """An HTTP request, from a REST API's event (payload 1.0) or that of an HTTP API or function URL (2.0)."""

    def __init__(self, event: Event, context: Any = None) -> None:
        self.event = event
        self.v2 = event.get("version") == "2.0"
        proxy = APIGatewayProxyEventV2(event) if self.v2 else APIGatewayProxyEvent(event)
        self.method = proxy.http_method.upper()
        # Empty if a stage is called without a slash.
        self.path = (proxy.path or "/") if self.v2 else _below_its_base(event, proxy.path or "")
        self.headers: Mapping[str, str] = proxy.headers  # names are case-insensitive
        self._query: Mapping[str, str] = proxy.query_string_parameters
        self._context = context

    @property
    def query(self) -> Mapping[str, str]:
        """The query parameters. Raises InvalidRequest if one is given twice, as one of the two would be ignored."""
        if self.v2:
            names = [name for name, _ in parse_qsl(self.event.get("rawQueryString") or "", keep_blank_values=True)]
        else:
            many = self.event.get("multiValueQueryStringParameters") or {}
            names = [name for name, values in many.items() for _ in values]
        if twice := {name for name in names if names.count(name) > 1}:
            raise InvalidRequest([FieldError(name[:64], "is given more than once") for name in sorted(twice)])
        return self._query

    def takes(self, *known: str) -> None:
        """Raises InvalidRequest for query parameters that are not ``known``: misspelt, they would pass in silence."""
        ours = [name for name in self.query if not name.lower().startswith(SIGNATURE)]
        if unknown := sorted(set(ours) - set(known)):
            told = f"is no parameter of this call, which takes {', '.join(known)}"
            raise InvalidRequest([FieldError(name[:64], told) for name in unknown])

    @property
    def base(self) -> str:
        """The API's base URL as the caller knows it, without a slash at the end; empty if it is unknown."""
        about = self.event.get("requestContext") or {}
        if domain := about.get("domainName"):
            if self.v2:
                stage = f"/{about.get('stage')}"
                return f"https://{domain}{stage if self.event['rawPath'].startswith(stage + '/') else ''}"
            # On API Gateway's own domain the path begins with the stage, on a custom one with its base path mapping.
            whole = str(about.get("path") or f"/{about.get('stage')}{self.path}")
            return f"https://{domain}{whole.removesuffix(self.path)}"
        host = self.headers.get("Host", "")
        return f"http://{host}" if HOST.fullmatch(host) else ""

    @property
    def seconds_left(self) -> float:
        """Seconds until Lambda ends this invocation; infinite without a context."""
        return self._context.get_remaining_time_in_millis() / 1000 if self._context else float("inf")

    def body(self) -> bytes:
        """The body as it was sent: API Gateway passes binary ones as base64. Raises InvalidRequest."""
        body = self.event.get("body") or ""
        if not self.event.get("isBase64Encoded"):
            return body.encode("utf-8", "surrogatepass")
        try:
            return base64.b64decode(body, validate=True)
        except ValueError as fault:
            raise InvalidRequest([FieldError("body", "is not base64")]) from fault


@dataclass(frozen=True)
class Reply:
    """An HTTP response."""

    status: int
    body: str | bytes = ""
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)

    def to_lambda(self, call: Call) -> LambdaResponse:
        """In the format that the event's payload version asks for. A HEAD gets the headers of a GET, and its length:
        what sends an empty body would else say that there is none (RFC 9110, 8.6).
        """
        headers = {"X-Content-Type-Options": "nosniff", **self.headers}
        if self.status not in NO_BODY:
            headers["Content-Type"] = self.content_type
            if call.method == "HEAD":
                headers["Content-Length"] = str(len(self.body.encode() if isinstance(self.body, str) else self.body))
        body = "" if call.method == "HEAD" or self.status in NO_BODY else self.body
        encoded = isinstance(body, bytes)
        return {
            "statusCode": self.status,
            "body": base64.b64encode(body).decode() if isinstance(body, bytes) else body,
            "isBase64Encoded": encoded,
            **({"headers": headers} if call.v2 else {"multiValueHeaders": {name: [headers[name]] for name in headers}}),
        }


class Api:
    """Routes calls by method and path: ``{"GET /results/{task_id}": route}``, and turns exceptions into responses.

    Keeps no state between calls, so it is thread-safe, and a long poll blocks no other call.
    """

    def __init__(self, routes: Mapping[str, Route], origins: str = "") -> None:
        """``origins``: whose pages may call, as CORS_ORIGINS names them."""
        self._routes, self._origins = routes, origins

    def __call__(self, event: Event, context: Any) -> LambdaResponse:
        call = Call(event, context)
        try:
            reply = self._serve(call)
        except Exception as fault:
            theirs = call.path.startswith(openai_errors.PREFIX)
            reply = error_reply(fault, openai_errors.envelope if theirs else None)
            reply = openai_errors.with_advice(reply) if theirs else reply
        return with_cors(reply, call, self._origins).to_lambda(call)

    def _serve(self, call: Call) -> Reply:
        path, variables = match_path(call.path)
        allowed = _allowed(PATHS[path])
        if call.method == "OPTIONS":
            return Reply(204, headers={"Allow": ", ".join(allowed)})
        method = "GET" if call.method == "HEAD" else call.method
        route = self._routes.get(f"{method} {path}")
        if route is None:
            raise MethodNotAllowed(call.method, allowed)
        return route(call, **variables)


def match_path(path: str) -> tuple[str, dict[str, str]]:
    """The template in PATHS that matches the path, and the path's variables; a slash at the end is forgiven. Raises
    NotFound.
    """
    path = path.removesuffix("/") or path
    for known in PATHS:
        pattern = re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^/]+)", re.escape(known))
        if match := re.fullmatch(pattern, path):
            return known, match.groupdict()
    raise NotFound("there is nothing at this path")


def json_reply(status: int, body: object, headers: Mapping[str, str] | None = None) -> Reply:
    return Reply(status, as_json(body), headers=headers or {})


def as_json(body: object) -> str:
    """JSON that goes out as UTF-8, and therefore escapes halves of surrogate pairs: UTF-8 has none."""
    text = json.dumps(body, ensure_ascii=False)
    return LONE_SURROGATE.sub(lambda half: f"\\u{ord(half[0]):04x}", text)


def bytes_in_lambda(body: object) -> int:
    """What this takes of an answer's 6 MB, which are counted as Lambda's runtime client writes the answer: as JSON in
    JSON, in ASCII, three times the size of an emoji in UTF-8.
    """
    return len(json.dumps(as_json(body)))


def _allowed(methods: Iterable[str]) -> list[str]:
    more = {"GET": ["GET", "HEAD"]}
    return [one for method in methods for one in more.get(method, [method])] + ["OPTIONS"]


def error_reply(fault: Exception, shape: Callable[[DarkroomError], object] | None) -> Reply:
    """One of ours is logged with all that is known, and its caller told the id to find it by."""
    log_id = new_log_id()
    if not isinstance(fault, DarkroomError) or fault.http_status == 500:
        logger.error("unexpected fault", id=log_id, exc_info=fault)
        fault = Internal(f"something broke on our side; the log has it under id {log_id}")
    elif fault.http_status > 500:
        logger.error(fault.message, id=log_id, cause=str(fault.__cause__) if fault.__cause__ else None)
        if isinstance(fault, ServiceFault):
            fault = ServiceFault(f"{fault.message}; the log has more under id {log_id}", fault.details)
    headers = {"Cache-Control": "no-store"}
    if fault.retry_after is not None:
        headers["Retry-After"] = str(fault.retry_after)
    if isinstance(fault, MethodNotAllowed):
        headers["Allow"] = ", ".join(fault.allow)
    return json_reply(fault.http_status, shape(fault) if shape else fault.envelope(), headers)
