"""What a deployment costs a month with nothing to do: its resources, one by one, at the prices of two files."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from handler.api.pricing import prices

from .template import EXAMPLES, INFRA, Template, read

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

HOURS = 730
"""Of a month."""
POLLS_AT_ONCE, POLL_SECONDS = 5, 20
"""How Lambda asks an empty queue: five long polls at a time, "as few as 2" where traffic is low and no concurrency is
set (its guide, "Configuring scaling behavior for SQS event source mappings"). Somebody counted 15 empty answers in a
minute (getlift/lift, issue 132), which is five polls of 20 seconds.
"""
ROUND_REQUESTS = {"s3_put": 2, "s3_get": 2, "sqs_request": 1}
"""Of the doctor, with no task open: a listing and a PUT, a GET and a HEAD, the queue's counts. A test counts them."""
CALL_SECONDS = 1.0
"""Of the doctor's round and a weekly call with nothing to do, start included. Assumed: a round takes 0.1 s here, and a
start about 0.5 s."""
CALL_LOG_BYTES = 2000
"""Of such a call, Lambda's own lines included. Assumed."""
IMAGE_GB = 6.0
"""Of the workers' image as a host pulls it. Assumed: torch for CUDA makes it 4 to 8; no such image was built here."""
ALL_THREE = (
    "CpuUtilized",
    "CpuReserved",
    "MemoryUtilized",
    "MemoryReserved",
    "NetworkRxBytes",
    "NetworkTxBytes",
    "StorageReadBytes",
    "StorageWriteBytes",
)
OF_A_SERVICE = ("DeploymentCount", "DesiredTaskCount", "PendingTaskCount", "RunningTaskCount", "TaskSetCount")
OF_A_CLUSTER = ("ContainerInstanceCount", "ServiceCount", "TaskCount")
OF_HOSTS = ("InstanceOSFilesystemUtilization", "InstanceDataFilesystemUtilization")
INSIGHTS = 3 * len(ALL_THREE) + len(OF_A_SERVICE) + len(OF_A_CLUSTER) + 2 * len(OF_HOSTS)
"""Metrics of Container Insights for one cluster with one service of one task family: the first by all three, the last
by cluster and by capacity provider (CloudWatch's guide, "Amazon ECS Container Insights metrics", and ECS's, "Additional
metrics for Amazon ECS Managed Instances"). Each is a custom metric, and there only while a worker runs."""
IDLE_PARTS = ("alarms", "polls", "doctor", "weekly calls", "dashboard")
GPU_ZONE = "subnet-0123456789abcdef0"
"""One subnet: what is paid for in each zone is summed for one."""
FREE = {
    "AWS::ApplicationAutoScaling::ScalableTarget",
    "AWS::ApplicationAutoScaling::ScalingPolicy",
    "AWS::ApiGateway::ApiKey",
    "AWS::ApiGateway::Deployment",
    "AWS::ApiGateway::GatewayResponse",
    "AWS::ApiGateway::Method",
    "AWS::ApiGateway::Resource",
    "AWS::ApiGateway::RestApi",
    "AWS::ApiGateway::Stage",
    "AWS::ApiGateway::UsagePlan",
    "AWS::ApiGateway::UsagePlanKey",
    "AWS::EC2::SecurityGroup",
    "AWS::Events::ApiDestination",
    "AWS::Events::Connection",
    "AWS::Events::EventBus",
    "AWS::ECS::CapacityProvider",
    "AWS::ECS::Cluster",
    "AWS::ECS::Service",
    "AWS::ECS::TaskDefinition",
    "AWS::IAM::InstanceProfile",
    "AWS::IAM::ManagedPolicy",
    "AWS::IAM::Policy",
    "AWS::IAM::Role",
    "AWS::Lambda::Function",
    "AWS::Lambda::Permission",
    "AWS::Logs::LogGroup",
    "AWS::S3::Bucket",
    "AWS::S3::BucketPolicy",
    "AWS::SNS::Topic",
    "AWS::SQS::Queue",
    "AWS::SQS::QueuePolicy",
}
"""Cost nothing by being there: API calls, objects, messages, log lines and mails are paid for one by one, and hosts by
the hour for which scaling wants one."""


