"""The HTTP client. The only module that uses urllib3, and turns its errors into ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.request import getproxies, proxy_bypass

import urllib3
from urllib3.exceptions import HTTPError, LocationValueError, SSLError

from ..errors import ServiceFault, SettingsError
from ..process import LOOPBACK
from .patience import Retryable

if TYPE_CHECKING:
    from collections.abc import Mapping

CONNECT = 5.0
READ = 30.0
CONNECTIONS = 64
"""Connections kept open per host. More threads than that open further ones, which are closed after use."""


@dataclass(frozen=True)
class Response:
    """An HTTP response; the names of ``headers`` are case-insensitive."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class HttpClient:
    """Pooled connections, through the proxies of the environment, but to this machine itself. Thread-safe.

    Redirects are not followed, because the API key would be sent along.
    """

    def __init__(self) -> None:
        self._pools: dict[str | None, urllib3.PoolManager] = {}

    def call(
        self,
        method: str,
        url: str,
        left: float,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        held: float = 0,
    ) -> Response:
        """One request, in at most ``left`` seconds plus ``held``, for which the service may hold it.

        Raises Retryable if there was no complete response, SettingsError for an invalid URL, ServiceFault for a bad
        TLS certificate.
        """
        try:
            pool = self._pool(url)
            reply = pool.request(
                method,
                url,
                body=body,
                headers=dict(headers or {}),
                timeout=urllib3.Timeout(connect=min(CONNECT, max(left, 1)), read=min(READ, max(left, 1)) + held),
                retries=False,
                redirect=False,
            )
        except (LocationValueError, urllib3.exceptions.URLSchemeUnknown) as fault:
            raise SettingsError(f"{url!r} is no URL of a service") from fault
        except SSLError as fault:
            raise ServiceFault(f"{_host(url)} is not who it says: {fault}") from fault
        except HTTPError as fault:
            raise Retryable(ServiceFault(f"{_host(url)} does not answer")) from fault
        return Response(reply.status, reply.headers, reply.data)

    def plain(self, method: str, url: str, left: float) -> tuple[int, bytes]:
        """The status and body of a request without headers, as to a presigned URL."""
        answer = self.call(method, url, left)
        return answer.status, answer.body

    def close(self) -> None:
        for pool in self._pools.values():
            pool.clear()

    def _pool(self, url: str) -> urllib3.PoolManager:
        parsed = urllib3.util.parse_url(url)
        here = parsed.host in LOOPBACK
        via = None if here or proxy_bypass(parsed.netloc or "") else getproxies().get(parsed.scheme or "")
        if via not in self._pools:
            self._pools[via] = _proxied(via) if via else urllib3.PoolManager(maxsize=CONNECTIONS)
        return self._pools[via]


def _proxied(via: str) -> urllib3.PoolManager:
    auth = urllib3.util.parse_url(via).auth
    headers = urllib3.make_headers(proxy_basic_auth=auth) if auth else None
    return urllib3.ProxyManager(via, maxsize=CONNECTIONS, proxy_headers=headers)


def _host(url: str) -> str:
    """Scheme and host only: path and query may hold a signature."""
    parsed = urllib3.util.parse_url(url)
    return f"{parsed.scheme}://{parsed.netloc}"
