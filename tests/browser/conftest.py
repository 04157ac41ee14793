"""``darkroom serve`` in a process of its own, Debian's Chromium, and pages that must not complain."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from playwright.sync_api import Browser, BrowserContext, Page

ROOT = Path(__file__).parents[2]
CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--force-color-profile=srgb",
]
ENDED = {"completed", "failed", "cancelled"}
SLOW = {"num_inference_steps": 200, "num_images": 8, "width": 128, "height": 128}
"""Settings of a task that goes on for longer than any test looks at it."""
PATIENCE = 40.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("browser")


@dataclass(frozen=True)
class Service:
    """The API that ``darkroom serve`` offers."""

    url: str

    def call(self, method: str, path: str, body: object = None) -> Any:
        raw = json.dumps(body).encode() if body is not None else None
        headers = {"Content-Type": "application/json"} if raw else {}
        with urllib.request.urlopen(urllib.request.Request(self.url + path, raw, headers, method=method)) as reply:
            return json.load(reply)

    def submit(self, prompt: str, **settings: object) -> str:
        return str(self.call("POST", "/generate", {"prompt": prompt, **settings})["task_id"])

    def until(self, task_id: str, good: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            result: dict[str, Any] = self.call("GET", f"/results/{task_id}")
            if good(result):
                return result
            time.sleep(0.05)
        raise AssertionError(f"task {task_id} stays as it is: {result}")

    def finish(self, task_id: str) -> dict[str, Any]:
        return self.until(task_id, lambda result: result["status"] in ENDED)

    def picture(self, prompt: str, **settings: object) -> dict[str, Any]:
        """A finished task of few steps."""
        return self.finish(self.submit(prompt, **{"num_inference_steps": 2, "seed": 7, **settings}))

    def rest(self) -> None:
        """Cancels what is still under way: on two cores it would slow down whatever comes next."""
        for one in self.call("GET", "/results?limit=100")["results"]:
            if one["status"] not in ENDED:
                try:
                    self.call("DELETE", f"/results/{one['task_id']}")
                except urllib.error.HTTPError as refused:
                    refused.close()  # it has just ended by itself

    def named(self, prompt: str) -> list[dict[str, Any]]:
        return [one for one in self.call("GET", "/results?limit=100")["results"] if one["prompt"] == prompt]


@pytest.fixture(scope="session")
def server() -> Iterator[Service]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    environ |= {"PYTHONPATH": str(ROOT), "BEAT_EVERY": "0.3"}
    command = [sys.executable, "-c", "from handler.cli.main import main; main()", "serve", "--port", "0"]
    process = subprocess.Popen(command, cwd=ROOT, env=environ, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert process.stderr is not None
    said: list[bytes] = []
    reader = None
    try:
        for line in process.stderr:
            said.append(line)
            if found := re.match(rb"http://127\.0\.0\.1:\d+", line):
                # Or its pipe would fill up one day, and it would wait for somebody to read.
                reader = threading.Thread(target=process.stderr.read, daemon=True)
                reader.start()
                service = Service(found[0].decode())
                service.picture("a warm-up")
                yield service
                return
        raise AssertionError(b"".join(said).decode())
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
        if reader is not None:
            reader.join(5)
        process.stderr.close()


@pytest.fixture
def service(server: Service) -> Iterator[Service]:
    """The running service; what a test left running is cancelled after it."""
    yield server
    server.rest()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


class Desk:
    """Opens pages. ``complaints`` gathers scripts' errors and breaches of the page's own policy."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self._contexts: list[BrowserContext] = []
        self.complaints: list[str] = []

    def context(self, **options: Any) -> BrowserContext:
        context = self._browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        context.set_default_timeout(PATIENCE * 1000)
        context.on("weberror", lambda fault: self.complaints.append(str(fault.error)))
        context.on("console", lambda message: self._hear(message.text))
        self._contexts.append(context)
        return context

    def page(self, url: str, **options: Any) -> Page:
        page = self.context(**options).new_page()
        page.goto(url)
        return page

    def _hear(self, text: str) -> None:
        if "Content Security Policy" in text:
            self.complaints.append(text)

    def close(self) -> None:
        for context in self._contexts:
            context.close()


@pytest.fixture
def desk(browser: Browser) -> Iterator[Desk]:
    desk = Desk(browser)
    yield desk
    desk.close()
    assert desk.complaints == []


@pytest.fixture(scope="session")
def axe() -> str:
    """The source of axe-core, which make test-browser fetches."""
    return (ROOT / "build/axe-core/package/axe.min.js").read_text()
