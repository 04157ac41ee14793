"""The whole path on MiniStack with IAM on, each function under its role: API, queue, picture, URL, dead letters."""

from __future__ import annotations

import io
import json
import ssl
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from tests.ministack import ministack_server

from .shims import POISON, shimmed
from .stacks import Aws, deploy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .stacks import Stack

pytestmark = pytest.mark.infra

URL_LIFETIME = 6
LONGEST = 60.0
STUDIO = "https://studio.example"
"""Where the page is from that may call."""


@dataclass(frozen=True)
class Caller:
    """Somebody with an API key, or without."""

    aws: Aws
    api: str
    key: str

    @property
    def tenant(self) -> str:
        """As the shims make it of the key."""
        return sha256(self.key.encode()).hexdigest()[:10]

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and JSON body. The emulator tells APIs apart by the host's name."""
        host = f"{self.api}.execute-api.localhost:{self.aws.endpoint.rpartition(':')[2]}"
        request = urllib.request.Request(
            f"{self.aws.endpoint}/v1{path}",
            data=json.dumps(body).encode() if body is not None else None,
            method=method,
            headers={"Host": host, "Content-Type": "application/json", **({"x-api-key": self.key} if self.key else {})},
        )
        status, answer = fetch(self.aws, request)
        return status, json.loads(answer or b"null")

    def get(self, path: str) -> int:
        """The status alone, whatever the body is."""
        host = f"{self.api}.execute-api.localhost:{self.aws.endpoint.rpartition(':')[2]}"
        headers = {"Host": host, **({"x-api-key": self.key} if self.key else {})}
        return fetch(self.aws, urllib.request.Request(f"{self.aws.endpoint}/v1{path}", headers=headers))[0]

    def headers(self, method: str, path: str, origin: str) -> tuple[int, dict[str, str]]:
        """Status and headers, as the page of another origin gets them; its browser asks OPTIONS without the key."""
        host = f"{self.api}.execute-api.localhost:{self.aws.endpoint.rpartition(':')[2]}"
        told = {"Host": host, "Origin": origin}
        if method == "OPTIONS":
            told |= {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "x-api-key"}
        elif self.key:
            told["x-api-key"] = self.key
        request = urllib.request.Request(f"{self.aws.endpoint}/v1{path}", method=method, headers=told)
        context = ssl.create_default_context(cafile=self.aws.certificate)
        with urllib.request.urlopen(request, context=context) as reply:
            return int(reply.status), {name.lower(): value for name, value in reply.headers.items()}

    def wait(self, task_id: str) -> dict[str, Any]:
        """The result, once it is terminal."""
        deadline = time.monotonic() + LONGEST
        while time.monotonic() < deadline:
            status, result = self.ask("GET", f"/results/{task_id}")
            if status == 200 and result["status"] in {"completed", "failed", "cancelled"}:
                return dict(result)
            time.sleep(0.3)
        raise TimeoutError(f"{task_id}: {result}")


