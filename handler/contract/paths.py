"""The paths of the HTTP API, in the order of its description, and the methods that each takes."""

from __future__ import annotations

PATHS: dict[str, tuple[str, ...]] = {
    "/generate": ("POST",),
    "/generate/{task_id}/retry": ("POST",),
    "/uploads": ("POST",),
    "/results": ("GET",),
    "/results/{task_id}": ("GET", "DELETE"),
    "/models": ("GET",),
    "/health": ("GET",),
    "/v1/images/generations": ("POST",),
    "/v1/models": ("GET",),
    "/v1/models/{model_id}": ("GET",),
    "/v1/models/{owner}/{name}": ("GET",),
    "/openapi.json": ("GET",),
    "/docs": ("GET",),
    "/": ("GET",),
    "/page/{file}": ("GET",),
}
"""All paths, whichever handler serves them, so that every handler can answer 404 and 405 correctly."""
