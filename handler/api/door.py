"""What both doors of the HTTP API have in common: their routes serve the caller's tenant and no other."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Self

from .tenants import tenant_of

if TYPE_CHECKING:
    from ..aws.store import TaskStore
    from ..settings import Settings
    from .routing import Api, Event, LambdaResponse, Route


class Door:
    """A set of routes over the tasks of one tenant, or over those of none."""

    _settings: Settings
    _store: TaskStore
    _api: Api

    def for_tenant(self, tenant: str | None) -> Self:
        """The same for the tasks of one tenant. Raises InvalidRequest for an invalid name."""
        other = copy(self)
        other._store = self._store.for_tenant(tenant)
        return other

    def _per_tenant(self, route: Route) -> Route:
        """The route, restricted to the tasks of the caller's tenant."""
        return lambda call, **named: route(self.for_tenant(tenant_of(call.event, self._settings)), call, **named)

    def handle(self, event: Event, context: object) -> LambdaResponse:
        """Serves an API Gateway or function URL event, payload format 1.0 or 2.0."""
        return self._api(event, context)