def fetch(aws: Aws, what: urllib.request.Request | str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(what, context=ssl.create_default_context(cafile=aws.certificate)) as reply:
            return int(reply.status), reply.read()
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, refused.read()


@pytest.fixture(scope="module")
def running(request: pytest.FixtureRequest) -> Iterator[Stack]:
    """On a MiniStack of its own: its poller stops at other stacks' mappings, whose numbers are still text."""
    parameters = {
        "GenerateTimeout": "60",
        "UrlLifetime": str(URL_LIFETIME),
        "Lease": "15",
        "MaxBatch": "2",
        "MaxTries": "2",
        "Tenants": "true",
        "CorsOrigins": STUDIO,
        "RequestFiles": "true",
    }
    with ministack_server(request.config.getoption("--ministack"), tls=True) as (url, certificate):
        yield deploy(Aws(url, certificate), "running", parameters, body=shimmed())


@pytest.fixture(scope="module")
def caller(running: Stack) -> Caller:
    key = running.aws.client("apigateway").get_api_key(apiKey=running.outputs["ApiKeyId"], includeValue=True)
    return Caller(running.aws, running.physical["Api"], key["value"])


@pytest.fixture(scope="module")
def apple(caller: Caller) -> dict[str, Any]:
    """A picture that was asked for over HTTP."""
    asked = {"prompt": "a red apple on a blue background", "num_inference_steps": 8, "seed": 7, "task_id": "apple-1"}
    status, answer = caller.ask("POST", "/generate", asked)
    assert (status, answer["task_id"]) == (202, "apple-1")
    return caller.wait("apple-1")


def test_from_a_request_to_a_picture(caller: Caller, apple: dict[str, Any]) -> None:
    assert apple["status"] == "completed", apple["error"]
    (image,) = caller.ask("GET", "/results/apple-1")[1]["images"]
    status, body = fetch(caller.aws, image["url"])
    assert (status, sha256(body).hexdigest()) == (200, image["sha256"])
    picture = Image.open(io.BytesIO(body)).convert("RGB")
    assert picture.size == (64, 64)
    middle, corner = picture.getpixel((32, 34)), picture.getpixel((2, 2))
    assert isinstance(middle, tuple)
    assert isinstance(corner, tuple)
    assert middle[0] > middle[2]
    assert corner[2] > corner[0]


def test_a_file_that_holds_a_request_is_drawn(caller: Caller, running: Stack) -> None:
    """From S3's event by EventBridge's rule and the queue to the picture; what is no such file does nothing."""
    s3 = running.aws.client("s3")
    told = {"prompt": "a fox", "num_inference_steps": 4, "task_id": "from-a-file"}
    for key in ("requests/fox.txt", "requests/fox 1.json"):
        s3.put_object(Bucket=running.physical["Bucket"], Key=key, Body=json.dumps(told | {"seed": len(key)}))
    deadline = time.monotonic() + LONGEST
    key = "tasks/from-a-file/status.json"
    status = ""
    while status != "completed" and time.monotonic() < deadline:
        time.sleep(0.3)
        found = s3.list_objects_v2(Bucket=running.physical["Bucket"], Prefix=key).get("Contents")
        record = json.loads(s3.get_object(Bucket=running.physical["Bucket"], Key=key)["Body"].read()) if found else {}
        status = record.get("status", "")
    assert (status, record["request"]["seed"]) == ("completed", len("requests/fox 1.json"))


@pytest.mark.parametrize("method", ["OPTIONS", "GET"])
def test_a_page_of_another_origin_may_call(caller: Caller, apple: dict[str, Any], method: str) -> None:
    """Behind API Gateway, with the key that belongs to the caller, and for the asking before without."""
    status, headers = caller.headers(method, "/results/apple-1", STUDIO)
    assert (status, headers["access-control-allow-origin"]) == (204 if method == "OPTIONS" else 200, STUDIO)
    if method == "OPTIONS":
        assert "GET" in headers["access-control-allow-methods"]
        assert "x-api-key" in headers["access-control-allow-headers"].lower()
    assert "access-control-allow-origin" not in caller.headers(method, "/results/apple-1", "https://other.example")[1]


def test_touched_and_expired_urls_are_refused(caller: Caller, apple: dict[str, Any]) -> None:
    (image,) = caller.ask("GET", "/results/apple-1")[1]["images"]
    url = image["url"]
    signed = time.monotonic()
    assert fetch(caller.aws, url)[0] == 200
    forged = url[:-4] + ("0000" if not url.endswith("0000") else "1111")
    longer = url.replace(f"X-Amz-Expires={URL_LIFETIME}", "X-Amz-Expires=600")
    another = url.replace("/0.png", "/1.png")
    for touched in (forged, longer, another, url.partition("?")[0]):
        assert touched != url
        assert fetch(caller.aws, touched)[0] == 403
    time.sleep(max(0.0, URL_LIFETIME + 1.5 - (time.monotonic() - signed)))
    assert fetch(caller.aws, url)[0] == 403


def test_a_bare_message_is_enough(caller: Caller, running: Stack, apple: dict[str, Any]) -> None:
    body = json.dumps({"prompt": "fox", "num_inference_steps": 4})
    whose = {"tenant": {"DataType": "String", "StringValue": caller.tenant}}
    sent = running.aws.client("sqs").send_message(
        QueueUrl=running.outputs["QueueUrl"], MessageBody=body, MessageAttributes=whose
    )
    assert caller.wait(sent["MessageId"])["status"] == "completed"


def test_the_newest_come_first_and_health_knows_the_model(caller: Caller, apple: dict[str, Any]) -> None:
    status, page = caller.ask("GET", "/results?limit=5")
    assert status == 200
    assert "apple-1" in [one["task_id"] for one in page["results"]]
    status, health = caller.ask("GET", "/health")
    assert (status, health["model_status"], health["model"]["id"]) == (200, "available", "built-in")
    assert caller.ask("GET", "/openapi.json")[0] == 200


def test_a_task_that_there_is_not(caller: Caller) -> None:
    assert caller.ask("GET", "/results/nobody")[0] == 404
    assert caller.ask("DELETE", "/results/nobody")[0] == 404


def test_cancel_refuse_and_repeat(caller: Caller, apple: dict[str, Any]) -> None:
    assert caller.ask("DELETE", "/results/apple-1")[0] == 409
    status, answer = caller.ask("POST", "/generate", {"prompt": "", "width": 7})
    assert status == 422
    assert {one["field"] for one in answer["error"]["details"]} >= {"prompt", "width"}
    assert caller.ask("POST", "/generate", {"prompt": "another", "task_id": "apple-1"})[0] == 409


@pytest.fixture(scope="module")
def other(running: Stack) -> Caller:
    """Another tenant: a key of its own in the same usage plan, made as infra/README.md says."""
    gateway = running.aws.client("apigateway")
    key = gateway.create_api_key(name="other", enabled=True)
    gateway.create_usage_plan_key(usagePlanId=running.outputs["UsagePlanId"], keyId=key["id"], keyType="API_KEY")
    return Caller(running.aws, running.physical["Api"], key["value"])


def test_another_key_is_another_tenant(caller: Caller, other: Caller, running: Stack, apple: dict[str, Any]) -> None:
    for method in ("GET", "DELETE"):
        assert other.ask(method, "/results/apple-1")[0] == 404
    assert other.ask("GET", "/results") == (200, {"results": [], "cursor": None})
    asked = {"prompt": "fox", "num_inference_steps": 2, "task_id": "apple-1"}
    assert other.ask("POST", "/generate", asked)[0] == 202  # no conflict with the other one's
    assert other.wait("apple-1")["prompt"] == "fox"
    assert caller.ask("GET", "/results/apple-1")[1]["prompt"] == apple["prompt"]
    bucket, s3 = running.outputs["Bucket"], running.aws.client("s3")
    keys = [one["Key"] for one in s3.list_objects_v2(Bucket=bucket, Prefix="tenants/")["Contents"]]
    whose = {key.split("/")[1] for key in keys if key.endswith("/tasks/apple-1/status.json")}
    assert whose == {caller.tenant, other.tenant}


def test_the_page_is_public_and_nothing_else(caller: Caller) -> None:
    """That a path needs no key shows in who answers: the handler, whose words are not the gateway's."""
    stranger = Caller(caller.aws, caller.api, "")
    for path in ("/", "/page/app.js"):
        assert stranger.get(path) != 403
    for path in ("/nowhere", "/models", "/docs", "/openapi.json", "/page"):
        assert stranger.get(path) == 403
    assert caller.get("/nowhere") == 404


def test_without_a_key_nothing(caller: Caller) -> None:
    for method, path in (("POST", "/generate"), ("GET", "/results/apple-1"), ("GET", "/health"), ("GET", "/results")):
        assert (
            Caller(caller.aws, caller.api, "").ask(method, path, {"prompt": "fox"} if method == "POST" else None)[0]
            == 403
        )
        assert Caller(caller.aws, caller.api, "not-a-key").ask(method, path)[0] == 403


def test_poison_ends_as_failed(caller: Caller, running: Stack) -> None:
    status, _ = caller.ask("POST", "/generate", {"prompt": POISON, "task_id": "poisoned", "num_inference_steps": 2})
    assert status == 202
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        _, result = caller.ask("GET", "/results/poisoned")
        if result["status"] == "failed":
            break
        time.sleep(0.5)
    assert (result["status"], result["error"]["code"]) == ("failed", "RETRIES_EXHAUSTED")
