"""A pytest plugin: what each handler asks of AWS while the test suite runs, as IAM would see it.

``pytest -p tests.infra.recording --record FILE``. Every handler gets clients with an access key of its own, its name,
in place of those that a test shares out; a WSGI layer around the embedded AWS reads that name from each request's
signature, presigned URLs included, and writes a line of JSON for each new kind of request. So it is what arrives that
counts, not what a client was told.
"""

from __future__ import annotations

import io
import json
import os
import re
import threading
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote

from handler.api.results import Status
from handler.api.submission import Submit
from handler.aws.queue import TaskQueue
from handler.aws.store import TaskStore
from handler.care.deadletters import DeadLetters
from handler.care.rounds import Doctor
from handler.cli.local.aws import EmbeddedAws
from handler.work.serving import Generate

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from wsgiref.types import StartResponse, WSGIEnvironment

    import pytest

    from handler.settings import Settings

HANDLERS: dict[str, type] = {
    "generate": Generate,
    "submit": Submit,
    "status": Status,
    "deadletter": DeadLetters,
    "doctor": Doctor,
}
CREDENTIAL = re.compile(r"Credential=([^/,]+)/")
S3_ACTIONS = {"GET": "s3:GetObject", "HEAD": "s3:GetObject", "PUT": "s3:PutObject", "DELETE": "s3:DeleteObject"}
FORM_CREDENTIAL = re.compile(rb'name="x-amz-credential"\r\n\r\n([^/]+)/')
FORM_KEY = re.compile(rb'name="key"\r\n\r\n([^\r]+)')
KEY = re.compile(r"<Key>(.+?)</Key>")
NAMES = {
    r"^tasks/[^/]+/": "tasks/T/",
    r"^index/.+": "index/N",
    r"^open/.+": "open/A/T",
    r"^spend/.+": "spend/D",
    r"^uploads/.+": "uploads/U",
}
"""What of a key does not matter to a policy, and how it is told."""
OURS = re.compile(r"darkroom-[0-9a-f]{12}(-dead)?")
"""Names of the embedded AWS's resources; whatever else a test asks for is there to fail."""


@dataclass(frozen=True)
class Call:
    """``prefix`` is that of a listing, else None."""

    who: str
    action: str
    resource: str
    prefix: str | None = None


def read(file: Path) -> set[Call]:
    return {Call(**json.loads(line)) for line in file.read_text().splitlines()}


def calls_of(environ: WSGIEnvironment, body: bytes) -> Iterator[Call]:
    """Nothing for requests that no handler makes, and for names that are not ours."""
    asked = parse_qs(environ.get("QUERY_STRING", ""), keep_blank_values=True)
    query = {name: values[0] for name, values in asked.items()}
    signed = CREDENTIAL.search(environ.get("HTTP_AUTHORIZATION", ""))
    posted = FORM_CREDENTIAL.search(body) if environ["REQUEST_METHOD"] == "POST" else None
    who = signed[1] if signed else query.get("X-Amz-Credential", "").partition("/")[0]
    who = posted[1].decode() if posted else who
    if who not in HANDLERS:
        return
    target, method = environ.get("HTTP_X_AMZ_TARGET", ""), environ["REQUEST_METHOD"]
    if target.startswith("AmazonSQS."):
        if queue := OURS.fullmatch(json.loads(body).get("QueueUrl", "").rpartition("/")[2]):
            yield Call(who, f"sqs:{target.removeprefix('AmazonSQS.')}", "dead" if queue[1] else "queue")
        return
    bucket, _, key = unquote(environ["PATH_INFO"]).lstrip("/").partition("/")
    if target or not OURS.fullmatch(bucket):
        return
    if key:
        yield Call(who, S3_ACTIONS[method], _object(key))
    elif method == "GET":
        prefix = re.sub(r"^tenants/[^/]+/", "tenants/A/", query.get("prefix", ""))
        yield Call(who, "s3:ListBucket", "bucket", re.sub(r"tasks/[^/]+/$", "tasks/T/", prefix))
    elif method == "POST" and (form := FORM_KEY.search(body)):  # whoever posts a form acts as the one who signed it
        yield Call(who, "s3:PutObject", _object(form[1].decode()))
    elif method == "POST" and "delete" in query:  # DeleteObjects: many at once
        for one in KEY.findall(body.decode()):
            yield Call(who, "s3:DeleteObject", _object(one))
    else:
        raise ValueError(f"what does {who} want with {method} {environ['PATH_INFO']}?")


def _object(key: str) -> str:
    """The object, by what matters to a policy."""
    whose, key = ("tenants/A/", key.split("/", 2)[2]) if key.startswith("tenants/") else ("", key)
    for names, name in NAMES.items():
        key = re.sub(names, name, key)
    return f"bucket/{whose}{key}"


class _Recorder:
    def __init__(self, app: Any, file: Path) -> None:
        self._app, self._file = app, file
        self._seen: set[Call] = set()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = io.BytesIO(body)
        for call in set(calls_of(environ, body)) - self._seen:
            self._seen.add(call)
            with self._file.open("a") as out:
                out.write(json.dumps(asdict(call)) + "\n")
        answer: Iterable[bytes] = self._app(environ, start_response)
        return answer


ONE_AT_A_TIME = threading.RLock()
"""The environment is everybody's: two threads that change it would each restore what the other had set."""


@contextmanager
def acting_as(**variables: str) -> Iterator[None]:
    """Clients that are made inside have these credentials, and keep them."""
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "SSL_CERT_FILE", "AWS_CA_BUNDLE")
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    os.environ.update({"AWS_SECRET_ACCESS_KEY": "test", **variables})
    try:
        yield
    finally:
        for name in names:
            os.environ.pop(name, None)
        os.environ.update(before)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", type=Path, required=True, help="file for the calls, one JSON object a line")


def pytest_configure(config: pytest.Config) -> None:
    file: Path = config.getoption("--record")
    file.touch()
    start = EmbeddedAws.__init__

    def recorded(self: EmbeddedAws) -> None:
        start(self)
        server: Any = self._server
        server.app = _Recorder(server.app, file)

    EmbeddedAws.__init__ = recorded  # type: ignore[method-assign]
    for name, kind in HANDLERS.items():
        _sign_as(kind, name)


def _sign_as(handler: Any, name: str) -> None:
    make = handler.__init__

    def remade(self: Any, settings: Settings, *args: Any, **kwargs: Any) -> None:
        with ONE_AT_A_TIME, acting_as(AWS_ACCESS_KEY_ID=name):
            own = [_again(one, settings) for one in args]
            make(self, settings, *own, **{key: _again(one, settings) for key, one in kwargs.items()})

    handler.__init__ = remade


def _again(client: Any, settings: Settings) -> Any:
    """The same client with the credentials of now; anything else as it is."""
    if type(client) is TaskStore:
        return TaskStore(client._settings).for_tenant(client.tenant)
    if type(client) is TaskQueue:
        return TaskQueue(replace(settings, queue_url=client.url))
    return client
