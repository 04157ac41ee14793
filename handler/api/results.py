"""``GET /results``, ``/models``, ``/health``, ``/docs`` and the page: reads and presigns, never writes. No torch.

Results and health are served without pydantic as well: importing it would take half of a cold start.
"""

from __future__ import annotations

import base64
import json
import re
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ..aws.listing import index_name
from ..aws.store import TaskStore
from ..clock import utc_now
from ..contract.ids import TASK_ID
from ..contract.paging import CURSOR, MAX_PAGE, MAX_TAG
from ..contract.statuses import STATUSES, TERMINAL
from ..errors import FieldError, InvalidRequest, NotFound
from . import freshness
from .ahead import Ahead, WhenAsked
from .door import Door
from .health import ModelHealth, card_of, expected
from .pages import Pages
from .routing import Api, Call, Reply, bytes_in_lambda, json_reply

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..aws.s3 import Stored
    from ..settings import Settings
    from .ahead import Counted, Waits

MAX_INLINE = 4 * 1024 * 1024
"""The most bytes of an image that fit, as base64, into a Lambda response of 6 MB."""
HIDDEN = ("fingerprint", "lease", "preview", "sends", "tenant")
"""Fields of a record that callers do not see."""
ADDED: dict[str, Any] = {
    "queued_at": None,
    "origin": None,
    "input": None,
    "tries": 0,
    "spent_seconds": 0.0,
    "saved_step": 0,
    "warnings": [],
    "purged": False,
    "body": None,
}
"""Fields that records of release 0.1.0 lack."""
MAX_PAGE_BYTES = 3_900_000
"""Of a page of results, as Lambda counts them: with the rest of the answer, and other headers, far below its 6 MB."""
MARGIN = 2.0
"""Seconds that a long poll leaves of the invocation's time for its last read and its response."""


