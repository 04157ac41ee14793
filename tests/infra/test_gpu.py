"""GPU workers on ECS and Kubernetes: in step with the template whose queue they serve, and deployed where it goes."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from handler.aws import interruptions
from handler.settings import Settings, variables

from .policies import Grant, grants
from .readback import READERS, same
from .scaling import COLD_START, MINUTE, rules
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
}
"""Types that MiniStack does not know; an alarm over metric math goes with them."""
NOT_READ = {
    "AWS::EC2::SecurityGroup",
    "AWS::EC2::VPCEndpoint",
    "AWS::ECS::Cluster",
    "AWS::ECS::Service",
    "AWS::IAM::InstanceProfile",
}
"""Made by MiniStack, but only linted, not compared."""

PULL = "ecr:BatchGetImage"


def worker_grants(**parameters: str) -> set[Grant]:
    extras = {"ModelInS3", "KmsKeyArn", "EventBus"}
    given = {name: one[-1] for name, one in EXAMPLES.items() if name not in extras} | parameters
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


EVERYWHERE = {"BUCKET", "QUEUE_URL"}
"""Each host's own, by their nature."""
IN_THE_IMAGE = {"ALIVE_FILE", "MODEL_ID", "MODEL_REVISION"}
"""Set by the Dockerfile, and by a template only where another model than the image's own is wanted."""
ON_WORKERS_ALONE = {
    "DEVICE": "Lambda has processors only",
    "WORKER_HOST": "on Lambda it is Lambda",
    "SHUTDOWN_GRACE": "Lambda says itself how long an invocation has",
    "SPOT_NOTICES": "Lambda runs on no spot instance of ours",
    "STOP_FILE": "Lambda stops no worker",
    "COMPILED_SHA256": "nothing is compiled on Lambda",
    "AWS_REGION": "Lambda sets it",
    "AWS_XRAY_DAEMON_ADDRESS": "Lambda sets it",
}
OTHERWISE = {"CHECKPOINT_EVERY": "a spot host goes with two minutes' notice or with none; an invocation knows its end"}
NOT_FOR_WORKERS = {
    **dict.fromkeys(["DEAD_LETTER_URL"], "a function of its own takes dead letters"),
    **dict.fromkeys(
        ["TENANTS", "TENANT_TASKS", "DAILY_IMAGES", "DAILY_DOLLARS", "IMAGE_DOLLARS"], "judged at the door"
    ),
    **dict.fromkeys(
        ["URL_LIFETIME", "INLINE_IMAGES", "PUBLIC_ENDPOINT_URL", "CORS_ORIGINS", "OPENAI_WAIT"], "of answers over HTTP"
    ),
    "STUCK_AFTER": "the doctor's",
    "MODEL_CONFIG": "a baked or fetched folder holds it beside the single file",
    **dict.fromkeys(["COMPILE", "GRAPHS", "ATTENTION"], "auto is measured on the device that is there"),
    "CACHE_DIR": "/tmp is the one place that can be written to",
    **dict.fromkeys(["DARKROOM_ENDPOINT", "DARKROOM_API_KEY"], "for callers"),
    "AWS_PROFILE": "workers have roles",
    **dict.fromkeys(["ECS_AGENT_URI", "ECS_CONTAINER_METADATA_URI_V4"], "ECS sets it"),
    **dict.fromkeys(["AWS_LAMBDA_RUNTIME_API", "AWS_LAMBDA_FUNCTION_MEMORY_SIZE"], "Lambda sets it"),
    "AWS_EC2_METADATA_SERVICE_ENDPOINT": "EC2's own address is the default",
    **{
        spec.name.upper(): "the real AWS, over IPv4"
        for spec in variables()
        if spec.name.startswith(("aws_endpoint_url", "aws_ignore_", "aws_use_"))
    },
}
"""Settings that no host's worker is given, and why."""


