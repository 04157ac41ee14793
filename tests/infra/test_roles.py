"""The handlers under the roles that the template gives them, on two emulators with IAM on; what is refused to them."""

from __future__ import annotations

import json
import ssl
import urllib.request
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError

from handler.api.results import Status
from handler.api.submission import Submit
from handler.aws.queue import TaskQueue
from handler.aws.store import TaskStore
from handler.aws.weights import fetch_model
from handler.cli.local.aws import EmbeddedAws, create_resources
from handler.errors import NotFound, QuotaExceeded
from handler.settings import Settings
from handler.task.messages import asked_by
from handler.work.serving import Generate
from tests.ministack import ministack_server
from tests.support import PlainEngine, answer_of, http_event, sqs_event

from ..support import event_of
from .guarded import guarded
from .policies import matches
from .readback import document
from .recording import acting_as
from .stacks import Aws, deploy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from .stacks import Stack

pytestmark = [pytest.mark.infra, pytest.mark.filterwarnings("ignore:Tried to parse")]

ROLES = ("GenerateRole", "SubmitRole", "StatusRole", "DeadLetterRole", "DoctorRole")


@contextmanager
def acting(stack: Stack, aws: Aws) -> Iterator[Settings]:
    """Clients made inside have the credentials of ``aws``; the settings name the stack's own bucket and queue."""
    session = {f"AWS_{name.removeprefix('aws_').upper()}": value for name, value in aws.keys.items()}
    trust = {"SSL_CERT_FILE": aws.certificate, "AWS_CA_BUNDLE": aws.certificate} if aws.certificate else {}
    with acting_as(**session, **trust):
        names = {"BUCKET": stack.outputs["Bucket"], "QUEUE_URL": stack.outputs["QueueUrl"]}
        yield Settings.load({**session, **names, "AWS_REGION": "us-east-1", "AWS_ENDPOINT_URL": aws.endpoint})


def assumed(stack: Stack) -> dict[str, Aws]:
    return {role: stack.aws.assume(stack.physical[role]) for role in ROLES}


def whole_path(stack: Stack, roles: dict[str, Aws]) -> None:
    """Submit, draw and show, each under its own role; then the URL, which carries the status role's permission."""
    with acting(stack, roles["SubmitRole"]) as settings:
        submit = Submit(settings, TaskStore(settings), TaskQueue(settings))
        body = json.dumps({"prompt": "fox", "task_id": "mine", "num_inference_steps": 2})
        assert answer_of(submit.handle(http_event("POST", "/generate", body=body), None))[0] == 202
        assert answer_of(submit.handle(http_event("POST", "/generate", body='{"prompt": "owl"}'), None))[0] == 202
        limited = Submit(replace(settings, daily_images=1), TaskStore(settings), TaskQueue(settings)).for_tenant(
            "alice"
        )
        limited.submit(body)
        with pytest.raises(QuotaExceeded):
            limited.submit('{"prompt": "owl"}')
    with acting(stack, roles["GenerateRole"]) as settings:
        queue = TaskQueue(settings)
        generate = Generate(settings, TaskStore(settings), queue, lambda _: PlainEngine())
        # Lambda polls in the role's name.
        messages = [*queue.receive(10, wait=2), *queue.receive(10, wait=0)]
        assert sorted(str(asked_by(message).tenant) for message in messages) == ["None", "None", "alice"]
        for message in messages:
            assert generate.handle(event_of(message), None) == {"batchItemFailures": []}
            queue.delete(message.receipt_handle)
    with acting(stack, roles["StatusRole"]) as settings:
        status = Status(settings, TaskStore(settings))
        code, result = answer_of(status.handle(http_event("GET", "/results/mine", query={"inline": "base64"}), None))
        assert (code, result["status"]) == (200, "completed")
        assert result["image_base64"]
        assert len(answer_of(status.handle(http_event("GET", "/results"), None))[1]["results"]) == 2
        assert answer_of(status.handle(http_event("GET", "/results/nobody"), None))[0] == 404
        assert status.for_tenant("alice").result("mine")["status"] == "completed"
        assert len(status.for_tenant("alice").results("10", None)["results"]) == 1
        with pytest.raises(NotFound):
            status.for_tenant("bob").result("mine")
        size = result["images"][0]["bytes"]
        if stack.aws.certificate:
            trust = ssl.create_default_context(cafile=stack.aws.certificate)
            with urllib.request.urlopen(result["images"][0]["url"], context=trust) as reply:
                assert len(reply.read()) == size
        else:  # moto with IAM on breaks at a presigned URL; what it carries is the role's own permission
            s3 = roles["StatusRole"].client("s3")
            assert s3.get_object(Bucket=stack.outputs["Bucket"], Key="tasks/mine/1/0.png")["ContentLength"] == size