class Status(Door):
    """Answers each request from the task's record alone."""

    def __init__(
        self,
        settings: Settings,
        store: TaskStore,
        *,
        queue: Counted | None = None,
        now: Callable[[], datetime] = utc_now,
        sleep: Callable[[float], None] = time.sleep,
        monotonic: Callable[[], float] = time.monotonic,
        max_inline: int = MAX_INLINE,
    ) -> None:
        self._settings, self._store, self._max_inline = settings, store, max_inline
        self._now, self._sleep, self._monotonic = now, sleep, monotonic
        self.health = ModelHealth(store, settings, now)
        self._ahead = Ahead(queue, monotonic=monotonic)
        self._api = Api(
            {
                "GET /results": self._per_tenant(Status._results),
                "GET /results/{task_id}": self._per_tenant(Status._result),
                "GET /models": self._models,
                "GET /health": lambda _: json_reply(200, {"status": "ok", **self.health.current()}),
                "GET /openapi.json": self._openapi,
                "GET /docs": self._docs,
                "GET /v1/models": self._openai_models,
                "GET /v1/models/{model_id}": self._openai_model,
                "GET /v1/models/{owner}/{name}": lambda call, owner, name: self._openai_model(call, f"{owner}/{name}"),
                **Pages(store.presign_any).routes,
            },
            settings.cors_origins,
        )

    def _result(self, call: Call, task_id: str) -> Reply:
        """Reads the record once; with ``?wait=`` repeatedly, until there is news or the time is over."""
        call.takes("wait", "inline")
        wanted = call.query.get("inline")
        if wanted not in {None, "base64"}:
            raise InvalidRequest([FieldError("inline", "must be base64")])
        inline = wanted is not None or self._settings.inline_images
        wait = min(freshness.seconds_to_wait(call.query.get("wait")), call.seconds_left - MARGIN)
        seen, until = call.headers.get("If-None-Match"), self._monotonic() + wait
        for pause in freshness.poll_intervals():
            stored, record = self._read(task_id)
            waits = self._ahead.of(record, self.health.current)
            tag = self._etag(stored, record, waits, inline=inline)
            left = until - self._monotonic()
            news = record["status"] in TERMINAL or (seen is not None and not freshness.matches(seen, tag))
            if news or left <= 0:
                break
            self._sleep(min(pause, left))
        again = freshness.retry_after(record, waits)
        headers = {"ETag": tag, "Cache-Control": "private, no-cache", **again}
        if freshness.matches(seen, tag):
            return Reply(304, headers=headers)
        return json_reply(200, self._shape(record, waits, inline=inline), headers)

    def _etag(self, stored: Stored, record: dict[str, Any], waits: Waits, *, inline: bool) -> str:
        lifetime = self._settings.url_lifetime
        return freshness.etag(stored, record, inline=inline, now=self._now(), url_lifetime=lifetime, waits=waits)

    def _results(self, call: Call) -> Reply:
        call.takes("limit", "cursor", "status", "tag")
        page = self.results(
            call.query.get("limit", "20"),
            call.query.get("cursor"),
            status=call.query.get("status"),
            tag=call.query.get("tag"),
        )
        return json_reply(200, page, {"Cache-Control": "no-store"})

    def _models(self, _: Call) -> Reply:
        from .models import models  # needs pydantic

        return json_reply(200, models(self.health.current(), self._settings))

    def _openai_models(self, _: Call) -> Reply:
        from .openai import models  # needs pydantic

        return json_reply(200, models(self._settings.model_name))

    def _openai_model(self, _: Call, model_id: str) -> Reply:
        from .openai import model  # needs pydantic

        return json_reply(200, model(self._settings.model_name, model_id))

    def _openapi(self, call: Call) -> Reply:
        from ..contract.openapi import document  # needs pydantic

        return json_reply(200, document(call.base, self._card()))

    def _docs(self, call: Call) -> Reply:
        if call.query.get("format") == "json":  # Swagger UI links to this
            return self._openapi(call)
        from .docs import CONTENT_SECURITY_POLICY, page

        return Reply(200, page(call.base, self._card()), "text/html; charset=utf-8", CONTENT_SECURITY_POLICY)

    def _card(self) -> dict[str, Any] | None:
        """The model card as JSON, without what this version does not know; None while unknown."""
        card = card_of(self.health.current())
        return card.model_dump(mode="json") if card else None

    def result(self, task_id: str, *, inline: bool = False) -> dict[str, Any]:
        """A ResultResponse as JSON data. Raises NotFound. ``inline`` adds the images as base64."""
        _, record = self._read(task_id)
        return self._shape(record, inline=inline)

    def results(
        self, limit: str, cursor: str | None, *, status: str | None = None, tag: str | None = None
    ) -> dict[str, Any]:
        """A ResultPage of up to ``limit`` tasks, newest first, as JSON data: fewer if more would not fit into a
        response, or with a filter; its cursor leads to more. Raises InvalidRequest.
        """
        faults = []
        if not re.fullmatch(r"[1-9][0-9]{0,3}", limit) or int(limit) > MAX_PAGE:
            faults.append(FieldError("limit", f"must be a whole number from 1 to {MAX_PAGE}"))
        if cursor is not None and not CURSOR.fullmatch(cursor):
            faults.append(FieldError("cursor", "is not one that an answer gave"))
        if status is not None and status not in STATUSES:
            faults.append(FieldError("status", f"must be one of {', '.join(STATUSES)}"))
        if tag is not None and not 1 <= len(tag) <= MAX_TAG:
            faults.append(FieldError("tag", f"must have 1 to {MAX_TAG} characters"))
        if faults:
            raise InvalidRequest(faults)

        def wanted(record: dict[str, Any]) -> bool:
            tags = (record["request"] or {}).get("tags", [])
            return status in {None, record["status"]} and (tag is None or tag in tags)

        page, following = self._store.newest(int(limit), cursor, wanted if status or tag else None)
        shown: list[dict[str, Any]] = []
        room = MAX_PAGE_BYTES
        for one in page:
            result = self._shape(json.loads(one.body))
            room -= bytes_in_lambda(result)
            if room < 0 and shown:
                last = shown[-1]
                following = index_name(last["task_id"], datetime.fromisoformat(last["created_at"]))
                break
            shown.append(result)
        return {"results": shown, "cursor": following}

    def _read(self, task_id: str) -> tuple[Stored, dict[str, Any]]:
        stored = self._store.read(task_id) if re.fullmatch(TASK_ID, task_id) else None
        if stored is None:
            raise NotFound(f"there is no task {task_id[:128]!r}")
        return stored, json.loads(stored.body)

    def _shape(self, record: dict[str, Any], waits: Waits | None = None, *, inline: bool = False) -> dict[str, Any]:
        """The record as a ResultResponse: without internal fields, with presigned URLs in place of keys, and with the
        tutorial's fields. ``waits``: what is before it, where that is known already.
        """
        shown = {name: value for name, value in record.items() if name not in HIDDEN}
        if record["status"] == "pending" and record["request"]:
            shown["request"] = expected(record["request"], self.health.current()["model"])
        shown["prompt"] = (record["request"] or {}).get("prompt")
        shown["error_message"] = record["error"]["message"] if record["error"] else None
        shown["preview_url"] = self._store.presign(record["preview"]) if record.get("preview") else None
        shown["attempts"] = [
            {name: value for name, value in one.items() if name != "owner"} for one in record.get("attempts", [])
        ]
        for added, default in ADDED.items():
            shown.setdefault(added, default)
        shown |= (waits or self._ahead.of(record, self.health.current)).told()
        first, inlined = self._inlined(record["images"] if inline else [])
        shown["images"] = [
            {
                "url": self._store.presign(image["key"]) if image["key"] else None,
                **{name: image[name] for name in image if name != "key"},
                "base64": inlined.get(image["key"]),
            }
            for image in record["images"]
        ]
        shown["image_base64"] = first
        return shown

    def _inlined(self, images: list[dict[str, Any]]) -> tuple[str | None, dict[str, str]]:
        """The first image as base64, for the tutorial's field, and by key those that fit into the answer beside it. The
        others have their URL, and so has one that is gone before its record: the task is told all the same.
        """
        first, inlined, left = None, {}, self._max_inline
        for number, image in enumerate(one for one in images if one["key"]):
            if image["bytes"] > left:
                continue
            try:
                body = base64.b64encode(self._store.read_image(image["key"])).decode()
            except NotFound:
                continue
            if number == 0:  # it stands in two places
                first, left = body, left - image["bytes"]
            if image["bytes"] <= left:
                inlined[image["key"]], left = body, left - image["bytes"]
        return first, inlined


def build(settings: Settings) -> Status:
    """The handler on real S3, and SQS."""
    return Status(settings, TaskStore(settings), queue=WhenAsked(settings) if settings.queue_url else None)
