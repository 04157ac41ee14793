"""What an account lacks: on moto where it has the service, else before a stand-in that answers as AWS documents."""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

import boto3
import pytest

from handler.aws.preflight import ENDPOINTS, MISSING, SPOT, THERE, UNKNOWN, Finding, Wanted, preflight
from handler.cli.local.aws import CREDENTIALS, EmbeddedAws
from handler.settings import Settings

from ..infra.template import read

if TYPE_CHECKING:
    from collections.abc import Iterator

IMAGE = "123456789012.dkr.ecr.us-east-1.amazonaws.com/darkroom:1"
NOTHING = Wanted(concurrency=0)


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    with EmbeddedAws() as aws:
        yield aws.endpoint


ANSWERS: dict[str, Any] = {}
"""Of the stand-in, by operation. EC2 and SNS answer by pages: by the token, which is "" for the first."""


class _StandIn(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        if target := self.headers["X-Amz-Target"]:
            self._answer(target.rpartition(".")[2])
        else:
            self._answer_in_xml(dict(parse_qsl(body)))

    def do_GET(self) -> None:
        self._answer(self.path.strip("/").rpartition("/")[2])

    def _answer(self, operation: str) -> None:
        answer = ANSWERS.get(operation, {"__type": "AccessDeniedException", "message": f"not allowed: {operation}"})
        self._send(400 if "__type" in answer else 200, json.dumps(answer))

    def _answer_in_xml(self, asked: dict[str, str]) -> None:
        """As EC2 and SNS do: whose name does not begin with List is EC2's."""
        operation = asked["Action"]
        if operation in ANSWERS:
            answer = ANSWERS[operation][asked.get("NextToken", "")]
            self._send(200, xml({f"{operation}Response": answer}, "member" if operation.startswith("List") else "item"))
        else:
            error = {"Code": "UnauthorizedOperation", "Message": f"not allowed: {operation}"}
            self._send(403, xml({"Response": {"Errors": {"Error": error}}}))

    def _send(self, status: int, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Silent."""


def xml(value: Any, item: str = "item") -> str:
    match value:
        case dict():
            return "".join(f"<{name}>{xml(one, item)}</{name}>" for name, one in value.items())
        case list():
            return "".join(f"<{item}>{xml(one, item)}</{item}>" for one in value)
    return str(value)


@pytest.fixture
def stand_in() -> Iterator[str]:
    ANSWERS.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _StandIn)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    ANSWERS["GetDownloadUrlForLayer"] = {"downloadUrl": f"{url}/configuration"}
    yield url
    server.shutdown()
    server.server_close()


def found(endpoint: str, wanted: Wanted) -> Finding:
    """What is found of the last thing that is asked for."""
    settings = Settings(aws_region="us-east-1", aws_endpoint_url=endpoint)
    return list(preflight(settings, wanted))[-1]


def every(endpoint: str, wanted: Wanted) -> dict[str, Finding]:
    settings = Settings(aws_region="us-east-1", aws_endpoint_url=endpoint)
    return {finding.what: finding for finding in preflight(settings, wanted)}


def test_who_asks_and_where(moto: str) -> None:
    finding = found(moto, NOTHING)
    assert (finding.what, finding.state) == ("credentials", THERE)
    assert finding.words.startswith("arn:aws:")
    assert finding.words.endswith(" in us-east-1")


@pytest.mark.parametrize(
    ("free", "state", "words"),
    [
        (1000, THERE, "1000 of the account's 1000 are free"),
        (10, THERE, "10 of the account's 10 are free; 6 are left for the doors, which is few: ask for a higher quota"),
        (4, MISSING, "MaxConcurrency=4 leaves none for the doors"),
    ],
)
def test_concurrency(stand_in: str, free: int, state: str, words: str) -> None:
    """GetAccountSettings is a GET of a path that ends so."""
    ANSWERS["account-settings"] = {
        "AccountLimit": {"ConcurrentExecutions": free, "UnreservedConcurrentExecutions": free}
    }
    finding = found(stand_in, Wanted(concurrency=4))
    assert finding.state == state
    assert words in finding.words


@pytest.mark.parametrize(
    ("vcpus", "state", "words"),
    [
        (32.0, THERE, f"32 vCPUs of G and VT instances spot ({SPOT})"),
        (8.0, MISSING, "are 2 of 8 hosts of 4 vCPUs: ask for a higher quota"),
        (0.0, MISSING, "are 0 of 8 hosts"),
    ],
)
def test_gpu_quotas(stand_in: str, vcpus: float, state: str, words: str) -> None:
    ANSWERS["GetServiceQuota"] = {"Quota": {"Value": vcpus}}
    finding = found(stand_in, Wanted(concurrency=0, gpus=8))
    assert finding.state == state
    assert words in finding.words


def manifest(**content: Any) -> dict[str, Any]:
    return {"images": [{"imageManifest": json.dumps(content)}]}


def test_an_image_of_the_other_architecture(stand_in: str) -> None:
    ANSWERS["BatchGetImage"] = manifest(config={"digest": "sha256:1"})
    ANSWERS["configuration"] = {"architecture": "arm64"}
    finding = found(stand_in, Wanted(image=IMAGE, concurrency=0))
    assert (finding.state, finding.words) == (MISSING, "it is for arm64: build it with --platform linux/amd64")
    finding = found(stand_in, Wanted(image=IMAGE, concurrency=0, architecture="arm64"))
    assert (finding.state, finding.words) == (THERE, "it is for arm64")


def test_an_image_that_lambda_would_not_take(stand_in: str) -> None:
    ANSWERS["BatchGetImage"] = manifest(manifests=[])
    assert "--provenance=false" in found(stand_in, Wanted(image=IMAGE, concurrency=0)).words
    ANSWERS["BatchGetImage"] = {"images": []}
    assert found(stand_in, Wanted(image=IMAGE, concurrency=0)).words == "there is no image 1 in darkroom"
    elsewhere = IMAGE.replace("us-east-1", "eu-central-1")
    assert "it lies in eu-central-1" in found(stand_in, Wanted(image=elsewhere, concurrency=0)).words
    finding = found(stand_in, Wanted(image="docker.io/library/darkroom:1", concurrency=0))
    assert (finding.state, "images of ECR alone" in finding.words) == (MISSING, True)


def test_a_repository_that_is_not_there(moto: str) -> None:
    finding = found(moto, Wanted(image=IMAGE, concurrency=0))
    assert (finding.state, finding.words) == (MISSING, "there is no repository darkroom")


def test_what_may_not_be_asked_is_named(stand_in: str) -> None:
    finding = found(stand_in, Wanted(concurrency=0, gpus=1))
    assert finding.state == UNKNOWN
    assert finding.words == "GetServiceQuota was refused: AccessDeniedException: not allowed: GetServiceQuota"


def test_subnets_need_a_way_out_that_a_task_can_take(moto: str) -> None:
    ec2 = boto3.client("ec2", endpoint_url=moto, region_name="us-east-1")
    vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    subnets = [ec2.create_subnet(VpcId=vpc, CidrBlock=f"10.0.{at}.0/24")["Subnet"]["SubnetId"] for at in range(2)]
    gateway = ec2.create_internet_gateway()["InternetGateway"]["InternetGatewayId"]
    ec2.attach_internet_gateway(InternetGatewayId=gateway, VpcId=vpc)
    (main,) = ec2.describe_route_tables(Filters=[{"Name": "vpc-id", "Values": [vpc]}])["RouteTables"]
    ec2.create_route(RouteTableId=main["RouteTableId"], DestinationCidrBlock="0.0.0.0/0", GatewayId=gateway)
    wanted = Wanted(concurrency=0, subnets=tuple(subnets))
    finding = found(moto, wanted)
    assert finding.state == MISSING
    assert all(subnet in finding.words for subnet in subnets), "an internet gateway serves no task without an address"
    nat = ec2.create_nat_gateway(SubnetId=subnets[0], ConnectivityType="private")["NatGateway"]["NatGatewayId"]
    own = ec2.create_route_table(VpcId=vpc)["RouteTable"]["RouteTableId"]
    ec2.create_route(RouteTableId=own, DestinationCidrBlock="0.0.0.0/0", NatGatewayId=nat)
    ec2.associate_route_table(RouteTableId=own, SubnetId=subnets[1])
    finding = found(moto, wanted)
    assert (subnets[0] in finding.words, subnets[1] in finding.words) == (True, False)
    assert found(moto, Wanted(concurrency=0, subnets=(subnets[1],))).state == THERE
    assert found(moto, Wanted(concurrency=0, subnets=("subnet-00000000",))).state == UNKNOWN


def routes(*default: dict[str, str], main: bool = False, of: str = "subnet-1") -> dict[str, Any]:
    """A route table with the way to its own VPC and these as default routes."""
    local = {"destinationCidrBlock": "10.0.0.0/16", "gatewayId": "local", "state": "active"}
    ways = [{"destinationCidrBlock": "0.0.0.0/0", "state": "active"} | one for one in default]
    return {"associationSet": [{"main": "true"} if main else {"subnetId": of}], "routeSet": [local, *ways]}


def subnet(name: str = "subnet-1", vpc: str = "vpc-1", zone: str = "us-east-1a") -> dict[str, str]:
    return {"subnetId": name, "vpcId": vpc, "availabilityZone": zone}


def answer_with(subnets: list[dict[str, str]], *tables: dict[str, Any]) -> Wanted:
    """A page for each table. The deployment that asks for these subnets."""
    ANSWERS["DescribeSubnets"] = {"": {"subnetSet": subnets}}
    ANSWERS["DescribeRouteTables"] = {
        str(at or ""): {"routeTableSet": [table]} | ({"nextToken": at + 1} if at + 1 < len(tables) else {})
        for at, table in enumerate(tables)
    }
    return Wanted(concurrency=0, subnets=tuple(one["subnetId"] for one in subnets))


@pytest.mark.parametrize(
    ("way", "state", "words"),
    [
        ({"natGatewayId": "nat-1"}, THERE, "a NAT gateway is their way out"),
        ({"transitGatewayId": "tgw-1"}, THERE, "their way out is tgw-1; whether it leads on to AWS is not told here"),
        ({"gatewayId": "vpce-1"}, THERE, "their way out is vpce-1; whether"),
        ({"gatewayId": "vgw-1"}, THERE, "their way out is vgw-1; whether"),
        ({"instanceId": "i-1", "networkInterfaceId": "eni-1"}, THERE, "their way out is i-1; whether"),
        (
            {"natGatewayId": "nat-1", "state": "blackhole"},
            MISSING,
            "subnet-1 (what its default route leads to is gone)",
        ),
        ({"gatewayId": "vpce-1", "state": "blackhole"}, MISSING, "leads to is gone"),
        ({"vpcPeeringConnectionId": "pcx-1"}, MISSING, "peering, which ends in the other VPC"),
        ({"gatewayId": "igw-1"}, MISSING, "an internet gateway, and tasks have no public address"),
        ({"carrierGatewayId": "cagw-1"}, MISSING, "none that a task is known to take"),
        (None, MISSING, "no default route"),
    ],
)
def test_what_counts_as_a_way_out(stand_in: str, way: dict[str, str] | None, state: str, words: str) -> None:
    """In moto no route is ever a blackhole, nor may it lead to a firewall."""
    finding = found(stand_in, answer_with([subnet()], routes(*([way] if way else []))))
    assert (finding.what, finding.state) == ("subnets", state)
    assert words in finding.words


def test_only_a_default_route_leads_out(stand_in: str) -> None:
    """S3's gateway endpoint is in the table with a list of addresses as its destination."""
    table = routes()
    table["routeSet"].append({"destinationPrefixListId": "pl-1", "gatewayId": "vpce-1", "state": "active"})
    table["routeSet"].append({"destinationCidrBlock": "10.1.0.0/16", "transitGatewayId": "tgw-1", "state": "active"})
    assert found(stand_in, answer_with([subnet()], table)).state == MISSING


def test_a_route_table_on_a_later_page(stand_in: str) -> None:
    public, private = {"gatewayId": "igw-1"}, {"natGatewayId": "nat-1"}
    wanted = answer_with([subnet()], routes(public, main=True), routes(public, of="subnet-2"), routes(private))
    assert found(stand_in, wanted).state == THERE
    wanted = answer_with([subnet()], routes(public, of="subnet-2"), routes(private, main=True))
    assert found(stand_in, wanted).state == THERE, "without a table of its own the VPC's main one is a subnet's"
    wanted = answer_with([subnet()], routes(), routes(private, main=True))
    assert found(stand_in, wanted).state == MISSING, "with one of its own the main one says nothing"


def test_subnets_of_two_networks(stand_in: str) -> None:
    finding = found(stand_in, answer_with([subnet(), subnet("subnet-2", "vpc-2")]))
    assert (finding.state, finding.words.partition(":")[0]) == (MISSING, "they lie in vpc-1 and vpc-2")


def for_endpoints(moto: str, zones: str = "ab") -> tuple[Any, str, Wanted]:
    """EC2, a new VPC, and the deployment that makes endpoints in it."""
    ec2 = boto3.client("ec2", endpoint_url=moto, region_name="us-east-1")
    vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    subnets = [
        ec2.create_subnet(VpcId=vpc, CidrBlock=f"10.0.{at}.0/24", AvailabilityZone=f"us-east-1{zone}")
        for at, zone in enumerate(zones)
    ]
    named = tuple(one["Subnet"]["SubnetId"] for one in subnets)
    return ec2, vpc, Wanted(concurrency=0, subnets=named, endpoints=True)


def test_endpoints_in_place_of_a_way_out(moto: str) -> None:
    ec2, vpc, wanted = for_endpoints(moto)
    finding = every(moto, wanted)["private names"]
    assert finding.state == MISSING, "as in every VPC but the default one"
    command = f"aws ec2 modify-vpc-attribute --vpc-id {vpc} --enable-dns-hostnames"
    assert finding.words == f"enableDnsHostnames is off: {command}"
    ec2.modify_vpc_attribute(VpcId=vpc, EnableDnsHostnames={"Value": True})
    findings = every(moto, wanted)
    assert findings.keys() == {"credentials", "subnets", "private names", "endpoints"}
    assert {finding.state for finding in findings.values()} == {THERE}
    ec2.modify_vpc_attribute(VpcId=vpc, EnableDnsSupport={"Value": False})
    assert "enableDnsSupport is off" in every(moto, wanted)["private names"].words


def test_two_subnets_of_a_zone_take_no_endpoint(moto: str) -> None:
    _, _, wanted = for_endpoints(moto, "aab")
    finding = every(moto, wanted)["subnets"]
    assert finding.state == MISSING
    assert finding.words.startswith(f"{wanted.subnets[0]} and {wanted.subnets[1]} in us-east-1a, and")
    assert wanted.subnets[2] not in finding.words
    without = Wanted(concurrency=0, subnets=wanted.subnets)
    assert "us-east-1a" not in found(moto, without).words, "workers themselves may lie side by side"


def test_endpoints_that_the_network_has_already(moto: str) -> None:
    ec2, vpc, wanted = for_endpoints(moto)

    def make(service: str, private: bool = True, kind: str = "Interface") -> str:
        made = ec2.create_vpc_endpoint(
            VpcId=vpc,
            ServiceName=f"com.amazonaws.us-east-1.{service}",
            VpcEndpointType=kind,
            PrivateDnsEnabled=private,
            SubnetIds=list(wanted.subnets[:1]),
        )
        return str(made["VpcEndpoint"]["VpcEndpointId"])

    make("s3", private=False, kind="Gateway")
    make("logs", private=False)
    make("bedrock")
    assert every(moto, wanted)["endpoints"].state == THERE, "none that stands in a name's way"
    queues, images = make("sqs"), make("ecr.dkr")
    finding = every(moto, wanted)["endpoints"]
    assert finding.state == MISSING
    assert f"sqs ({queues}), ecr.dkr ({images})" in finding.words
    assert "deploy with WithSqs=false WithEcrDocker=false, unless they are this stack's own" in finding.words
    assert every(moto, for_endpoints(moto)[2])["endpoints"].state == THERE, "another VPC's endpoints are its own"


def test_an_endpoint_that_is_gone_is_none(stand_in: str) -> None:
    wanted = answer_with([subnet()])
    one = {"vpcEndpointId": "vpce-1", "serviceName": "com.amazonaws.us-east-1.kms", "privateDnsEnabled": "true"}

    def state(of_endpoint: str) -> str:
        ANSWERS["DescribeVpcEndpoints"] = {"": {"vpcEndpointSet": [one | {"state": of_endpoint}]}}
        return found(stand_in, Wanted(concurrency=0, subnets=wanted.subnets, endpoints=True)).state

    assert (state("available"), state("pending")) == (MISSING, MISSING)
    assert (state("Deleted"), state("failed")) == (THERE, THERE)


def test_what_of_a_network_may_not_be_asked_is_named(stand_in: str) -> None:
    answer_with([subnet()])
    del ANSWERS["DescribeRouteTables"]
    findings = every(stand_in, Wanted(concurrency=0, subnets=("subnet-1",), endpoints=True))
    asked = {"subnets": "RouteTables", "private names": "VpcAttribute", "endpoints": "VpcEndpoints"}
    for what, call in asked.items():
        refused = f"Describe{call} was refused: UnauthorizedOperation: not allowed: Describe{call}"
        assert (findings[what].state, findings[what].words) == (UNKNOWN, refused)


def test_the_services_are_those_of_the_template() -> None:
    body = read("gpu.yaml")
    made = [one for one in body["Resources"].values() if one["Type"] == "AWS::EC2::VPCEndpoint"]
    named = {
        one["Properties"]["ServiceName"]["Fn::Sub"].partition("${AWS::Region}.")[2]: re.findall(
            r"With\w+", json.dumps(body["Conditions"][one["Condition"]])
        )
        for one in made
        if one["Properties"].get("PrivateDnsEnabled")
    }
    assert named == {service: [parameter] for service, parameter in ENDPOINTS.items()}
    assert set(ENDPOINTS.values()) <= body["Parameters"].keys()


def test_an_alarm_address_that_is_not_confirmed(stand_in: str, moto: str) -> None:
    sns = boto3.client("sns", endpoint_url=moto, region_name="us-east-1")
    topic = sns.create_topic(Name="alarms")["TopicArn"]
    finding = found(moto, Wanted(concurrency=0, topic=topic))
    assert (finding.state, finding.words) == (MISSING, "nobody has subscribed to the topic")
    sns.subscribe(TopicArn=topic, Protocol="email", Endpoint="you@example.com")
    assert found(moto, Wanted(concurrency=0, topic=topic)).state == THERE, "moto confirms at once"


def subscriptions(arns: list[str], token: str = "") -> dict[str, Any]:
    members = [{"Endpoint": f"{at}@example.com", "SubscriptionArn": arn} for at, arn in enumerate(arns)]
    return {"ListSubscriptionsByTopicResult": {"Subscriptions": members} | ({"NextToken": token} if token else {})}


CONFIRMED = "arn:aws:sns:us-east-1:123456789012:alarms:1"


@pytest.mark.parametrize(
    ("arns", "state", "words"),
    [
        ([CONFIRMED], THERE, "1 confirmed"),
        ([CONFIRMED, "Deleted"], THERE, "1 confirmed"),
        (["Deleted"], MISSING, "nobody has subscribed to the topic"),
        (["PendingConfirmation", "Deleted"], MISSING, "0@example.com has not confirmed: open the link in AWS's mail"),
        ([CONFIRMED, "PendingConfirmation"], MISSING, "1@example.com has not confirmed: open the link in AWS's mail"),
    ],
)
def test_who_has_an_arn_has_confirmed(stand_in: str, arns: list[str], state: str, words: str) -> None:
    """moto confirms at once, and forgets whoever leaves."""
    ANSWERS["ListSubscriptionsByTopic"] = {"": subscriptions(arns)}
    finding = found(stand_in, Wanted(concurrency=0, topic=CONFIRMED[:-2]))
    assert (finding.state, finding.words) == (state, words)


def test_a_subscription_on_a_later_page(stand_in: str) -> None:
    ANSWERS["ListSubscriptionsByTopic"] = {"": subscriptions(["Deleted"], "2"), "2": subscriptions([CONFIRMED])}
    assert found(stand_in, Wanted(concurrency=0, topic=CONFIRMED[:-2])).words == "1 confirmed"
