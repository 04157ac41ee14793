"""The template as it is, deployed on two emulators, read back and compared: what one of them cannot do is listed here.

The lists are exact. An emulator that learns something makes its test fail, and the list shorter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from .readback import READERS, differences
from .stacks import Refused, deploy
from .template import EXAMPLES, read

if TYPE_CHECKING:
    from .stacks import Aws, Stack

pytestmark = [pytest.mark.infra, pytest.mark.filterwarnings("ignore:Tried to parse")]

MOTO_HAS_NO = {
    "AWS::ApiGateway::ApiKey",
    "AWS::ApiGateway::Deployment",
    "AWS::ApiGateway::GatewayResponse",
    "AWS::ApiGateway::Method",
    "AWS::ApiGateway::Stage",
    "AWS::ApiGateway::UsagePlan",
    "AWS::ApiGateway::UsagePlanKey",
    "AWS::Lambda::Permission",
    "AWS::S3::BucketPolicy",
    "AWS::SQS::QueuePolicy",
}
MOTO_DROPS = {
    "AWS::ApiGateway::RestApi.EndpointConfiguration",
    "AWS::IAM::Role.Policies",  # a log group's ARN lacks the ":*" that AWS's has
    "AWS::Lambda::Function.EphemeralStorage",
    "AWS::Lambda::Function.ImageConfig",
    "AWS::Lambda::Function.LoggingConfig",
    "AWS::Lambda::Function.PackageType",
    "AWS::Lambda::Function.RecursiveLoop",
    "AWS::Lambda::Function.TracingConfig",
    "AWS::S3::Bucket.CorsConfiguration",
    "AWS::S3::Bucket.LifecycleConfiguration",
    "AWS::S3::Bucket.OwnershipControls",
    "AWS::S3::Bucket.PublicAccessBlockConfiguration",
    "AWS::SQS::Queue.RedriveAllowPolicy",
}
MINISTACK_DROPS = {
    "AWS::ApiGateway::RestApi.EndpointConfiguration",
    "AWS::Lambda::Function.RecursiveLoop",
    "AWS::S3::Bucket.LifecycleConfiguration",
}
MINISTACK_DROPS_OTHERWISE = {
    "AWS::ApiGateway::Stage.AccessLogSetting",
    "AWS::Lambda::EventSourceMapping.Enabled",  # always on
    "AWS::S3::Bucket.BucketEncryption",  # always AES256
}
MINISTACK_REFUSES = {
    "TaskErrorsAlarm": "no",
    "FunctionErrorsAlarm": "no",
    "NoWorkerAlarm": "no",
    "FewWorkersAlarm": "counted",
    "SilentWorkersAlarm": "silent",
}
"""Alarms over metric math, and with which GpuWorkers they are there."""
OTHERWISE = {
    "Auth": "Iam",
    "Architecture": "arm64",
    "KmsKeyArn": EXAMPLES["KmsKeyArn"][0],
    "ModelInS3": "models/sd/turbo",
    "GenerateOnLambda": "false",
    "RequestFiles": "true",
    "GenerateTimeout": "60",
    "AccessLog": "true",
    "DailyQuota": "1000",
    "Tracing": "Active",
}


def test_every_type_can_be_read_back() -> None:
    files = ("template.yaml", "alarms.yaml")
    assert {one["Type"] for file in files for one in read(file)["Resources"].values()} == READERS.keys()


def test_ministack_makes_what_the_template_says(stack: Stack) -> None:
    assert stack.seconds < 30
    assert differences(stack) == (set(), MINISTACK_DROPS)


def test_ministack_makes_it_with_other_parameters(mini: Aws) -> None:
    other = deploy(mini, "otherwise", OTHERWISE)
    assert differences(other) == (set(), MINISTACK_DROPS | MINISTACK_DROPS_OTHERWISE)
    other.delete()


def test_ministack_refuses_alarms_over_metric_math_and_makes_the_others(mini: Aws) -> None:
    body = read("alarms.yaml")
    math = {name for name, one in body["Resources"].items() if "Metrics" in one.get("Properties", {})}
    assert math == MINISTACK_REFUSES.keys()
    for name, watched in MINISTACK_REFUSES.items():
        alone = {**body, "Resources": {key: one for key, one in body["Resources"].items() if key not in math - {name}}}
        with pytest.raises(Refused, match="metric math") as refused:
            deploy(mini, "refused", {"GpuWorkers": watched}, body=alone)
        assert refused.value.reasons.keys() == {name}
        mini.client("cloudformation").delete_stack(StackName="refused")
    rest = {**body, "Resources": {name: one for name, one in body["Resources"].items() if name not in math}}
    alarmed = deploy(mini, "alarmed", {"AlarmEmail": "somebody@example.com", "WithDashboard": "true"}, body=rest)
    assert differences(alarmed) == (set(), set())
    alarmed.delete()


def test_moto_makes_what_it_can(moto: Aws) -> None:
    stack = deploy(moto, "darkroom", {"Tracing": "Active"})
    assert stack.seconds < 30
    assert differences(stack) == (MOTO_HAS_NO, MOTO_DROPS)


def test_the_outputs_are_what_the_readme_uses(stack: Stack) -> None:
    assert stack.outputs["Bucket"] == stack.physical["Bucket"]
    assert stack.outputs["QueueUrl"] == stack.physical["Queue"]
    assert stack.outputs["ApiUrl"].endswith(".execute-api.us-east-1.amazonaws.com/v1")
    assert stack.outputs["ApiKeyId"] == stack.physical["ApiKey"]
