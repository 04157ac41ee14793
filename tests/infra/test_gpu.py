"""GPU workers on ECS and Kubernetes: in step with the template whose queue they serve, and deployed where it goes."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from handler.settings import Settings, variables

from .policies import Grant, grants
from .readback import READERS, same
from .stacks import deploy
from .template import EXAMPLES, INFRA, Template, read

if TYPE_CHECKING:
    from .stacks import Aws, Stack

pytestmark = pytest.mark.infra

BODY = read("gpu.yaml")
REFUSED = {
    "AWS::ApplicationAutoScaling::ScalableTarget",
    "AWS::ApplicationAutoScaling::ScalingPolicy",
    "AWS::ECS::CapacityProvider",
    "AWS::ECS::ClusterCapacityProviderAssociations",
}
"""Types that MiniStack does not know; an alarm over metric math goes with them."""
NOT_READ = {
    "AWS::AutoScaling::AutoScalingGroup",
    "AWS::EC2::LaunchTemplate",
    "AWS::EC2::SecurityGroup",
    "AWS::EC2::VPCEndpoint",
    "AWS::ECS::Cluster",
    "AWS::ECS::Service",
    "AWS::IAM::InstanceProfile",
}
"""Made by MiniStack, but only linted, not compared."""

PULL = "ecr:BatchGetImage"


def worker_grants(**parameters: str) -> set[Grant]:
    given = {name: one[-1] for name, one in EXAMPLES.items() if name not in {"ModelInS3", "KmsKeyArn"}} | parameters
    return {one for one in grants(Template(BODY, given)) if one.role == "WorkerRole"}


def plain(grant: Grant) -> tuple[str, str]:
    """Without the names of what another stack made, which are spelled otherwise in each file."""
    resource = re.sub(r"^(arn:<AWS::Partition>:s3:::)?<(import .*-)?Bucket(.Arn)?>", "BUCKET", grant.resource)
    return grant.action, re.sub(r"^<(import .*-QueueArn|Queue.Arn)>", "QUEUE", resource)


def test_a_worker_may_do_what_the_drawing_function_may() -> None:
    function = {one for one in grants(Template(read("template.yaml"))) if one.role == "GenerateRole"}
    by_lambda = ("logs:", "xray:", "sqs:GetQueueAttributes")
    expected = {plain(one) for one in function if not one.action.startswith(by_lambda)}
    protection = {one for one in worker_grants() if one.action == "ecs:UpdateTaskProtection"}
    assert len(protection) == 1
    assert {plain(one) for one in worker_grants() - protection} == expected


def containers(**parameters: str) -> list[dict[str, Any]]:
    given = {name: one[-1] for name, one in EXAMPLES.items()} | parameters
    defined: list[dict[str, Any]] = Template(BODY, given).resources()["Task"]["Properties"]["ContainerDefinitions"]
    return defined


def environment(**parameters: str) -> dict[str, str]:
    return {one["Name"]: str(one["Value"]) for one in containers(**parameters)[0]["Environment"]}


def test_what_a_worker_is_told_are_settings() -> None:
    told = environment()
    assert told.keys() <= {spec.name.upper() for spec in variables()}
    assert told["MODEL_ID"] == "s3://models/sd/turbo"
    assert "MODEL_ID" not in environment(ModelInS3="", ModelId="")
    for edge in ("MinValue", "MaxValue"):
        limits = {name: str(one[edge]) for name, one in BODY["Parameters"].items() if edge in one}
        Settings.load(environment(**limits))


def test_traces_need_a_daemon_and_its_permissions() -> None:
    """Beside the worker, which is told where it listens; all of it only where traces are wanted."""
    public = BODY["Parameters"]["TracingImage"]["Default"]
    without, traced = worker_grants(), worker_grants(Tracing="Active")
    assert {one.action for one in traced - without} == {"xray:PutTraceSegments", "xray:PutTelemetryRecords"}
    assert "AWS_XRAY_DAEMON_ADDRESS" not in environment()
    worker, daemon = containers(Tracing="Active", TracingImage=public)
    told = {one["Name"]: one["Value"] for one in worker["Environment"]}
    assert told["AWS_XRAY_DAEMON_ADDRESS"] == "127.0.0.1:2000"
    assert (daemon["Image"], daemon["Essential"], worker["Essential"]) == (public, False, True)
    # What the two reserve fits the smallest of the instances, as the worker alone did: 16 GiB less what ECS keeps.
    assert worker["MemoryReservation"] + daemon["MemoryReservation"] < 14 * 1024


@pytest.mark.parametrize("tag", [":3.x", f"@sha256:{'0' * 64}"])
def test_a_copy_of_the_daemon_may_be_pulled_and_no_other_image(tag: str) -> None:
    def pulled(image: str) -> set[str]:
        given = {name: one[-1] for name, one in EXAMPLES.items()} | {"Tracing": "Active", "TracingImage": image}
        return {one.resource.rpartition(":")[2] for one in grants(Template(BODY, given)) if one.action == PULL}

    assert pulled(BODY["Parameters"]["TracingImage"]["Default"]) == {"repository/darkroom"}
    copy = f"123456789012.dkr.ecr.us-east-1.amazonaws.com/copies/xray{tag}"
    assert pulled(copy) == {"repository/darkroom", "repository/copies/xray"}


def test_kubernetes_has_the_daemon_behind_marks() -> None:
    """With the marks taken away it is the daemon of ECS."""
    marked = (INFRA / "keda.yaml").read_text().replace("#xray ", "")
    pod = next(one for one in yaml.safe_load_all(marked) if one["kind"] == "Deployment")["spec"]["template"]["spec"]
    worker, daemon = pod["containers"]
    ours = containers(Tracing="Active", TracingImage=BODY["Parameters"]["TracingImage"]["Default"])[1]
    assert {"name": "AWS_XRAY_DAEMON_ADDRESS", "value": "127.0.0.1:2000"} in worker["env"]
    assert (daemon["name"], daemon["image"], daemon["args"]) == (ours["Name"], ours["Image"], ours["Command"])
    assert daemon["resources"]["limits"]["memory"] == f"{ours['Memory']}Mi"


def test_the_names_are_the_other_stacks() -> None:
    text = (INFRA / "gpu.yaml").read_text()
    exported = {
        one["Export"]["Name"]["Fn::Sub"] for one in read("template.yaml")["Outputs"].values() if "Export" in one
    }
    imported = set(re.findall(r'ImportValue \{"Fn::Sub": "\$\{Stack\}(.+?)"\}', text))
    assert imported <= {name.removeprefix("${AWS::StackName}") for name in exported}
    assert read("template.yaml")["Resources"]["Queue"]["Properties"]["QueueName"] == {
        "Fn::Sub": "${AWS::StackName}-tasks"
    }
    # The dashboard looks for the workers' cluster by name.
    assert BODY["Resources"]["Cluster"]["Properties"]["ClusterName"] == {"Fn::Sub": "${Stack}-gpu"}
    assert "${Stack}-gpu" in (INFRA / "alarms.yaml").read_text()


def test_spot_shares_add_up() -> None:
    for share in BODY["Parameters"]["SpotShare"]["AllowedValues"]:
        hosts = Template(BODY, {"SpotShare": share, "ImageUri": EXAMPLES["ImageUri"][0]}).resources()["Hosts"][
            "Properties"
        ]["MixedInstancesPolicy"]
        assert hosts["InstancesDistribution"]["OnDemandPercentageAboveBaseCapacity"] + int(share) == 100


@pytest.fixture(scope="module")
def workers(mini: Aws, stack: Stack) -> Stack:
    mini.client("ssm").put_parameter(Name="/tests/ami", Value="ami-0123456789abcdef0", Type="String")
    math = {name for name, one in BODY["Resources"].items() if "Metrics" in one["Properties"]}
    assert math == {"FirstAlarm"}
    kept = {
        name: {key: value for key, value in one.items() if key != "DependsOn"}
        for name, one in BODY["Resources"].items()
        if one["Type"] not in REFUSED and name not in math
    }
    service = kept["Workers"]["Properties"]
    kept["Workers"]["Properties"] = {name: one for name, one in service.items() if name != "CapacityProviderStrategy"}
    parameters = {
        "Stack": stack.name,
        "VpcId": "vpc-1",
        "SubnetIds": "subnet-1,subnet-2",
        "Endpoints": "true",
        "RouteTableIds": "rtb-1",
        "Ami": "/tests/ami",
        "KmsKeyArn": EXAMPLES["KmsKeyArn"][0],
    }
    return deploy(mini, "gpu", parameters, body={**BODY, "Resources": kept})


def test_ministack_makes_workers(workers: Stack, stack: Stack) -> None:
    resources = workers.template.resources()
    types = {one["Type"] for one in resources.values()}
    assert types - READERS.keys() - {"AWS::ECS::TaskDefinition"} == NOT_READ
    assert workers.physical.keys() == resources.keys()
    arn = workers.physical["Task"]
    task = workers.aws.client("ecs").describe_task_definition(taskDefinition=arn)["taskDefinition"]
    (container,) = task["containerDefinitions"]
    told = {one["name"]: one["value"] for one in container["environment"]}
    assert (told["BUCKET"], told["QUEUE_URL"]) == (stack.outputs["Bucket"], stack.outputs["QueueUrl"])
    assert container["stopTimeout"] == 120 >= float(told["SHUTDOWN_GRACE"]) + 5
    assert container["readonlyRootFilesystem"] is True
    log = resources["Log"]["Properties"]
    assert same(log, READERS["AWS::Logs::LogGroup"](workers.aws, workers.physical["Log"], log))
    policy = workers.aws.client("iam").get_role_policy(RoleName=workers.physical["WorkerRole"], PolicyName="worker")
    places = [place for one in policy["PolicyDocument"]["Statement"] for place in _list(one["Resource"])]
    assert f"arn:aws:s3:::{stack.outputs['Bucket']}/tasks/*" in places
    assert stack.outputs["QueueArn"] in places


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def test_kubernetes_runs_the_same_worker() -> None:
    documents = list(yaml.safe_load_all((INFRA / "keda.yaml").read_text()))
    kinds = {one["kind"]: one for one in documents}
    pod = kinds["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    (ours,) = containers()
    assert {one["name"] for one in container["env"]} <= {spec.name.upper() for spec in variables()}
    assert pod["terminationGracePeriodSeconds"] == ours["StopTimeout"]
    assert container["resources"]["requests"]["memory"] == f"{ours['MemoryReservation'] // 1024}Gi"
    assert "replicas" not in kinds["Deployment"]["spec"]
    (trigger,) = kinds["ScaledObject"]["spec"]["triggers"]
    assert trigger["metadata"]["queueLength"] == str(BODY["Parameters"]["BacklogPerWorker"]["Default"])
    assert kinds["ScaledObject"]["spec"]["maxReplicaCount"] == BODY["Parameters"]["MaxWorkers"]["Default"]
    assert kinds["ScaledObject"]["spec"]["minReplicaCount"] == BODY["Parameters"]["MinWorkers"]["Default"]
    # ECS and Kubernetes look at no HEALTHCHECK of an image: both are given its command.
    (healthcheck,) = re.findall(
        r"^HEALTHCHECK .*CMD (\[.*\])$", (INFRA.parent / "Dockerfile").read_text(), re.MULTILINE
    )
    assert container["livenessProbe"]["exec"]["command"] == json.loads(healthcheck)
    assert ours["HealthCheck"]["Command"] == ["CMD", *json.loads(healthcheck)]
    asked = set(re.findall(r"\$\{(\w+)\}", (INFRA / "keda.yaml").read_text()))
    assert asked == {"BUCKET", "QUEUE_URL", "AWS_REGION", "IMAGE", "ROLE_ARN"}
