"""The service over its HTTP API."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlencode

from pydantic import BaseModel, ValidationError
from urllib3.filepost import encode_multipart_formdata

from ..contract.responses import QuoteResponse, ResultPage, ResultResponse, TaskResponse, UploadResponse
from ..errors import FieldError, Internal, InvalidRequest, NotFound, QuotaExceeded, ServiceFault
from .faults import refusal
from .patience import Retryable, parse_retry_after, with_retries
from .service import Poll

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .net import HttpClient, Response
    from .patience import Clock

Model = TypeVar("Model", bound=BaseModel)
USER_AGENT = "darkroom-client"


class HttpService:
    """A :class:`.service.Service` over HTTP. Calls without a response, or with 408, 429 or 5xx, are retried for up to
    ``within`` seconds.
    """

    def __init__(self, endpoint: str, api_key: str | None, http: HttpClient, within: float, clock: Clock) -> None:
        self._base, self._http, self._within, self._clock = endpoint.rstrip("/"), http, within, clock
        self._headers = {"User-Agent": USER_AGENT, "Accept": "application/json"}
        if api_key:
            self._headers["X-API-Key"] = api_key

    def submit(self, body: bytes, key: str) -> TaskResponse:
        headers = {"Content-Type": "application/json", "Idempotency-Key": key}
        return _read(TaskResponse, self._call("POST", "/generate", body=body, headers=headers))

    def quote(self, body: bytes) -> QuoteResponse:
        headers = {"Content-Type": "application/json"}
        return _read(QuoteResponse, self._call("POST", "/generate", query={"dry_run": 1}, body=body, headers=headers))

    def upload(self, image: bytes, content_type: str) -> str:
        wanted = json.dumps({"content_type": content_type}).encode()
        asked = self._call("POST", "/uploads", body=wanted, headers={"Content-Type": "application/json"})
        form = _read(UploadResponse, asked)
        # S3 requires the file to be the last field.
        fields: dict[str, Any] = {**form.fields, "file": ("image", image, content_type)}
        body, kind = encode_multipart_formdata(fields)

        def attempt(left: float) -> str:
            answer = self._http.call("POST", form.url, left, body=body, headers={"Content-Type": kind})
            if answer.status in {200, 201, 204}:
                return form.upload_id
            fault = f"the image was not taken: {answer.status} {answer.body[:200].decode('utf-8', 'replace')}"
            if answer.status >= 500:
                raise Retryable(ServiceFault(fault))
            raise InvalidRequest([FieldError("image", fault)])

        return with_retries(attempt, self._within, self._clock)

    def poll(self, task_id: str, etag: str | None, wait: int) -> Poll:
        query = {"wait": wait} if wait else {}
        headers = {"If-None-Match": etag} if etag else {}
        answer = self._call("GET", f"/results/{_part(task_id)}", query=query, headers=headers, held=wait)
        after = parse_retry_after(answer.headers.get("Retry-After"), self._clock.now())
        if answer.status == 304:
            return Poll(None, etag, after)
        return Poll(_read(ResultResponse, answer), answer.headers.get("ETag"), after)

    def page(self, limit: int, cursor: str | None, status: str | None, tag: str | None) -> ResultPage:
        asked = {"limit": limit, "cursor": cursor, "status": status, "tag": tag}
        query = {name: value for name, value in asked.items() if value is not None}
        return _read(ResultPage, self._call("GET", "/results", query=query))

    def cancel(self, task_id: str, *, unseen: bool) -> TaskResponse:
        query = {"unseen": 1} if unseen else {}
        return _read(TaskResponse, self._call("DELETE", f"/results/{_part(task_id)}", query=query))

    def retry(self, task_id: str, key: str) -> TaskResponse:
        path = f"/generate/{_part(task_id)}/retry"
        return _read(TaskResponse, self._call("POST", path, headers={"Idempotency-Key": key}))

    def close(self) -> None:
        """Nothing to close here: the connections belong to the client."""

    def _call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, object] | None = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        held: float = 0,
    ) -> Response:
        url = self._base + path + (f"?{urlencode(query)}" if query else "")
        sent = {**self._headers, **(headers or {})}

        def attempt(left: float) -> Response:
            answer = self._http.call(method, url, left, body=body, headers=sent, held=held)
            if answer.status in {200, 201, 202, 304}:
                return answer
            fault = refusal(answer.status, answer.body)
            after = parse_retry_after(answer.headers.get("Retry-After"), self._clock.now())
            if isinstance(fault, QuotaExceeded) and after is None:
                raise fault  # without a Retry-After there is no telling when it would succeed
            if answer.status in {408, 429} or answer.status >= 500:
                raise Retryable(fault, after)
            raise fault

        return with_retries(attempt, self._within + held, self._clock)


def _part(task_id: str) -> str:
    """A task_id as a path segment: ``/`` and dot segments are escaped, or they would change the path.

    Raises NotFound.
    """
    if not task_id:
        raise NotFound("there is no task ''")  # the path would be that of all tasks
    return "%2E" * len(task_id) if task_id.strip(".") == "" else quote(task_id, safe="")


def _read(model: type[Model], answer: Response) -> Model:
    """Parses a response; fields that a newer service has added are ignored. Raises Internal."""
    try:
        return model.model_validate_json(answer.body, extra="ignore")
    except ValidationError as fault:
        raise Internal(
            f"the answer is none of Darkroom's, or of a version that this client does not know: {fault}"
        ) from fault