def test_the_whole_path_under_its_roles_on_ministack(stack: Stack) -> None:
    whole_path(stack, assumed(stack))


def test_the_whole_path_under_its_roles_on_moto() -> None:
    with guarded() as (aws, guard):
        stack = deploy(aws, "guarded", {"GenerateOnLambda": "false"})  # a mapping that is on would swallow the messages
        iam = aws.client("iam")
        for role in ROLES:  # moto keeps CloudFormation's policies in a form that its IAM cannot read
            name = stack.physical[role]
            for policy in iam.list_role_policies(RoleName=name)["PolicyNames"]:
                text = document(iam.get_role_policy(RoleName=name, PolicyName=policy)["PolicyDocument"])
                iam.put_role_policy(RoleName=name, PolicyName=policy, PolicyDocument=json.dumps(text))
        roles = assumed(stack)  # before: only Lambda may, once IAM is on
        guard()
        whole_path(stack, roles)
        # That IAM is on at all:
        assert refused(
            roles["SubmitRole"], "s3", "get_object", Bucket=stack.outputs["Bucket"], Key="tasks/mine/checkpoint"
        )
        with pytest.raises(ClientError):
            aws.client("s3").list_objects_v2(Bucket=stack.outputs["Bucket"])


def refused(aws: Aws, service: str, operation: str, **arguments: Any) -> bool:
    try:
        getattr(aws.client(service), operation)(**arguments)
    except ClientError as fault:
        code = fault.response["Error"]["Code"]
        if "AccessDenied" in code or code in {"AccessDeniedException", "403"}:
            return True
        raise
    return False


@pytest.fixture(scope="module")
def foreign(mini: Aws, stack: Stack) -> dict[str, str]:
    """Things that are not this stack's, and some of its own to be touched."""
    mini.client("s3").create_bucket(Bucket="foreign")
    mini.client("s3").put_object(Bucket="foreign", Key="tasks/a/status.json", Body=b"{}")
    for key in KEYS:
        mini.client("s3").put_object(Bucket=stack.outputs["Bucket"], Key=key, Body=b"{}")
    key = mini.client("kms").create_key()["KeyMetadata"]["KeyId"]
    sealed = mini.client("kms").encrypt(KeyId=key, Plaintext=b"secret")["CiphertextBlob"]
    return {
        "queue": mini.client("sqs").create_queue(QueueName="foreign")["QueueUrl"],
        "key": key,
        "sealed": sealed,
    }


