"""``GET /results``, ``/health``, ``/openapi.json``: reads, presigns, never writes; without torch and pydantic."""

from __future__ import annotations

import base64
import json
import re
from functools import cache
from typing import TYPE_CHECKING, Any

from .api import Answer, Api, Event, answer
from .errors import Fault, InvalidRequest, NotFound
from .health import ModelHealth
from .logs import logger
from .settings import Settings
from .storage import CURSOR, TaskStore
from .world import TASK_ID, utc_now

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from aws_lambda_powertools.event_handler import Response
    from aws_lambda_powertools.event_handler.api_gateway import ApiGatewayResolver

MAX_INLINE = 4 * 1024 * 1024
"""Bytes of an image that still fit, as base64, into the 6 MB that Lambda may answer."""
MAX_PAGE = 100
HIDDEN = ("fingerprint", "lease", "preview")


class Status:
    """Answers from one object per task: the record is the only truth."""

    def __init__(
        self,
        settings: Settings,
        store: TaskStore,
        *,
        now: Callable[[], datetime] = utc_now,
        max_inline: int = MAX_INLINE,
    ) -> None:
        self._settings, self._store, self._max_inline = settings, store, max_inline
        self._health = ModelHealth(store, settings, now)
        self._api = Api(self._register)

    def handle(self, event: Event, context: Any) -> Answer:
        return self._api(event, context)

    def _register(self, app: ApiGatewayResolver) -> None:
        @app.get("/results/<task_id>")
        def result(task_id: str) -> Response[str]:
            wanted = app.current_event.query_string_parameters.get("inline")
            if wanted not in {None, "base64"}:
                raise InvalidRequest([Fault("inline", "must be base64")])
            return answer(200, self.result(task_id, inline=wanted is not None or self._settings.inline_images))

        @app.get("/results")
        def results() -> Response[str]:
            query = app.current_event.query_string_parameters
            return answer(200, self.results(query.get("limit", "20"), query.get("cursor")))

        @app.get("/health")
        def health() -> Response[str]:
            return answer(200, {"status": "ok", **self._health.current()})

        @app.get("/openapi.json")
        def openapi() -> Response[str]:
            from .openapi import document  # needs pydantic, which nothing else here does

            return answer(200, document())

    def result(self, task_id: str, *, inline: bool = False) -> dict[str, Any]:
        """A ResultResponse. Raises NotFound. ``inline`` adds the first image as base64."""
        stored = self._store.read(task_id) if re.fullmatch(TASK_ID, task_id) else None
        if stored is None:
            raise NotFound(f"there is no task {task_id[:128]!r}")
        return self._shape(json.loads(stored.body), inline=inline)

    def results(self, limit: str, cursor: str | None) -> dict[str, Any]:
        """A ResultPage of up to ``limit`` tasks, newest first."""
        faults = []
        if not re.fullmatch(r"[1-9][0-9]{0,3}", limit) or int(limit) > MAX_PAGE:
            faults.append(Fault("limit", f"must be a whole number from 1 to {MAX_PAGE}"))
        if cursor is not None and not CURSOR.fullmatch(cursor):
            faults.append(Fault("cursor", "is not one that an answer gave"))
        if faults:
            raise InvalidRequest(faults)
        page, following = self._store.newest(int(limit), cursor)
        return {"results": [self._shape(json.loads(one.body)) for one in page], "cursor": following}

    def _shape(self, record: dict[str, Any], *, inline: bool = False) -> dict[str, Any]:
        """The record without what is nobody's business, with the tutorial's fields and URLs in place of keys."""
        shown = {name: value for name, value in record.items() if name not in HIDDEN}
        shown["prompt"] = (record["request"] or {}).get("prompt")
        shown["error_message"] = record["error"]["message"] if record["error"] else None
        shown["preview_url"] = self._store.presign(record["preview"]) if record.get("preview") else None
        shown["attempts"] = [
            {name: value for name, value in one.items() if name != "owner"} for one in record.get("attempts", [])
        ]
        shown.setdefault("queued_at", None)  # records of an earlier version
        shown["images"] = [
            {"url": self._store.presign(image["key"]), **{name: image[name] for name in image if name != "key"}}
            for image in record["images"]
        ]
        shown["image_base64"] = self._first_image(record["images"]) if inline else None
        return shown

    def _first_image(self, images: list[dict[str, Any]]) -> str | None:
        """None where there is no image yet, or where it would not fit: its URL is there all the same."""
        if not images or images[0]["bytes"] > self._max_inline:
            return None
        return base64.b64encode(self._store.read_image(images[0]["key"])).decode()


@cache
def _warm() -> Status:
    settings = Settings.load()
    logger.setLevel(settings.log_level)
    return Status(settings, TaskStore(settings))


def handle(event: Event, context: Any) -> Answer:
    """The Lambda handler, for API Gateway's events."""
    return _warm().handle(event, context)
