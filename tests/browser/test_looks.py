"""For everybody: axe-core's rules, narrow screens, and a stage's path in front."""

from __future__ import annotations

import re
import threading
from typing import TYPE_CHECKING, Any

import pytest

from handler.cli.local.http import HttpApi, serve

from .conftest import SLOW

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from wsgiref.types import StartResponse, WSGIEnvironment

    from playwright.sync_api import Page

    from handler.api.results import Status
    from handler.api.submission import Submit

    from .conftest import Desk, Service


def empty(page: Page, service: Service) -> None:
    nothing = '{"results": [], "cursor": null}'
    page.route("**/results?*", lambda route: route.fulfill(content_type="application/json", body=nothing))
    page.goto(service.url)
    page.get_by_text("Nothing has been developed here yet.").wait_for()


def running(page: Page, service: Service) -> None:
    task = service.submit("a dragon", **SLOW)
    service.until(task, lambda result: result["progress"] is not None)
    page.goto(service.url)
    page.locator(".frame", has_text="a dragon").first.locator(".ring").wait_for()


def running_view(page: Page, service: Service) -> None:
    running(page, service)
    page.locator(".frame", has_text="a dragon").first.locator("a").click()
    page.locator("#view .ring").wait_for()


def picture(page: Page, service: Service) -> None:
    result = service.picture("a penguin", num_images=2)
    page.goto(f"{service.url}/#task/{result['task_id']}")
    page.locator(".print img").wait_for()


def error(page: Page, service: Service) -> None:
    page.goto(service.url)
    page.locator("#settings").evaluate("(element) => { element.open = true; }")
    page.fill("#field-width", "65")
    page.click("#send")
    page.locator("#said", has_text="Prompt").wait_for()


def lost(page: Page, service: Service) -> None:
    running(page, service)
    page.context.set_offline(True)
    page.get_by_text("No connection").wait_for()


def locked(page: Page, service: Service) -> None:
    page.route("**/models", lambda route: route.fulfill(status=401, body="{}"))
    page.goto(service.url)
    page.locator("#keys[open]").wait_for()


STATES: list[Callable[[Page, Any], None]] = [empty, running, running_view, picture, error, lost, locked]


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_axe_finds_nothing(desk: Desk, service: Service, axe: str, scheme: str) -> None:
    for state in STATES:
        page = desk.context(color_scheme=scheme, reduced_motion="reduce").new_page()
        state(page, service)
        page.evaluate(axe)
        found = page.evaluate("axe.run(document, {resultTypes: ['violations', 'passes']})")
        assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in found["violations"]] == [], (
            state.__name__
        )
        assert "color-contrast" in {one["id"] for one in found["passes"]}
        page.close()
        service.rest()


@pytest.mark.parametrize("state", STATES, ids=lambda state: state.__name__)
def test_360_pixels_are_enough(desk: Desk, service: Service, state: Callable[[Page, Any], None]) -> None:
    page = desk.context(viewport={"width": 360, "height": 740}).new_page()
    state(page, service)
    wide = (
        "[document.scrollingElement, document.querySelector('#view')].map((one) => one.scrollWidth - one.clientWidth)"
    )
    assert page.evaluate(wide) == [0, 0]


def test_below_a_stage_with_and_without_a_slash(desk: Desk, submit: Submit, status: Status) -> None:
    """As on API Gateway's own domain, where the handlers see the path without its stage."""
    inner = HttpApi(submit, status)

    def staged(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if not re.match("/prod(/|$)", environ["PATH_INFO"]):
            start_response("403 Forbidden", [])
            return []
        return inner({**environ, "PATH_INFO": environ["PATH_INFO"][len("/prod") :] or "/"}, start_response)

    server = serve(staged, 0)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        for path in ("/prod/", "/prod"):
            page = desk.page(f"http://127.0.0.1:{server.server_port}{path}")
            page.locator("#fields .field").first.wait_for()
            assert page.url.endswith("/prod/")
    finally:
        server.shutdown()
        server.server_close()
