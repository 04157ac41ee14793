"""An embedded AWS: moto's server on 127.0.0.1, with a bucket, a queue and its dead-letter queue.

moto keeps its state in memory, shared by all servers of one process; so every deployment gets new random names.
"""

from __future__ import annotations

import io
import json
import logging
import threading
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import boto3
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType
    from wsgiref.types import StartResponse, WSGIEnvironment

    from mypy_boto3_s3 import S3Client
    from mypy_boto3_sqs import SQSClient

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}
VISIBILITY = 120
MAX_RECEIVES = 5
LOOKS_EVERY = 0.05
"""Seconds: so often the server looks whether it is to end."""


class EmbeddedAws:
    """A context manager that runs the server; ``endpoint`` is its URL."""

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        app = _AtomicWrites(DomainDispatcherApplication(create_backend_app))
        self._server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=_KeepAlive)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(LOOKS_EVERY,), name="embedded-aws", daemon=True
        )
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> EmbeddedAws:
        self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@dataclass(frozen=True)
class Resources:
    """A deployment's resources, named as the settings need them."""

    bucket: str
    queue_url: str
    dead_letter_queue_url: str

    @property
    def variables(self) -> dict[str, str]:
        return {"BUCKET": self.bucket, "QUEUE_URL": self.queue_url}


def create_resources(endpoint: str, *, visibility: int = VISIBILITY, max_receives: int = MAX_RECEIVES) -> Resources:
    """Creates a bucket, a queue and its dead-letter queue on an emulator, with new random names.

    ``visibility``: the queue's visibility timeout in seconds.
    """
    s3, sqs = _clients(endpoint)
    name = f"darkroom-{uuid4().hex[:12]}"
    s3.create_bucket(Bucket=name)
    dead = sqs.create_queue(QueueName=f"{name}-dead")["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=dead, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    redrive = json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": max_receives})
    attributes: Any = {"VisibilityTimeout": str(visibility), "RedrivePolicy": redrive}
    queue = sqs.create_queue(QueueName=name, Attributes=attributes)["QueueUrl"]
    return Resources(name, queue, dead)


@cache
def _clients(endpoint: str) -> tuple[S3Client, SQSClient]:
    """To make a client takes several times as long as to make a bucket and two queues."""
    session = boto3.Session(
        aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
        region_name=CREDENTIALS["AWS_REGION"],
    )
    return session.client("s3", endpoint_url=endpoint), session.client("sqs", endpoint_url=endpoint)


class _KeepAlive(MotoRequestHandler):  # type: ignore[misc]
    """Keeps connections open: 1.5 times as many small calls per second."""

    protocol_version = "HTTP/1.1"


class _AtomicWrites:
    """Makes conditional writes atomic, as S3's are: moto checks the condition and writes in two steps."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._lock = threading.Lock()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] not in {"PUT", "DELETE"}:
            return self._call(environ, start_response)
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = io.BytesIO(body)
        with self._lock:
            return self._call(environ, start_response)

    def _call(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        answer: Iterable[bytes] = self._app(environ, start_response)
        return answer
