"""Which pages of other origins may call the API."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from handler.api.results import Status

from ..support import http_event

if TYPE_CHECKING:
    from handler.aws.store import TaskStore
    from handler.settings import Settings

STUDIO = "https://studio.example"


def headers(settings: Settings, store: TaskStore, origins: str, method: str = "GET", **sent: str) -> dict[str, Any]:
    event = http_event(method, "/results/nobody", headers=sent)
    answer = Status(replace(settings, cors_origins=origins), store).handle(event, None)
    return {name: values[0] for name, values in answer["multiValueHeaders"].items()}


def test_none_unless_told(settings: Settings, store: TaskStore) -> None:
    found = headers(settings, store, "", Origin=STUDIO)
    assert not [name for name in found if name.startswith("Access-Control") or name == "Vary"]


@pytest.mark.parametrize("origins", [STUDIO, f"https://other.example, {STUDIO}"])
def test_those_that_are_named(settings: Settings, store: TaskStore, origins: str) -> None:
    found = headers(settings, store, origins, Origin=STUDIO)
    assert (found["Access-Control-Allow-Origin"], found["Vary"]) == (STUDIO, "Origin")
    assert "ETag" in found["Access-Control-Expose-Headers"]
    found = headers(settings, store, origins, Origin="https://evil.example")
    assert "Access-Control-Allow-Origin" not in found
    assert found["Vary"] == "Origin", "or a cache would give one page's answer to another"


def test_all(settings: Settings, store: TaskStore) -> None:
    assert headers(settings, store, "*", Origin=STUDIO)["Access-Control-Allow-Origin"] == "*"


def test_a_preflight(settings: Settings, store: TaskStore) -> None:
    found = headers(settings, store, STUDIO, "OPTIONS", Origin=STUDIO)
    assert found["Access-Control-Allow-Methods"] == "GET, HEAD, DELETE, OPTIONS"
    assert "Idempotency-Key" in found["Access-Control-Allow-Headers"]
    assert "Access-Control-Allow-Credentials" not in found


@pytest.mark.parametrize("origins", [STUDIO, "*"])
def test_a_page_may_send_what_it_asks_to_send(settings: Settings, store: TaskStore, origins: str) -> None:
    """As OpenAI's client for browsers, which sends headers of its own."""
    asked = "authorization,content-type,x-stainless-arch, x-stainless-lang"
    sent = {"Origin": STUDIO, "Access-Control-Request-Headers": asked}
    found = headers(settings, store, origins, "OPTIONS", **sent)["Access-Control-Allow-Headers"]
    assert found == (
        "Authorization, Content-Type, Idempotency-Key, If-None-Match, X-API-Key, x-stainless-arch, x-stainless-lang"
    )


@pytest.mark.parametrize("asked", ["a b", "x\r\nSet-Cookie: a=b", "*", "é", "x" * 65, ",,", "", "x:y"])
def test_what_is_no_name_is_not_repeated(settings: Settings, store: TaskStore, asked: str) -> None:
    sent = {"Origin": STUDIO, "Access-Control-Request-Headers": asked}
    found = headers(settings, store, STUDIO, "OPTIONS", **sent)["Access-Control-Allow-Headers"]
    assert found == "Authorization, Content-Type, Idempotency-Key, If-None-Match, X-API-Key"


def test_it_is_no_endless_list(settings: Settings, store: TaskStore) -> None:
    sent = {"Origin": STUDIO, "Access-Control-Request-Headers": ",".join(f"x-{n}" for n in range(1000))}
    found = headers(settings, store, STUDIO, "OPTIONS", **sent)["Access-Control-Allow-Headers"]
    assert len(found.split(", ")) == 45
    sent["Origin"] = "https://evil.example"
    assert "Access-Control-Allow-Headers" not in headers(settings, store, STUDIO, "OPTIONS", **sent)


def test_a_page_sees_that_it_is_not_to_repeat_a_call(settings: Settings, store: TaskStore) -> None:
    assert "X-Should-Retry" in headers(settings, store, STUDIO, Origin=STUDIO)["Access-Control-Expose-Headers"]
