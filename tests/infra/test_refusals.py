"""What KMS refuses, by way of S3 and SQS: a fault of ours, never a task that is missing, and no word of it to callers.

No emulator checks a key's policy, so a layer around each of the two says what AWS would: S3's error responses
("AccessDenied", with KMS's own words in the message) and SQS's ("KMS.AccessDeniedException").
"""

from __future__ import annotations

import io
import json
import threading
from contextlib import closing
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any

import pytest
from werkzeug.serving import make_server

from handler.api.results import Status
from handler.api.submission import Submit
from handler.aws.queue import TaskQueue
from handler.aws.store import TaskStore
from handler.cli.local.aws import EmbeddedAws, create_resources
from handler.errors import ServiceFault
from handler.settings import Settings
from handler.work.serving import Generate
from tests.ministack import ministack

from ..support import PlainEngine, answer_of, http_event, sqs_event

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.infra

WHY = "User: arn:aws:sts::123456789012:assumed-role/it is not authorized to perform: kms:Decrypt on this resource"
MINE = json.dumps({"prompt": "fox", "task_id": "mine"})
OTHER = json.dumps({"prompt": "owl", "task_id": "other"})


class _Kms:
    """``refuses`` holds methods of S3's objects and operations of SQS."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self.refuses: set[str] = set()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        target = environ.get("HTTP_X_AMZ_TARGET", "")
        if target.removeprefix("AmazonSQS.") in self.refuses:
            body = json.dumps({"__type": "com.amazonaws.sqs#KmsAccessDenied", "message": WHY}).encode()
            kind = "application/x-amz-json-1.0"
            headers = [("Content-Type", kind), ("x-amzn-query-error", "KMS.AccessDeniedException;Sender")]
            status = "400 Bad Request"
        elif not target and environ["REQUEST_METHOD"] in self.refuses and environ["PATH_INFO"].count("/") > 1:
            body = f"<Error><Code>AccessDenied</Code><Message>{WHY}</Message></Error>".encode()
            headers, status = [("Content-Type", "application/xml")], "403 Forbidden"
        else:
            return self._app(environ, start_response)
        environ["wsgi.input"] = io.BytesIO(environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)))
        start_response(status, [*headers, ("Content-Length", str(len(body)))])
        return [body]


class _Forward:
    """Passes requests on to a server, as they are."""

    def __init__(self, url: str) -> None:
        self._host = url.removeprefix("http://")

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        sent = {
            name.removeprefix("HTTP_").replace("_", "-"): value
            for name, value in environ.items()
            if name.startswith("HTTP_") or name == "CONTENT_TYPE"
        }
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        sent["Content-Length"] = str(len(body))
        with closing(HTTPConnection(self._host, timeout=30)) as there:
            there.request(environ["REQUEST_METHOD"], environ["RAW_URI"], body, sent)
            answer = there.getresponse()
            content = answer.read()
        kept = [(name, value) for name, value in answer.getheaders() if name.lower() not in HOP_BY_HOP]
        start_response(f"{answer.status} {answer.reason}", kept)
        return [content]


HOP_BY_HOP = {"connection", "transfer-encoding", "keep-alive"}


@pytest.fixture(params=["moto", "ministack"])
def kms(request: pytest.FixtureRequest) -> Iterator[tuple[_Kms, Settings]]:
    if request.param == "moto":
        aws = EmbeddedAws()
        server: Any = aws._server
        server.app = layer = _Kms(server.app)
        with aws:
            yield layer, _settings(aws.endpoint)
        return
    python = request.config.getoption("--ministack")
    assert python, "needs --ministack PYTHON: make infra"
    with ministack(python, auth=False) as url:  # signatures are made for the layer's own address
        layer = _Kms(_Forward(url))
        front = make_server("127.0.0.1", 0, layer, threaded=True)
        thread = threading.Thread(target=front.serve_forever)
        thread.start()
        try:
            yield layer, _settings(f"http://127.0.0.1:{front.server_port}")
        finally:
            front.shutdown()
            thread.join()
            front.server_close()


def _settings(endpoint: str) -> Settings:
    made = create_resources(endpoint)
    return Settings.load({**made.variables, "AWS_REGION": "us-east-1", "AWS_ENDPOINT_URL": endpoint})


def test_a_key_that_may_not_be_used_is_never_a_missing_task(kms: tuple[_Kms, Settings]) -> None:
    layer, settings = kms
    store, queue = TaskStore(settings), TaskQueue(settings)
    status, submit = Status(settings, store), Submit(settings, store, queue)
    assert answer_of(submit.handle(http_event("POST", "/generate", body=MINE), None))[0] == 202

    def refused(code: int, body: Any) -> None:
        assert (code, body["error"]["code"]) == (503, "INTERNAL")
        assert "kms" not in json.dumps(body).lower()
        assert "arn:" not in json.dumps(body)

    layer.refuses = {"GET"}  # sealed with another key, whose rights the role has lost
    refused(*answer_of(status.handle(http_event("GET", "/results/mine"), None)))
    refused(*answer_of(submit.handle(http_event("DELETE", "/results/mine"), None)))
    generate = Generate(settings, store, queue, lambda _: PlainEngine())
    assert generate.handle(sqs_event(MINE, ids=["m-1"]), None) == {"batchItemFailures": [{"itemIdentifier": "m-1"}]}

    layer.refuses = {"PUT"}
    refused(*answer_of(submit.handle(http_event("POST", "/generate", body=OTHER), None)))
    assert generate.handle(sqs_event(OTHER, ids=["m-2"]), None) == {"batchItemFailures": [{"itemIdentifier": "m-2"}]}

    layer.refuses = {"SendMessage", "ReceiveMessage"}
    refused(*answer_of(submit.handle(http_event("POST", "/generate", body=OTHER), None)))
    with pytest.raises(ServiceFault):
        queue.receive(wait=0)

    layer.refuses = set()  # the rights are back: nothing is lost
    assert answer_of(status.handle(http_event("GET", "/results/mine"), None))[1]["status"] == "pending"
    assert answer_of(submit.handle(http_event("POST", "/generate", body=OTHER), None))[0] == 202
