"""Deploys a template on an emulator, as ``aws cloudformation deploy`` would, and tells what came of it."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import boto3
from botocore.config import Config

from handler.cli.local.aws import CREDENTIALS

from .template import EXAMPLES, INFRA, Template, read

if TYPE_CHECKING:
    from collections.abc import Mapping

REGION = "us-east-1"
ROOT = {
    "aws_access_key_id": CREDENTIALS["AWS_ACCESS_KEY_ID"],
    "aws_secret_access_key": CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
}
LONGEST = 60.0


class Refused(Exception):
    """The stack did not come up; ``reasons`` by logical id."""

    def __init__(self, reasons: dict[str, str]) -> None:
        super().__init__(json.dumps(reasons))
        self.reasons = reasons


@dataclass(frozen=True)
class Aws:
    """An emulator, its certificate where it speaks TLS, and who asks."""

    endpoint: str
    certificate: str = ""
    keys: Mapping[str, str] = field(default_factory=lambda: ROOT)

    def client(self, service: str) -> Any:
        return _client(self.endpoint, self.certificate, tuple(sorted(self.keys.items())), service)

    def assume(self, role: str, session: str = "tests") -> Aws:
        """The same place, seen by somebody with this role's permissions."""
        arn = self.client("iam").get_role(RoleName=role)["Role"]["Arn"]
        given = self.client("sts").assume_role(RoleArn=arn, RoleSessionName=session)["Credentials"]
        keys = {
            "aws_access_key_id": given["AccessKeyId"],
            "aws_secret_access_key": given["SecretAccessKey"],
            "aws_session_token": given["SessionToken"],
        }
        return Aws(self.endpoint, self.certificate, keys)


@cache
def _client(endpoint: str, certificate: str, keys: tuple[tuple[str, str], ...], service: str) -> Any:
    session: Any = boto3.Session(region_name=REGION, **cast("dict[str, Any]", dict(keys)))
    config = Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 2})
    return session.client(service, endpoint_url=endpoint, verify=certificate or None, config=config)


@dataclass(frozen=True)
class Stack:
    """A stack that came up: the template as deployed, what was made of it, and what it says of itself."""

    aws: Aws
    name: str
    template: Template
    physical: Mapping[str, str]
    outputs: Mapping[str, str]
    seconds: float

    def delete(self) -> None:
        cloudformation = self.aws.client("cloudformation")
        cloudformation.delete_stack(StackName=self.name)
        _settled(cloudformation, self.name)


def deploy(
    aws: Aws,
    name: str,
    parameters: Mapping[str, str] | None = None,
    *,
    file: str = "template.yaml",
    body: dict[str, Any] | None = None,
    look: bool = True,
) -> Stack:
    """Creates the stack from the file as it is, or from ``body`` where one is given. Raises Refused.

    ``look``: whether to ask the services what was made, for comparisons.
    """
    text = json.dumps(body, separators=(",", ":")) if body else (INFRA / file).read_text()
    known = body or read(file)
    parameters = {"ImageUri": EXAMPLES["ImageUri"][0], **(parameters or {})}
    cloudformation = aws.client("cloudformation")
    began = time.monotonic()
    cloudformation.create_stack(
        StackName=name,
        TemplateBody=text,
        Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()],
        Capabilities=["CAPABILITY_IAM"],
    )
    stack = _settled(cloudformation, name)
    seconds = time.monotonic() - began
    if stack["StackStatus"] != "CREATE_COMPLETE":
        events = cloudformation.describe_stack_events(StackName=name)["StackEvents"]
        failed = [event for event in events if event["ResourceStatus"] == "CREATE_FAILED"]
        raise Refused({event["LogicalResourceId"]: event.get("ResourceStatusReason", "") for event in failed})
    resources = cloudformation.describe_stack_resources(StackName=name)["StackResources"]
    # moto lists what it passed over as well, without a name.
    physical = {
        one["LogicalResourceId"]: one["PhysicalResourceId"]
        for one in resources
        if len(one.keys() & {"LogicalResourceId", "PhysicalResourceId"}) == 2
    }
    outputs = {one["OutputKey"]: one["OutputValue"] for one in stack.get("Outputs", [])}
    pseudo = {
        "AWS::StackName": name,
        "AWS::Region": REGION,
        "AWS::Partition": "aws",
        "AWS::URLSuffix": "amazonaws.com",
        "AWS::AccountId": aws.client("sts").get_caller_identity()["Account"],
    }
    template = Template(known, parameters, _made(aws, known, physical) if look else {}, pseudo)
    return Stack(aws, name, template, physical, outputs, seconds)


def _settled(cloudformation: Any, name: str) -> dict[str, Any]:
    deadline = time.monotonic() + LONGEST
    while time.monotonic() < deadline:
        try:
            stack: dict[str, Any] = cloudformation.describe_stacks(StackName=name)["Stacks"][0]
        except cloudformation.exceptions.ClientError:
            return {"StackStatus": "DELETE_COMPLETE"}
        if not stack["StackStatus"].endswith("IN_PROGRESS"):
            return stack
        time.sleep(0.05)
    raise TimeoutError(f"{name} did not settle within {LONGEST} s")


def _made(aws: Aws, body: dict[str, Any], physical: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Of each resource what ``Ref`` and ``GetAtt`` mean, asked from the services themselves."""
    return {
        name: {"Ref": identity, **_attributes(aws, body["Resources"][name]["Type"], identity)}
        for name, identity in physical.items()
        if name in body["Resources"]
    }


def _attributes(aws: Aws, kind: str, identity: str) -> dict[str, str]:  # noqa: PLR0911 - one for each type
    match kind:
        case "AWS::S3::Bucket":
            return {"Arn": f"arn:aws:s3:::{identity}"}
        case "AWS::SQS::Queue":
            asked = aws.client("sqs").get_queue_attributes(QueueUrl=identity, AttributeNames=["QueueArn"])
            arn = asked["Attributes"]["QueueArn"]
            return {"Arn": arn, "QueueName": arn.rpartition(":")[2]}
        case "AWS::IAM::Role":
            return {"Arn": aws.client("iam").get_role(RoleName=identity)["Role"]["Arn"]}
        case "AWS::Lambda::Function":
            return {"Arn": aws.client("lambda").get_function(FunctionName=identity)["Configuration"]["FunctionArn"]}
        case "AWS::Logs::LogGroup":
            (group,) = aws.client("logs").describe_log_groups(logGroupNamePrefix=identity)["logGroups"]
            return {"Arn": group["arn"].removesuffix(":*") + ":*"}
        case "AWS::ApiGateway::RestApi":
            items = aws.client("apigateway").get_resources(restApiId=identity)["items"]
            return {"RootResourceId": next(one["id"] for one in items if one["path"] == "/")}
        case "AWS::Events::Rule":
            return {"Arn": aws.client("events").describe_rule(Name=identity.rpartition("|")[2])["Arn"]}
    return {}
