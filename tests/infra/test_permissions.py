"""Each role may do what its handler does, and nothing that it does not: templates against recorded requests."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from .policies import Grant, grants
from .recording import HANDLERS, Call
from .recording import read as read_calls
from .template import EXAMPLES, INFRA, Template, read

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.infra

ROOT = INFRA.parent
ROLES = {
    "generate": "GenerateRole",
    "submit": "SubmitRole",
    "status": "StatusRole",
    "deadletter": "DeadLetterRole",
    "doctor": "DoctorRole",
}
SUITE = (
    "work/test_serving",
    "work/test_suspend",
    "api/test_submission",
    "api/test_results",
    "api/test_tenants",
    "api/test_quota",
    "api/test_uploads",
    "api/test_openai",
    "api/test_purging",
    "api/test_ahead",
    "task/test_envelopes",
    "care/test_deadletters",
    "care/test_care",
    "aws/test_events",
)
"""Tests whose handlers are recorded."""
BUT = "tests/aws/test_events.py::test_a_bus_that_does_not_answer_is_left_alone_for_a_while"
"""Its handlers share what they know of the bus; recorded ones have clients, and stores, of their own."""
WITH_ROLES = ("template.yaml", "gpu.yaml")
ARNS = {
    "Bucket": {"Ref": "bucket", "Arn": "bucket"},
    "Queue": {"Ref": "url", "Arn": "queue", "QueueName": "queue"},
    "DeadLetters": {"Ref": "url", "Arn": "dead", "QueueName": "dead"},
}
LOGS = {"logs:CreateLogStream", "logs:PutLogEvents"}
TRACES = {"xray:PutTraceSegments", "xray:PutTelemetryRecords"}
MISSING = {"s3:ListBucket"}
"""Without it S3 answers 403 for a missing key (its API reference, "GetObject: permissions"); no request shows that."""
POLLS = {"sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:GetQueueAttributes"}
BY_LAMBDA = {
    "generate": LOGS | TRACES | POLLS | MISSING,
    "submit": LOGS | TRACES | MISSING,
    "status": LOGS | TRACES | MISSING,
    "deadletter": LOGS | TRACES | POLLS | MISSING,
    "doctor": LOGS | TRACES | MISSING,
}
"""What Lambda itself does in a role's name: "Defining Lambda function permissions with an execution role", "Configuring
an SQS event source: execution role permissions" and "Visualize Lambda function invocations with X-Ray" in its guide."""
KEYS = {
    "s3:GetObject": {"kms:Decrypt"},
    "s3:PutObject": {"kms:GenerateDataKey"},
    "sqs:SendMessage": {"kms:GenerateDataKey", "kms:Decrypt"},
    "sqs:ReceiveMessage": {"kms:Decrypt"},
}
"""What S3 and SQS ask of an object's or a queue's key in the caller's name (their guides, "KMS permissions")."""


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> set[Call]:
    """Runs the handlers' tests and tells what arrived at AWS. That they pass is part of it."""
    file = tmp_path_factory.mktemp("calls") / "calls.jsonl"
    tests = [f"tests/{name}.py" for name in SUITE]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "tests.infra.recording",
        "--record",
        str(file),
        "--deselect",
        BUT,
        *tests,
    ]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environ, timeout=280, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    return read_calls(file)


def allowed(**parameters: str) -> list[Grant]:
    """With traces: nothing else is then missing but the bus, which test_events looks at."""
    return list(grants(Template(read("template.yaml"), {"Tracing": "Active"} | parameters, ARNS)))


def of(role: str) -> Iterator[Grant]:
    return (grant for grant in allowed() if grant.role == ROLES[role])


@pytest.mark.parametrize("name", HANDLERS)
def test_a_role_may_do_all_that_its_handler_does(name: str, calls: set[Call]) -> None:
    own = [call for call in calls if call.who == name]
    assert own
    granted = list(of(name))
    assert [call for call in own if not any(grant.covers(call) for grant in granted)] == []


@pytest.mark.parametrize("name", HANDLERS)
def test_a_role_may_do_nothing_that_its_handler_does_not(name: str, calls: set[Call]) -> None:
    own = [call for call in calls if call.who == name]
    used = {grant for grant in of(name) if any(grant.covers(call) for call in own)}
    by_lambda = {grant for grant in of(name) if grant.action in BY_LAMBDA[name]}
    assert set(of(name)) - used - by_lambda == set()
    assert {grant.action for grant in by_lambda} == BY_LAMBDA[name]


@pytest.mark.parametrize("name", HANDLERS)
def test_a_role_may_use_the_key_for_what_it_does_and_no_more(name: str) -> None:
    key = EXAMPLES["KmsKeyArn"][0]
    with_key = [grant for grant in allowed(KmsKeyArn=key) if grant.role == ROLES[name]]
    needed = {action for grant in of(name) for action in KEYS.get(grant.action, set())}
    assert {grant.action for grant in with_key} - {grant.action for grant in of(name)} == needed
    assert {grant.resource for grant in with_key if grant.action.startswith("kms:")} == {key}


def test_a_model_in_s3_adds_that_place_alone() -> None:
    more = set(allowed(ModelInS3="models/sd/turbo")) - set(allowed())
    assert more == {
        Grant("GenerateRole", "s3:ListBucket", "arn:<AWS::Partition>:s3:::models"),
        Grant("GenerateRole", "s3:GetObject", "arn:<AWS::Partition>:s3:::models/sd/turbo/*"),
    }


@pytest.mark.parametrize("file", WITH_ROLES)
def test_no_wildcard_action_and_a_reason_for_each_wildcard_resource(file: str) -> None:
    body = read(file)
    chosen = {name: one[-1] for name, one in EXAMPLES.items()} | {"Tracing": "Active", "Exec": "true"}
    every = list(grants(Template(body, chosen, ARNS)))
    assert every
    assert [grant for grant in every if "*" in grant.action] == []
    whole = {grant.action for grant in every if grant.resource == "*"}
    lines = (INFRA / file).read_text().splitlines()
    wild = [number for number, line in enumerate(lines) if re.search(r'Resource: "\*"|^\s+- "\*"', line)]
    for number in wild:
        assert lines[number - 1].strip().startswith("#"), f"{file}:{number + 1}: why?"
    assert whole == WHOLE[file]
    # Denying takes nothing but TLS away from nobody: the only stars of the resources' own policies.
    given = chosen | ({"RequestFiles": "true"} if "RequestFiles" in body["Parameters"] else {})
    for resource in Template(body, given).resources().values():
        if resource["Type"] in {"AWS::S3::BucketPolicy", "AWS::SQS::QueuePolicy"}:
            for statement in resource["Properties"]["PolicyDocument"]["Statement"]:
                if statement["Sid"] == "RequestFiles":  # a service's, and of one rule alone
                    assert statement["Principal"] == {"Service": "events.amazonaws.com"}
                    assert statement["Condition"] == {"ArnEquals": {"aws:SourceArn": "<NewFiles.Arn>"}}
                else:
                    assert (statement["Effect"], statement["Sid"]) == ("Deny", "TlsOnly")


CHANNELS = {f"ssmmessages:{verb}{kind}Channel" for verb in ("Create", "Open") for kind in ("Control", "Data")}
WHOLE = {"template.yaml": TRACES, "gpu.yaml": TRACES | CHANNELS | {"ecr:GetAuthorizationToken"}}
"""Actions that take no resource, by the service authorization reference."""
