"""``GET /docs``: the API to read, without a byte from elsewhere."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import TYPE_CHECKING

from handler.contract.health import baked_card
from handler.contract.openapi import document
from handler.settings import Settings

from ..api.test_routing import headers_of
from ..support import http_event

if TYPE_CHECKING:
    from handler.api.results import Status

LOADING = {"src", "href", "data", "action", "poster", "srcset", "background"}


class Loads(HTMLParser):
    """What a page would fetch by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.styles = ""
        self._in_style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [f"{tag} {value}" for name, value in attrs if name in LOADING]
        self._in_style = tag == "style"

    def handle_data(self, data: str) -> None:
        if self._in_style:
            self.styles += data


def test_the_page_holds_all_it_shows(status: Status) -> None:
    response = status.handle(http_event("GET", "/docs", headers={"Host": "127.0.0.1:8000"}), None)
    assert response["statusCode"] == 200
    page = Loads()
    page.feed(response["body"])
    assert page.found == []
    assert "swagger-ui" in page.styles
    fetched = re.findall(r"(?:url\(|@import)\s*['\"]?([^'\")\s]+)", page.styles)
    assert all(one.startswith("data:") for one in fetched)
    policy = headers_of(response)["Content-Security-Policy"]
    assert policy.startswith("default-src 'none';")
    assert "http" not in policy
    assert len(response["body"]) < 2_500_000  # Lambda answers up to 6 MB


def test_the_page_describes_this_api(status: Status) -> None:
    response = status.handle(http_event("GET", "/docs", headers={"Host": "127.0.0.1:8000"}), None)
    card = baked_card(Settings())
    (spec,) = re.findall(r"^    spec: (\{.*\}),$", response["body"], re.MULTILINE)
    assert json.loads(spec) == document("http://127.0.0.1:8000", card)
    again = status.handle(http_event("GET", "/docs", query={"format": "json"}, headers={"Host": "a"}), None)
    assert json.loads(again["body"]) == document("http://a", card)
