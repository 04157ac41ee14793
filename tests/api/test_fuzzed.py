"""10,000 requests that nobody would send on purpose: none is answered with 500, and none with anything but JSON.

Seeded, against the real handlers over S3 and SQS in memory.
"""

from __future__ import annotations

import json
import random
import string
import time
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from handler.api.results import Status
from handler.api.submission import Submit
from handler.contract.paths import PATHS

from ..memory import Bucket, MemoryStore
from ..memory_queue import MemoryQueue
from ..support import http_event

if TYPE_CHECKING:
    from handler.settings import Settings

COUNT = 10_000
METHODS = ("GET", "POST", "DELETE", "HEAD", "OPTIONS", "PUT", "PATCH", "TRACE", "")
WORDS = (
    *("prompt", "task_id", "num_images", "width", "height", "seed", "tags", "output_format", "quality", "image", "n"),
    *("size", "model", "response_format", "user", "fingerprint", "send", "tenant", "strength", "guidance_scale"),
    *("wait", "inline", "limit", "cursor", "status", "tag", "dry_run", "unseen", "purge"),
)
ODD = (
    "",
    "0",
    "-1",
    "1e400",
    "NaN",
    "null",
    "true",
    "..",
    "%2e%2e",
    "a/b",
    "\x00",
    "\ud800",
    "🦊",
    "x" * 300,
    "1" * 40,
)
HEADERS = ("Content-Type", "If-None-Match", "Idempotency-Key", "Origin", "X-API-Key", "Host", "X-Amzn-Trace-Id")


class Signing(MemoryStore):
    """With URLs that lead nowhere."""

    def presign(self, key: str) -> str:
        return f"https://bucket.example/{key}"

    def presign_any(self) -> str:
        return self.presign("health/available.json")


class Dice:
    """Values of every kind."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def one(self, *of: Any) -> Any:
        return self._random.choice(of)

    def text(self) -> str:
        if self._random.random() < 0.5:
            return str(self._random.choice(ODD))
        alphabet = string.printable + "äß€🦊"
        return "".join(self._random.choices(alphabet, k=self._random.randrange(40)))

    def value(self, depth: int = 0) -> Any:
        kind = self._random.randrange(9 if depth < 3 else 7)
        plain = (None, True, self._random.randrange(-5, 2**70), self._random.uniform(-1e9, 1e9), float("inf"))
        if kind < 5:
            return plain[kind]
        if kind < 7:
            return self.text()
        values = [self.value(depth + 1) for _ in range(self._random.randrange(4))]
        return values if kind == 7 else {self.text(): one for one in values}

    def body(self) -> str | None:
        kind = self._random.randrange(6)
        if kind == 0:
            return None
        if kind == 1:
            return self.text()
        fields = {self.one(*WORDS): self.value() for _ in range(self._random.randrange(6))}
        if kind > 3:
            fields = {"prompt": "fox", **{name: self.one(1, "64x64", "png", 8, None) for name in list(fields)[:2]}}
        text = json.dumps(fields)
        return text[: self._random.randrange(len(text) + 1)] if kind == 3 else text

    def path(self) -> str:
        known = self.one(*PATHS)
        path = known.replace("{task_id}", self.one("fox-1", self.text())).replace("{file}", self.text())
        return str(self.one(path, path + "/", path + self.text(), self.text(), "/" + self.text()))

    def pairs(self, names: tuple[str, ...]) -> dict[str, str]:
        return {
            self.one(*names, self.text()): self.one(self.text(), "1", "*") for _ in range(self._random.randrange(3))
        }


@pytest.mark.parametrize("tenants", ["off", "header"])
def test_nothing_is_answered_with_500(settings: Settings, tenants: str) -> None:
    settings = replace(settings, tenants=tenants, tenant_tasks=5, openai_wait=0.001, cors_origins="https://a.example")
    store: Any = Signing(Bucket(lambda: datetime.now(UTC)))
    queue: Any = MemoryQueue(time.time)
    submit = Submit(settings, store, queue)
    status = Status(settings, store, queue=queue, sleep=lambda _: None)
    dice, codes = Dice(20261126), Counter[int]()
    for number in range(COUNT // 2):
        method, path = dice.one(*METHODS), dice.path()
        asked = {"query": dice.pairs(WORDS), "headers": dice.pairs(HEADERS), "version": dice.one("1.0", "2.0")}
        event = http_event(method, path, body=dice.body(), **asked)
        handler = submit if method in {"POST", "DELETE"} else status
        answer = handler.handle(event, None)
        told = (number, method, path, event["body"], answer)
        codes[answer["statusCode"]] += 1
        assert answer["statusCode"] < 500 or answer["statusCode"] in {503, 504}, told
        headers = answer.get("headers") or {name: values[0] for name, values in answer["multiValueHeaders"].items()}
        if answer["body"] and headers["Content-Type"] == "application/json":
            assert isinstance(json.loads(answer["body"]), dict), told
        assert "Traceback" not in answer["body"], told
    assert {200, 202, 404, 405, 422} <= codes.keys(), codes