def table() -> dict[str, Any]:
    """Both files together."""
    own: dict[str, Any] = json.loads((INFRA / "prices.json").read_text())
    return prices() | own


def idle(**parameters: str) -> dict[str, float]:
    """Dollars a month, by part, of a stack of functions and its alarms. Raises ValueError for what has no price yet."""
    return _of(("template.yaml", "alarms.yaml"), parameters)


def idle_workers(**parameters: str) -> dict[str, float]:
    """The same of a stack of workers in one zone, which has none while there is nothing to draw."""
    return _of(("gpu.yaml",), {"SubnetIds": GPU_ZONE, **parameters})


def idle_events(**parameters: str) -> dict[str, float]:
    """The same of a bus, which tells of nothing while there is nothing to draw; its secret is part of a call's price
    (EventBridge's guide, on connections).
    """
    return _of(("events.yaml",), parameters)


def _of(files: tuple[str, ...], parameters: Mapping[str, str]) -> dict[str, float]:
    costs: dict[str, float] = {}
    given = {"ImageUri": EXAMPLES["ImageUri"][0], **parameters}
    for file in files:
        body = read(file)
        there = Template(body, {name: one for name, one in given.items() if name in body["Parameters"]}).resources()
        for name, one in there.items():
            for part, dollars in _priced(name, one["Type"], one.get("Properties", {}), there, table()):
                costs[part] = costs.get(part, 0.0) + dollars
    return costs


def _priced(
    name: str, kind: str, properties: Mapping[str, Any], there: Mapping[str, Any], price: Mapping[str, Any]
) -> Iterator[tuple[str, float]]:
    if kind == "AWS::CloudWatch::Alarm":
        yield "alarms", alarm_metrics(properties) * price["alarm_metric_month"]
    elif kind == "AWS::EC2::VPCEndpoint":
        # A gateway's costs nothing; another one's is paid for in each zone.
        if properties["VpcEndpointType"] != "Gateway":
            yield "endpoints", len(properties["SubnetIds"].split(",")) * HOURS * price["endpoint_hour"]
    elif kind == "AWS::CloudWatch::Dashboard":
        yield "dashboard", price["dashboard_month"]
    elif kind == "AWS::Lambda::EventSourceMapping":
        if properties.get("Enabled", True):
            yield "polls", POLLS_AT_ONCE * 3600 / POLL_SECONDS * HOURS * price["sqs_request"]
    elif kind == "AWS::Events::Rule" and "ScheduleExpression" in properties:
        yield from _called(properties, there, price)
    elif kind not in FREE and kind != "AWS::Events::Rule":
        raise ValueError(f"what does {name}, {kind}, cost?")


def _called(rule: Mapping[str, Any], there: Mapping[str, Any], price: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for target in rule["Targets"]:
        function = there[target["Arn"].strip("<>").partition(".")[0]]["Properties"]
        gb_second = price["lambda_gb_second"][function["Architectures"][0]]
        call = int(function["MemorySize"]) / 1024 * CALL_SECONDS * gb_second + price["lambda_request"]
        call += CALL_LOG_BYTES / 1e9 * price["log_gb"]
        doctor = target["Id"] == "doctor"
        if doctor:
            call += sum(count * price[request] for request, count in ROUND_REQUESTS.items())
        yield "doctor" if doctor else "weekly calls", calls_a_month(rule["ScheduleExpression"]) * call


def alarm_metrics(alarm: Mapping[str, Any]) -> int:
    """An alarm over metric math costs as much as its metrics do one by one."""
    return sum("MetricStat" in one for one in alarm["Metrics"]) if "Metrics" in alarm else 1


def calls_a_month(schedule: str) -> float:
    found = re.fullmatch(r"rate\((\d+) (minute|hour|day)s?\)", schedule)
    if not found:
        raise ValueError(f"how often is {schedule}?")
    return HOURS / (int(found[1]) * {"minute": 1 / 60, "hour": 1, "day": 24}[found[2]])