REPORTS = ("health/available.json", "health/unavailable.json")
MAY = {
    "GenerateRole": {
        "get": [
            "tasks/*/status.json",
            "tenants/*/tasks/*/status.json",
            "tasks/*/checkpoint*",
            "tenants/*/tasks/*/checkpoint*",
            "uploads/*",
            "tenants/*/uploads/*",
            "requests/*",
        ],
        "put": ["tasks/*", "tenants/*/tasks/*", "index/*", "tenants/*/index/*", "open/*", *REPORTS],
        "delete": ["tasks/*/checkpoint*", "tenants/*/tasks/*/checkpoint*", "open/*"],
        "send": ["tasks"],
    },
    "SubmitRole": {
        "get": [
            "tasks/*/status.json",
            "tenants/*/tasks/*/status.json",
            "tasks/*/*/*",
            "tenants/*/tasks/*/*/*",
            "spend/*",
            "tenants/*/spend/*",
            *REPORTS,
            "health/model.json",
        ],
        "put": [
            "tasks/*/status.json",
            "tenants/*/tasks/*/status.json",
            "index/*",
            "tenants/*/index/*",
            "spend/*",
            "tenants/*/spend/*",
            "uploads/*",
            "tenants/*/uploads/*",
            "open/*",
        ],
        "delete": [
            "open/*",
            "tasks/*/*/*",
            "tenants/*/tasks/*/*/*",
            "tasks/*/checkpoint*",
            "tenants/*/tasks/*/checkpoint*",
            "tasks/*/preview.jpg",
            "tenants/*/tasks/*/preview.jpg",
        ],
        "send": ["tasks"],
    },
    "StatusRole": {
        "get": [
            "tasks/*/status.json",
            "tenants/*/tasks/*/status.json",
            "tasks/*/preview.jpg",
            "tenants/*/tasks/*/preview.jpg",
            "tasks/*/*/*",
            "tenants/*/tasks/*/*/*",
            *REPORTS,
            "health/model.json",
        ],
        "put": [],
        "delete": [],
        "send": [],
    },
    "DeadLetterRole": {
        "get": ["tasks/*/status.json", "tenants/*/tasks/*/status.json", "requests/*"],
        "put": ["tasks/*/status.json", "tenants/*/tasks/*/status.json", "index/*", "tenants/*/index/*", "open/*"],
        "delete": ["open/*"],
        "send": ["tasks"],
    },
    "DoctorRole": {
        "get": ["tasks/*/status.json", "tenants/*/tasks/*/status.json", "health/doctor.json"],
        "put": ["tasks/*/status.json", "tenants/*/tasks/*/status.json", "open/*", "health/doctor.json"],
        "delete": [
            "open/*",
            "tasks/*/checkpoint*",
            "tenants/*/tasks/*/checkpoint*",
            "tasks/*/preview.jpg",
            "tenants/*/tasks/*/preview.jpg",
            "tasks/*/*/*",
            "tenants/*/tasks/*/*/*",
        ],
        "send": ["tasks"],
    },
}
OWN = (
    "tasks/a/status.json",
    "tasks/a/checkpoint",
    "tasks/a/1/0.png",
    "index/1-a",
    "spend/2026-01-02.json",
    "uploads/a",
    "tasks/a/preview.jpg",
    "open/-/a",
    "requests/a.json",
    "health/doctor.json",
    "elsewhere",
)
HEALTH = (*REPORTS, "health/model.json", "health/else.json")
KEYS = (*OWN, *(f"tenants/a/{key}" for key in (*OWN, *REPORTS)), *HEALTH, "tenants/a", "atasks/a/status.json")


@pytest.mark.parametrize("role", MAY)
def test_what_a_role_may_and_may_not(role: str, stack: Stack, foreign: dict[str, Any]) -> None:
    """Every key of a bucket that has others in it, every listing, every queue, keys of others: written out by hand."""
    aws, may, bucket = stack.aws.assume(stack.physical[role]), MAY[role], stack.outputs["Bucket"]
    tried = {"get": "get_object", "put": "put_object", "delete": "delete_object"}
    for verb, operation in tried.items():
        for key in KEYS:
            allowed = any(matches(pattern, key) for pattern in may[verb])
            more = {"Body": b"{}"} if verb == "put" else {}
            assert refused(aws, "s3", operation, Bucket=bucket, Key=key, **more) is not allowed, (verb, key)
            if verb == "delete" and allowed:
                stack.aws.client("s3").put_object(Bucket=bucket, Key=key, Body=b"{}")
        assert refused(aws, "s3", operation, Bucket="foreign", Key="tasks/a/status.json")
    # Every role: a missing key is a 404 only to those who may list.
    assert not refused(aws, "s3", "list_objects_v2", Bucket=bucket)
    assert refused(aws, "s3", "list_objects_v2", Bucket="foreign")
    queues = {"tasks": stack.outputs["QueueUrl"], "dead": stack.outputs["DeadLetterQueueUrl"], "f": foreign["queue"]}
    for name, url in queues.items():
        sends = name in may["send"]
        assert refused(aws, "sqs", "send_message", QueueUrl=url, MessageBody="{}") is not sends, name
        assert refused(aws, "sqs", "purge_queue", QueueUrl=url)
    assert refused(aws, "kms", "decrypt", KeyId=foreign["key"], CiphertextBlob=foreign["sealed"])
    assert refused(aws, "iam", "list_roles")
    assert refused(aws, "lambda", "list_functions")