def kubernetes(marks: str = "#xray ") -> dict[str, Any]:
    """keda.yaml's documents by kind, its marked lines taken in."""
    text = (INFRA / "keda.yaml").read_text().replace(marks, "")
    return {one["kind"]: one for one in yaml.safe_load_all(text)}


def told_on_each_host() -> dict[str, dict[str, str]]:
    """Of each host's worker the variables, with all defaults and with everything that can be switched on."""
    chosen = {"ImageUri": EXAMPLES["ImageUri"][0], "ModelId": "/opt/model", "ModelRevision": "main"}
    function = Template(read("template.yaml"), chosen).resources()["Generate"]["Properties"]["Environment"]
    pod = kubernetes()["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    ecs = containers(**chosen, ModelInS3="", Tracing="Active", TracingImage=DAEMON, **DEFAULTS)[0]
    return {
        "lambda": {name: str(value) for name, value in function["Variables"].items()},
        "ecs": {one["Name"]: str(one["Value"]) for one in ecs["Environment"]},
        "kubernetes": {one["name"]: one["value"] for one in pod["env"]},
    }


DAEMON = BODY["Parameters"]["TracingImage"]["Default"]
DEFAULTS = {
    name: str(one["Default"])
    for name, one in BODY["Parameters"].items()
    if "Default" in one and name not in {"ModelId", "ModelRevision", "ModelInS3", "Tracing", "TracingImage"}
}


def test_every_host_is_told_the_same() -> None:
    told = told_on_each_host()
    assert told["ecs"].keys() - told["kubernetes"].keys() == {"MODEL_ID", "MODEL_REVISION"} <= IN_THE_IMAGE
    assert told["kubernetes"].keys() - told["ecs"].keys() == set()
    assert told["ecs"].keys() - told["lambda"].keys() == ON_WORKERS_ALONE.keys()
    assert told["lambda"].keys() - told["ecs"].keys() == set()
    for name in told["ecs"].keys() - EVERYWHERE - IN_THE_IMAGE - {"AWS_REGION"}:
        assert told["kubernetes"][name] == told["ecs"][name], name
        if name in told["lambda"]:
            assert (told["lambda"][name] == told["ecs"][name]) is (name not in OTHERWISE), name
    known = {spec.name.upper() for spec in variables()}
    assert known - told["ecs"].keys() - {"ALIVE_FILE"} == NOT_FOR_WORKERS.keys()
    assert "ALIVE_FILE=" in (INFRA.parent / "Dockerfile").read_text()
    Settings.load(told["ecs"])


def test_what_both_templates_ask_is_asked_alike() -> None:
    """Else an update of one would leave the other behind its limits."""
    ours, theirs = BODY["Parameters"], read("template.yaml")["Parameters"]
    for name in ours.keys() & theirs.keys() - {"ImageUri", "KmsKeyArn", "MaxBatch"}:
        # What each host begins with otherwise: OTHERWISE, and a daemon of its own for traces.
        own = {"Default"} if name in {"CheckpointEvery", "Tracing"} else set()
        passed = {"Description", "ConstraintDescription"} | own
        kept = [{key: one for key, one in each.items() if key not in passed} for each in (ours[name], theirs[name])]
        assert kept[0] == kept[1], name


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


def test_hosts_are_bought_by_what_the_worker_needs() -> None:
    resources = Template(BODY, given()).resources()
    managed = resources["SpotCapacity"]["Properties"]["ManagedInstancesProvider"]
    launch = managed["InstanceLaunchTemplate"]
    needs = launch["InstanceRequirements"]
    assert needs["AcceleratorManufacturers"] == ["nvidia"]
    assert set(needs["AcceleratorNames"]) == {"a10g", "l4", "l40s", "t4"}
    (gpu,) = containers()[0]["ResourceRequirements"]
    assert {str(one) for one in needs["AcceleratorCount"].values()} == {gpu["Value"]} == {"1"}
    # Less what ECS and the system keep for themselves.
    assert needs["MemoryMiB"]["Min"] * 0.9 > sum(one["MemoryReservation"] for one in containers(Tracing="Active"))
    assert resources["Task"]["Properties"]["RequiresCompatibilities"] == ["MANAGED_INSTANCES"]
    assert "DockerVolumeConfiguration" not in resources["Task"]["Properties"]["Volumes"][0]
    assert (managed["InfrastructureRoleArn"], launch["Ec2InstanceProfileArn"]) == ("<BuyRole.Arn>", "<HostProfile.Arn>")
    assert not [one for one in resources.values() if one["Type"].startswith("AWS::AutoScaling::")]


@pytest.mark.parametrize(
    ("bought", "provider", "notices"), [("SPOT", "SpotCapacity", "1"), ("ON_DEMAND", "OnDemandCapacity", "0")]
)
def test_hosts_are_bought_in_one_way_or_the_other(bought: str, provider: str, notices: str) -> None:
    """How cannot be changed of a provider that is there, so each way has one of its own; else they are the same."""
    there = Template(BODY, given(Purchase=bought)).resources()
    assert {name for name, one in there.items() if one["Type"] == "AWS::ECS::CapacityProvider"} == {provider}
    assert there["Workers"]["Properties"]["CapacityProviderStrategy"] == [
        {"CapacityProvider": f"<{provider}>", "Weight": 1}
    ]
    launch = there[provider]["Properties"]["ManagedInstancesProvider"]["InstanceLaunchTemplate"]
    assert launch["CapacityOptionType"] == bought
    assert environment(Purchase=bought)["SPOT_NOTICES"] == notices
    # Its own bound, or EC2's would leave g4dn alone ("Default: 20" percent over the cheapest); one for each way.
    bounds = {name: one for name, one in launch["InstanceRequirements"].items() if "MaxPrice" in name}
    assert list(bounds.values()) == [300]
    assert ("Spot" in next(iter(bounds))) is (bought == "SPOT")
    other = Template(BODY, given()).resources()["SpotCapacity"]["Properties"]
    same = (
        {**launch["InstanceRequirements"]},
        {**other["ManagedInstancesProvider"]["InstanceLaunchTemplate"]["InstanceRequirements"]},
    )
    for one in same:
        one.pop(next(name for name in one if "MaxPrice" in name))
    assert same[0] == same[1]


def test_nothing_associates_the_provider_with_its_cluster_but_its_name() -> None:
    """PutClusterCapacityProviders: "Amazon ECS Managed Instances doesn't support this" (hashicorp's provider, issue
    44783; aws-cdk 35699).
    """
    kinds = {one["Type"] for one in BODY["Resources"].values()}
    assert "AWS::ECS::ClusterCapacityProviderAssociations" not in kinds
    for name in ("SpotCapacity", "OnDemandCapacity"):
        assert BODY["Resources"][name]["Properties"]["ClusterName"] == {"Ref": "Cluster"}


def test_quotes_name_hosts_that_have_a_price() -> None:
    prices = json.loads((INFRA.parent / "handler/api/prices.json").read_text())["hosts"]
    assert set(BODY["Parameters"]["PricedAs"]["AllowedValues"]) == set(prices)


LEAST_DRIVER = {"cu126": 560, "cu128": 570, "cu129": 575, "cu130": 580}
"""By the CUDA that torch is built for, the branch of NVIDIA's driver that can compile what it brings: the one that the
toolkit came with. Source: NVIDIA, "CUDA Toolkit Release Notes", table 3 "CUDA Toolkit and Corresponding Driver
Versions"; within 12.x an older one from 525 on runs, without what it would have to compile ("CUDA Compatibility", minor
version compatibility). 13.x has no older one than 580."""


def test_the_documents_name_the_driver_that_the_image_needs() -> None:
    """Amazon Linux 2's GPU image has 550: workers built for cu130 ended at once there."""
    dockerfile = (INFRA.parent / "Dockerfile").read_text()
    (built,) = re.findall(r"^ARG TORCH_INDEX=\S+/(cu\d+)$", dockerfile, re.MULTILINE)
    readme = (INFRA / "README.md").read_text()
    assert re.findall(r"`(cu\d+)` needs NVIDIA's driver (\d+)", readme) == [(built, str(LEAST_DRIVER[built]))]
    # What the lock resolves for GPUs is of the same CUDA.
    locked = (INFRA / "locked.txt").read_text()
    (toolkit,) = re.findall(r"^cuda-toolkit==(\d+)\.(\d+)", locked, re.MULTILINE)
    assert "cu" + "".join(toolkit) == built


def given(**parameters: str) -> dict[str, str]:
    return {name: one[-1] for name, one in EXAMPLES.items()} | parameters


PARTITIONS = {
    "aws": ("us-east-1", "amazonaws.com"),
    "aws-cn": ("cn-north-1", "amazonaws.com.cn"),
    "aws-us-gov": ("us-gov-west-1", "amazonaws.com"),
}


@pytest.mark.parametrize("partition", PARTITIONS)
def test_names_are_of_the_partition(partition: str) -> None:
    region, suffix = PARTITIONS[partition]
    registry = f"123456789012.dkr.ecr.{region}.{suffix}"
    pseudo = {
        "AWS::StackName": "darkroom-gpu",
        "AWS::Region": region,
        "AWS::AccountId": "123456789012",
        "AWS::Partition": partition,
        "AWS::URLSuffix": suffix,
    }
    chosen = given(
        ImageUri=f"{registry}/team/darkroom:1-gpu",
        TracingImage=f"{registry}/xray@sha256:{'0' * 64}",
        Tracing="Active",
        KmsKeyArn=f"arn:{partition}:kms:{region}:123456789012:key/1234abcd",
    )
    for name in ("ImageUri", "TracingImage", "KmsKeyArn"):
        assert re.fullmatch(BODY["Parameters"][name]["AllowedPattern"], chosen[name]), name
    template = Template(BODY, chosen, pseudo=pseudo)
    text = json.dumps(template.resources())
    assert set(re.findall(r"arn:(aws[a-z-]*):", text)) == {partition}
    # Services' own names are the same everywhere, but for EC2's.
    # By which a key is used has a star for either suffix: test_partitions.
    hosts = set(re.findall(r"[a-z0-9.-]+\.amazonaws\.com(?:\.cn)?(?![*.])", text))
    assert {one for one in hosts if region not in one} == {
        "ecs.amazonaws.com",
        "ecs-tasks.amazonaws.com",
        f"ec2.{suffix}",
    }
    assert {one for one in hosts if not one.endswith(f"{region}.{suffix}")} == {
        one for one in hosts if region not in one
    }
    pulled = {one.resource for one in grants(template) if one.action == PULL}
    assert pulled == {
        f"arn:{partition}:ecr:{region}:123456789012:repository/{name}" for name in ("team/darkroom", "xray")
    }


def test_names_are_short_enough_whatever_the_stack_is_called() -> None:
    (most,) = re.findall(r"\{0,(\d+)\}", BODY["Parameters"]["Stack"]["AllowedPattern"])
    longest = "s" * (1 + int(most))
    resources = Template(BODY, given(Stack=longest)).resources().values()
    named = {"ClusterName", "ServiceName", "Family", "AlarmName", "PolicyName", "RoleName"}
    names = [str(one["Properties"][name]) for one in resources for name in named & one["Properties"].keys()]
    assert len(names) >= 7
    assert [one for one in names if len(one) > 64 and not one.startswith("<")] == []
    # What the stack of template.yaml makes is named after it as well.
    theirs = json.dumps(read("template.yaml")["Resources"])
    ends = set(re.findall(r'"(?:FunctionName|QueueName)": \{"Fn::Sub": "\$\{AWS::StackName\}([^"]*)"', theirs))
    assert ends
    assert all(len(longest + end) <= 64 for end in ends)


ROOM = 4096
"""Bytes of what CloudFormation takes in one request that are left to what is to come."""


def test_it_leaves_room() -> None:
    assert len((INFRA / "gpu.yaml").read_bytes()) <= 51_200 - ROOM


def test_no_worker_to_begin_with_and_none_taken_away_later() -> None:
    """CloudFormation sends DesiredCount with every update of the service, if the template has it."""
    first = Template(BODY, given()).resources()["Workers"]["Properties"]
    later = Template(BODY, given(FirstDeployment="false")).resources()["Workers"]["Properties"]
    assert first["DesiredCount"] == 0
    assert "DesiredCount" not in later
    assert first["DeploymentConfiguration"]["DeploymentCircuitBreaker"] == {"Enable": True, "Rollback": True}
    # The documents say it at the first update; the command line keeps it from then on.
    lines = (INFRA / "README.md").read_text().splitlines()
    commands = [line for line in lines if "--stack-name darkroom-gpu --template-file" in line]
    assert ["FirstDeployment=false" in one for one in commands] == [False, True]


def test_a_spot_host_has_time_for_what_a_worker_does_at_its_end() -> None:
    """Two minutes from the notice: seen, answered, checkpoints written, and ECS's own end after it."""
    grace = float(environment()["SHUTDOWN_GRACE"])
    assert containers()[0]["StopTimeout"] >= grace + 5
    seen = interruptions.LOOK_EVERY + 2 * interruptions.TIMEOUT
    assert seen + grace + 5 <= 120
    assert 0 < float(environment(**DEFAULTS)["CHECKPOINT_EVERY"]) <= 120
    writable = {one["ContainerPath"] for one in containers()[0]["MountPoints"] if not one["ReadOnly"]}
    assert environment()["STOP_FILE"].rpartition("/")[0] in writable


def test_commands_run_in_workers_only_where_that_is_asked_for() -> None:
    def service(**parameters: str) -> dict[str, Any]:
        properties: dict[str, Any] = Template(BODY, given(**parameters)).resources()["Workers"]["Properties"]
        return properties

    assert BODY["Parameters"]["Exec"]["Default"] == "false"
    assert service()["EnableExecuteCommand"] is False
    assert service(Exec="true")["EnableExecuteCommand"] is True
    channels = {f"ssmmessages:{verb}{kind}Channel" for verb in ("Create", "Open") for kind in ("Control", "Data")}
    assert {one.action for one in worker_grants(Exec="true") - worker_grants()} == channels
    assert worker_grants() - worker_grants(Exec="true") == set()
    # What ECS Exec puts into the container writes to its root, and wants its processes to be reaped.
    (without,), (worker,) = containers(), containers(Exec="true")
    assert (without["ReadonlyRootFilesystem"], worker["ReadonlyRootFilesystem"]) == (True, False)
    assert worker["LinuxParameters"]["InitProcessEnabled"] is True


SERVICES = {
    "Sqs": "sqs",
    "EcrApi": "ecr.api",
    "EcrDocker": "ecr.dkr",
    "Logs": "logs",
    "Ecs": "ecs",
    "EcsAgent": "ecs-agent",
    "EcsTelemetry": "ecs-telemetry",
    "Kms": "kms",
    "Events": "events",
    "XRay": "xray",
    "SsmMessages": "ssmmessages",
}
"""Interface endpoints of a worker with a key, a bus, traces and ECS Exec, by the parameters that can leave them out."""


def endpoints(**parameters: str) -> dict[str, dict[str, Any]]:
    """The VPC endpoints that are made, by their services' names."""
    chosen = given(Tracing="Active", Exec="true") | parameters
    made = Template(BODY, chosen, pseudo={"AWS::Region": "us-east-1"}).resources().values()
    found = [one["Properties"] for one in made if one["Type"] == "AWS::EC2::VPCEndpoint"]
    return {one["ServiceName"].removeprefix("com.amazonaws.us-east-1."): one for one in found}


def test_no_endpoint_but_those_that_are_asked_for() -> None:
    assert endpoints() == {}
    assert endpoints(S3Gateway="there") == {}
    (alone,) = endpoints(S3Gateway="true", RouteTableIds="rtb-1,rtb-2").values()
    assert (alone["VpcEndpointType"], alone["RouteTableIds"]) == ("Gateway", ["rtb-1", "rtb-2"])
    assert endpoints(Endpoints="true", S3Gateway="there").keys() == set(SERVICES.values())
    assert endpoints(Endpoints="true", S3Gateway="true").keys() == {*SERVICES.values(), "s3"}
    without = endpoints(Endpoints="true", Tracing="PassThrough", KmsKeyArn="", EventBus="", Exec="false")
    assert without.keys() == set(SERVICES.values()) - {"kms", "events", "xray", "ssmmessages"}
    assert "EndpointGroup" not in Template(BODY, given(S3Gateway="true")).resources()


@pytest.mark.parametrize("name", SERVICES)
def test_each_endpoint_can_be_left_out_and_the_others_stay(name: str) -> None:
    """A second one of a service, with private DNS, is refused in the same VPC."""
    assert endpoints(Endpoints="true", **{f"With{name}": "false"}).keys() == set(SERVICES.values()) - {SERVICES[name]}
    assert SERVICES[name] in BODY["Parameters"][f"With{name}"]["Description"].split()


def test_endpoints_let_in_the_whole_vpc_and_nobody_else() -> None:
    """Private DNS leads all that runs there to them."""
    made = Template(BODY, given(Endpoints="true", VpcCidr="10.7.0.0/20")).resources()
    (rule,) = made["EndpointGroup"]["Properties"]["SecurityGroupIngress"]
    assert {name: one for name, one in rule.items() if name != "Description"} == {
        "IpProtocol": "tcp",
        "FromPort": 443,
        "ToPort": 443,
        "CidrIp": "10.7.0.0/20",
    }
    for one in endpoints(Endpoints="true").values():
        assert one["PrivateDnsEnabled"] is True
        assert one["SecurityGroupIds"] == ["<EndpointGroup>"]
    pattern = BODY["Parameters"]["VpcCidr"]["AllowedPattern"]
    assert not [one for one in ("0.0.0.0/0", "10.0.0.0/8", "10.0.0.0") if re.fullmatch(pattern, one)]


@pytest.mark.parametrize(
    ("parameters", "refused"),
    [
        ({}, set()),
        ({"Endpoints": "true", "VpcCidr": "", "S3Gateway": "there"}, {"VpcCidr is needed"}),
        ({"Endpoints": "true", "S3Gateway": "false"}, {"Without a way out S3 needs"}),
        ({"Endpoints": "true", "S3Gateway": "there", "RouteTableIds": ""}, set()),
        ({"S3Gateway": "true", "RouteTableIds": ""}, {"RouteTableIds is needed"}),
        ({"Endpoints": "true", "S3Gateway": "true"}, set()),
    ],
)
def test_what_would_reach_nothing_is_refused_before_anything_is_made(
    parameters: dict[str, str], refused: set[str]
) -> None:
    template = Template(BODY, given() | parameters)
    words = [
        one["AssertDescription"]
        for rule in BODY["Rules"].values()
        if template.tests(rule["RuleCondition"])
        for one in rule["Assertions"]
        if not template.tests(one["Assert"])
    ]
    assert len(words) == len(refused)
    assert all(any(word.startswith(start) for word in words) for start in refused)


def test_the_tags_that_hold_the_endpoints_are_short_enough() -> None:
    """An id has 22 characters, and a tag's value 256 at most (ECS API reference, Tag)."""
    ids = {name: {"Ref": "vpce-0123456789abcdef0"} for name in BODY["Resources"] if name.endswith("Endpoint")}
    chosen = given(Endpoints="true", S3Gateway="true", Tracing="Active", Exec="true")
    tags = Template(BODY, chosen, ids).resources()["Workers"]["Properties"]["Tags"]
    assert sum(tag["Value"].count("vpce-") for tag in tags) == len(ids)
    assert all(len(tag["Value"]) <= 256 for tag in tags)


def test_the_documents_ask_before_anything_costs_money() -> None:
    lines = (INFRA / "README.md").read_text().splitlines()
    first, second = [number for number, line in enumerate(lines) if line.startswith("darkroom preflight")]
    assert "--concurrency" in lines[first]
    assert {"--gpus", "--subnets"} <= set(lines[second].split())
    for asked, file in ((first, "template.yaml"), (second, "gpu.yaml")):
        deployed = [number for number, line in enumerate(lines) if f"--template-file infra/{file}" in line]
        assert asked < min(deployed)


def needs(name: str, resources: dict[str, Any]) -> set[str]:
    """All that is deleted only after it: what it names, what it waits for, and what those do."""
    found: set[str] = set()
    left = [name]
    while left:
        resource = resources[left.pop()]
        text = json.dumps({key: one for key, one in resource.items() if key != "DependsOn"})
        named = set(re.findall(r'"Ref": "(\w+)"', text)) | set(re.findall(r'"Fn::GetAtt": \["(\w+)"', text))
        named |= {one.split(".")[0] for one in re.findall(r"\$\{(\w+(?:\.\w+)?)\}", text)}
        new = (named | set(resource.get("DependsOn", []))) & resources.keys() - found
        found |= new
        left += new
    return found


def test_workers_are_deleted_before_what_they_need_to_end() -> None:
    resources = BODY["Resources"]
    kinds = {"AWS::EC2::VPCEndpoint", "AWS::IAM::Policy", "AWS::IAM::Role", "AWS::IAM::InstanceProfile"}
    kinds |= {"AWS::ECS::CapacityProvider", "AWS::ECS::Cluster", "AWS::Logs::LogGroup"}
    wanted = {name for name, one in resources.items() if one["Type"] in kinds}
    assert len(wanted) > 15
    assert wanted - needs("Workers", resources) == set()
    # And hosts before the roles by which they are given back.
    for capacity in ("SpotCapacity", "OnDemandCapacity"):
        assert {"BuyRole", "HostRole", "HostProfile", "WorkerGroup", "Cluster"} <= needs(capacity, resources)
    # No group of instances of ours whose protection would keep the stack.
    assert "ProtectedFromScaleIn" not in (INFRA / "gpu.yaml").read_text()


def test_the_documents_tear_down_in_the_order_of_imports() -> None:
    """A stack whose exports are imported cannot be deleted (CloudFormation guide, Fn::ImportValue)."""
    lines = (INFRA / "README.md").read_text().splitlines()
    at = {one: lines.index(f"aws cloudformation {one}") for one in TEAR_DOWN}
    assert list(at.values()) == sorted(at.values())


TEAR_DOWN = (
    "delete-stack --stack-name darkroom-gpu",
    "wait stack-delete-complete --stack-name darkroom-gpu",
    "delete-stack --stack-name darkroom",
)


@pytest.fixture(scope="module")
def workers(mini: Aws, stack: Stack) -> Stack:
    math = {name for name, one in BODY["Resources"].items() if "Metrics" in one["Properties"]}
    assert math == {"WorthAlarm", "NothingAlarm"}
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
        "VpcCidr": "10.0.0.0/16",
        "S3Gateway": "true",
        "RouteTableIds": "rtb-1",
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
    kinds = kubernetes("no marks")
    pod = kinds["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    (ours,) = containers()
    told = {one["name"]: one["value"] for one in container["env"]}
    assert told.keys() <= {spec.name.upper() for spec in variables()}
    assert pod["terminationGracePeriodSeconds"] == ours["StopTimeout"] >= float(told["SHUTDOWN_GRACE"]) + 10
    assert container["resources"]["requests"]["memory"] == f"{ours['MemoryReservation'] // 1024}Gi"
    taints = {one["key"] for one in pod["tolerations"]}
    assert taints == {"nvidia.com/gpu", "eks.amazonaws.com/capacityType", "karpenter.sh/capacity-type"}
    # ECS and Kubernetes look at no HEALTHCHECK of an image: both are given its command.
    (healthcheck,) = re.findall(
        r"^HEALTHCHECK .*CMD (\[.*\])$", (INFRA.parent / "Dockerfile").read_text(), re.MULTILINE
    )
    for probe in ("startupProbe", "livenessProbe"):
        assert container[probe]["exec"]["command"] == json.loads(healthcheck)
    start = container["startupProbe"]
    assert start["periodSeconds"] * start["failureThreshold"] > COLD_START
    assert ours["HealthCheck"]["Command"] == ["CMD", *json.loads(healthcheck)]
    text = (INFRA / "keda.yaml").read_text()
    assert set(re.findall(r"\$\{(\w+)\}", text)) == {"BUCKET", "QUEUE_URL", "AWS_REGION", "IMAGE", "ROLE_ARN"}
    assert told["METRICS"] == "1"  # which are lines of the log: see below


def test_kubernetes_ships_the_workers_log() -> None:
    """From every node that a worker may be on, each line as an event of its own, or no metric is found in it."""
    kinds = kubernetes("no marks")
    worker, ships = (kinds[kind]["spec"]["template"]["spec"] for kind in ("Deployment", "DaemonSet"))
    assert ships["tolerations"] == worker["tolerations"]
    assert ships["serviceAccountName"] == worker["serviceAccountName"]
    (container,) = ships["containers"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    nodes = next(one for one in container["volumeMounts"] if one["name"] == "nodes")
    assert nodes["readOnly"] is True
    text = kinds["ConfigMap"]["data"]["fluent-bit.conf"]
    told = dict(line.split(maxsplit=1) for line in text.splitlines() if line.startswith("    ") and line.split()[1:])
    pods, namespace = kinds["Deployment"]["metadata"]["name"], kinds["Deployment"]["metadata"]["namespace"]
    # POD_NAMESPACE_CONTAINER-ID.log, as the kubelet names them.
    assert told["Path"] == f"/var/log/containers/{pods}-*_{namespace}_{worker['containers'][0]['name']}-*.log"
    assert told["Path"].startswith(nodes["mountPath"])
    assert (told["log_key"], told["log_format"]) == ("log", "json/emf")
    assert told["DB"].startswith("/state/")
    assert f"log group {told['log_group_name']}," in (INFRA / "keda.yaml").read_text()


def test_kubernetes_scales_by_the_same_rule() -> None:
    """Its autoscaler takes the least of its window to go up and the most of it to go down, as our policies do."""
    kinds = kubernetes("no marks")
    scaled = kinds["ScaledObject"]["spec"]
    ours = rules(Template(BODY, {"ImageUri": EXAMPLES["ImageUri"][0]}))
    up, down = sorted(ours.every, key=lambda one: one.wants(0.0) == 0)
    (trigger,) = scaled["triggers"]
    assert trigger["metadata"]["queueLength"] == str(ours.target)
    assert trigger["metadata"]["scaleOnInFlight"] == "true"
    assert (scaled["minReplicaCount"], scaled["maxReplicaCount"]) == (ours.least, ours.most)
    behavior = scaled["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert behavior["scaleUp"]["stabilizationWindowSeconds"] == up.periods * MINUTE
    assert behavior["scaleDown"]["stabilizationWindowSeconds"] == up.cooldown
    assert scaled["cooldownPeriod"] == down.periods * MINUTE
    assert "replicas" not in kinds["Deployment"]["spec"]
