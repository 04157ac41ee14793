"""The Lambda handler for what callers read: results, the model, health, the page and the API's description."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .api.results import build
from .logs import warm

if TYPE_CHECKING:
    from .api.routing import Event, LambdaResponse

app = warm(build)


def handle(event: Event, context: Any) -> LambdaResponse:
    """Answers an event of API Gateway, in either payload format."""
    return app().handle(event, context)
