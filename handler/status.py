"""The Lambda handler for the API's reads: results, the model, health, the page and the OpenAPI document."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .api.results import build
from .api.routing import is_http
from .logs import warm

if TYPE_CHECKING:
    from .api.routing import Event, LambdaResponse

app = warm(build)


def handle(event: Event, context: Any) -> LambdaResponse:
    """Serves an API Gateway event, in either payload format."""
    return app().handle(event, context) if is_http(event) else {}
