"""A local API Gateway: turns HTTP requests into its events and calls the Lambda handlers with them."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any, Protocol
from uuid import uuid4

from werkzeug.serving import make_server
from werkzeug.wrappers import Request, Response

from ...errors import FieldError, TooLarge

if TYPE_CHECKING:
    from collections.abc import Iterable
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from werkzeug.serving import BaseWSGIServer

MOST_BYTES = 10 * 1024 * 1024
"""The largest body that API Gateway passes on."""


class Handler(Protocol):
    def handle(self, event: dict[str, Any], context: Any) -> dict[str, Any]: ...


class HttpApi:
    """A WSGI application over the ``submit`` and ``status`` handlers, with the routes of the deployment's template."""

    def __init__(self, submit: Handler, status: Handler) -> None:
        self._submit, self._status = submit, status

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        request = Request(environ)
        if (request.content_length or 0) > MOST_BYTES:
            return _too_large(request)(environ, start_response)
        handler = self._submit if request.method in {"POST", "DELETE"} else self._status
        answer = handler.handle(api_event(request), None)
        body = answer.get("body") or ""
        headers = {name: value for name, values in answer.get("multiValueHeaders", {}).items() for value in values}
        response = Response(
            base64.b64decode(body) if answer.get("isBase64Encoded") else body,
            status=answer["statusCode"],
            headers=headers,
        )
        if request.method == "HEAD" and "Content-Length" in headers:  # what GET would have, not the empty body's own
            response.headers["Content-Length"] = headers["Content-Length"]
        return response(environ, start_response)


def _too_large(request: Request) -> Response:
    """API Gateway's own 413, in our envelope."""
    while request.stream.read(65536):
        """Reads the body, or the connection would be reset before the client sees the response."""
    refused = TooLarge([FieldError("body", f"has {request.content_length} bytes; at most {MOST_BYTES} are passed on")])
    return Response(json.dumps(refused.envelope()), 413, content_type="application/json")


def api_event(request: Request) -> dict[str, Any]:
    """The request as an API Gateway event (REST, payload 1.0); a binary body becomes base64."""
    raw = request.get_data()
    try:
        body, encoded = raw.decode(), False
    except UnicodeDecodeError:
        body, encoded = base64.b64encode(raw).decode(), True
    headers = dict(request.headers)
    query = request.args.to_dict()
    return {
        "version": "1.0",
        "resource": "/{proxy+}",
        "path": request.path,
        "httpMethod": request.method,
        "headers": headers,
        "multiValueHeaders": {name: [value] for name, value in headers.items()},
        "queryStringParameters": query or None,
        "multiValueQueryStringParameters": {name: request.args.getlist(name) for name in query} or None,
        "pathParameters": {"proxy": request.path.lstrip("/")},
        "stageVariables": None,
        "requestContext": {
            "requestId": str(uuid4()),
            "stage": "local",
            "httpMethod": request.method,
            "path": request.path,
            "identity": {"sourceIp": request.remote_addr, "userAgent": headers.get("User-Agent")},
        },
        "body": body or None,
        "isBase64Encoded": encoded,
    }


def serve(api: WSGIApplication, port: int) -> BaseWSGIServer:
    """A server on 127.0.0.1 only. The caller runs ``serve_forever`` and ``shutdown``."""
    return make_server("127.0.0.1", port, api, threaded=True)
