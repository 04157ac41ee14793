"""The event bus: who may tell it, and what events.yaml makes of it and of the webhook."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from typing import Any

import pytest

from handler.aws.events import DETAIL_TYPE, SOURCE, detail
from handler.contract.request import GenerationRequest
from handler.task import moves

from ..support import Clock
from .policies import Grant, grants
from .template import EXAMPLES, INFRA, Template, read

pytestmark = pytest.mark.infra

BODY = read("events.yaml")
BUS = "arn:<AWS::Partition>:events:<AWS::Region>:<AWS::AccountId>:event-bus/ends"
ENDS_TASKS = {"GenerateRole", "SubmitRole", "DeadLetterRole", "DoctorRole"}
WORKERS = {"Stack": "darkroom", "ImageUri": EXAMPLES["ImageUri"][0]}
HOOK = {"WebhookUrl": "https://example.com/hook", "WebhookSecret": "s3cret"}


def resources(**parameters: str) -> dict[str, dict[str, Any]]:
    return {name: one.get("Properties", {}) for name, one in Template(BODY, parameters).resources().items()}


def added(file: str, **more: str) -> set[Grant]:
    body = read(file)
    before, after = (set(grants(Template(body, given))) for given in (more, {"EventBus": "ends", **more}))
    assert before <= after
    return after - before


def test_whoever_ends_tasks_may_tell_this_bus_and_no_other() -> None:
    assert added("template.yaml") == {Grant(role, "events:PutEvents", BUS) for role in ENDS_TASKS}
    assert added("gpu.yaml", **WORKERS) == {Grant("WorkerRole", "events:PutEvents", BUS)}


def test_they_and_no_others_are_told_of_it() -> None:
    made = Template(read("template.yaml"), {"EventBus": "ends"}).resources()
    functions = {name: one["Properties"] for name, one in made.items() if one["Type"] == "AWS::Lambda::Function"}
    told = {
        one["Role"].strip("<>").removesuffix(".Arn"): one["Environment"]["Variables"].get("EVENT_BUS")
        for one in functions.values()
    }
    assert told == dict.fromkeys(ENDS_TASKS, "ends") | {"StatusRole": None}


def test_workers_without_a_way_out_reach_it() -> None:
    def made(**parameters: str) -> bool:
        return "EventsEndpoint" in Template(read("gpu.yaml"), WORKERS | parameters).resources()

    assert made(EventBus="ends", Endpoints="true")
    assert not made(EventBus="ends")
    assert not made(Endpoints="true")


def test_the_names_that_the_bus_may_have_are_taken_everywhere() -> None:
    longest = "b" * 40
    assert re.search(BODY["Parameters"]["BusName"]["AllowedPattern"], longest)
    for file in ("template.yaml", "gpu.yaml"):
        for name in (BODY["Parameters"]["BusName"]["Default"], longest):
            assert re.search(read(file)["Parameters"]["EventBus"]["AllowedPattern"], name)


def test_without_a_webhook_there_is_a_bus_alone() -> None:
    assert resources() == {"Bus": {"Name": "darkroom"}}


def test_the_webhook_gets_what_is_sent_and_has_a_way_to_fail() -> None:
    made = resources(**HOOK)
    rule, (target,) = made["Webhook"], made["Webhook"]["Targets"]
    assert rule["EventPattern"] == {"source": [SOURCE], "detail-type": [DETAIL_TYPE]}
    assert rule["EventBusName"] == "<Bus>"
    assert (target["Arn"], target["RoleArn"]) == ("<Destination.Arn>", "<CallRole.Arn>")
    assert target["DeadLetterConfig"] == {"Arn": "<Undelivered.Arn>"}
    # The most that EventBridge takes of each (its API reference, RetryPolicy).
    assert 0 < target["RetryPolicy"]["MaximumRetryAttempts"] <= 185
    for hours in BODY["Parameters"]["RetryHours"]["AllowedValues"]:
        (other,) = resources(**HOOK, RetryHours=hours)["Webhook"]["Targets"]
        assert other["RetryPolicy"]["MaximumEventAgeInSeconds"] == 3600 * int(hours) <= 86_400
    assert made["Destination"]["InvocationEndpoint"] == HOOK["WebhookUrl"]
    key = made["Connection"]["AuthParameters"]["ApiKeyAuthParameters"]
    assert key == {"ApiKeyName": "X-Darkroom-Secret", "ApiKeyValue": "s3cret"}
    assert set(grants(Template(BODY, HOOK))) == {Grant("CallRole", "events:InvokeApiDestination", "<Destination.Arn>")}
    sent, tls = made["UndeliveredPolicy"]["PolicyDocument"]["Statement"]
    assert sent["Condition"] == {"ArnEquals": {"aws:SourceArn": "<Webhook.Arn>"}}
    assert (tls["Sid"], tls["Effect"]) == ("TlsOnly", "Deny")


def test_what_the_webhook_did_not_take_rings_where_a_topic_is_told() -> None:
    topic = "arn:aws:sns:us-east-1:123456789012:darkroom-alarms"
    assert "UndeliveredAlarm" not in resources(**HOOK)
    assert "UndeliveredAlarm" not in resources(AlarmTopicArn=topic)
    alarm = resources(**HOOK, AlarmTopicArn=topic)["UndeliveredAlarm"]
    assert alarm["AlarmActions"] == [topic]
    assert alarm["Dimensions"] == [{"Name": "QueueName", "Value": "<Undelivered.QueueName>"}]
    assert (alarm["Statistic"], alarm["Threshold"], alarm["ComparisonOperator"]) == (
        "Maximum",
        0,
        "GreaterThanThreshold",
    )
    assert read("alarms.yaml")["Outputs"]["TopicArn"]["Value"] == {"Ref": "AlarmTopic"}
    assert re.search(BODY["Parameters"]["AlarmTopicArn"]["AllowedPattern"], topic)


def test_the_secret_is_shown_nowhere() -> None:
    assert BODY["Parameters"]["WebhookSecret"]["NoEcho"] is True
    told = json.dumps(resources(**HOOK))
    assert told.count("s3cret") == 1
    assert "WebhookSecret" not in json.dumps(BODY["Outputs"])
    (assertion,) = BODY["Rules"]["SecretOfTheWebhook"]["Assertions"]
    refused = assertion["Assert"]["Fn::Not"][0]["Fn::Equals"]
    assert refused == [{"Ref": "WebhookSecret"}, BODY["Parameters"]["WebhookSecret"]["Default"]]


def test_the_documents_show_an_event_as_it_is() -> None:
    """The sample's fields, their order and their kinds."""
    text = (INFRA.parent / "handler/README.md").read_text()
    (sample,) = [json.loads(one) for one in re.findall(r"```json\n(.*?)```", text, re.DOTALL) if DETAIL_TYPE in one]
    clock = Clock()
    record = moves.create("fox-1", GenerationRequest(prompt="fox"), 7, clock(), timedelta(days=1))
    said = detail(moves.cancel(record, now=clock()))
    assert (sample["source"], sample["detail-type"]) == (SOURCE, DETAIL_TYPE)
    assert list(sample["detail"]) == list(said)
    for name, value in sample["detail"].items():
        assert value is None or said[name] is None or type(value) is type(said[name]), name