def test_without_tls_nothing(request: pytest.FixtureRequest) -> None:
    """The bucket's and the queues' own policies: what works with TLS does not without it."""
    with ministack_server(request.config.getoption("--ministack")) as (url, _):
        plain = Aws(url)
        stack = deploy(plain, "plain", look=False)
        role = plain.assume(stack.physical["GenerateRole"])
        where = {"Bucket": stack.outputs["Bucket"], "Key": "tasks/a/status.json"}
        assert refused(role, "s3", "put_object", Body=b"{}", **where)
        for queue in ("QueueUrl", "DeadLetterQueueUrl"):
            assert refused(plain, "sqs", "send_message", QueueUrl=stack.outputs[queue], MessageBody="{}")


def test_a_model_in_s3_is_fetched_under_the_role(mini: Aws, tmp_path: Path) -> None:
    s3 = mini.client("s3")
    s3.create_bucket(Bucket="models")
    for name in ("turbo/model_index.json", "turbo/unet/weights", "turbo-secret/weights", "else"):
        s3.put_object(Bucket="models", Key=f"sd/{name}", Body=name.encode())
    modelled = deploy(mini, "modelled", {"ModelInS3": "models/sd/turbo"})
    with acting(modelled, mini.assume(modelled.physical["GenerateRole"])) as settings:
        folder, _ = fetch_model("s3://models/sd/turbo", replace(settings, cache_dir=str(tmp_path)))
        assert (folder / "unet/weights").read_bytes() == b"turbo/unet/weights"
    role = mini.assume(modelled.physical["GenerateRole"])
    for key in ("sd/turbo-secret/weights", "sd/else"):
        assert refused(role, "s3", "get_object", Bucket="models", Key=key)
    assert refused(role, "s3", "put_object", Bucket="models", Key="sd/turbo/unet/weights", Body=b"")
    modelled.delete()


class _Reticent:
    """S3 for those who may not list: a key that is missing is forbidden. Neither emulator does this."""

    def __init__(self, app: Any) -> None:
        self._app = app

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        answered: list[Any] = []

        def keep(status: str, headers: Any, exc_info: Any = None) -> Any:
            answered[:] = [status, headers, exc_info]

        body = b"".join(self._app(environ, keep))
        status, headers, exc_info = answered
        if status.startswith("404") and b"NoSuchKey" in body:
            status = "403 Forbidden"
            body = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
            headers = [(name, value) for name, value in headers if name.lower() != "content-length"]
            headers.append(("Content-Length", str(len(body))))
        start_response(status, headers, exc_info)
        return [body]


def test_what_s3_refuses_is_never_a_missing_task() -> None:
    """A role that may not list the bucket, a wrong key of KMS: its caller hears of a fault, and nothing is written."""
    aws = EmbeddedAws()
    server: Any = aws._server
    server.app = _Reticent(server.app)
    with aws:
        resources = create_resources(aws.endpoint)
        settings = Settings.load({**resources.variables, "AWS_REGION": "us-east-1", "AWS_ENDPOINT_URL": aws.endpoint})
        store, queue = TaskStore(settings), TaskQueue(settings)
        status, submit = Status(settings, store), Submit(settings, store, queue)
        assert answer_of(status.handle(http_event("GET", "/results/mine"), None))[0] == 503
        assert answer_of(status.handle(http_event("GET", "/health"), None))[1]["model_status"] == "available"
        assert answer_of(submit.handle(http_event("DELETE", "/results/mine"), None))[0] == 503
        body = json.dumps({"prompt": "fox", "task_id": "mine"})
        assert answer_of(submit.handle(http_event("POST", "/generate", body=body), None))[0] == 503
        generate = Generate(settings, store, queue, lambda _: PlainEngine())
        event = sqs_event(body, ids=["m-1"])
        assert generate.handle(event, None) == {"batchItemFailures": [{"itemIdentifier": "m-1"}]}
