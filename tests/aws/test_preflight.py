"""What an account lacks: on moto where it has the service, else before a stand-in that answers as AWS documents."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import boto3
import pytest

from handler.aws.preflight import MISSING, SPOT, THERE, UNKNOWN, Finding, Wanted, preflight
from handler.cli.local.aws import CREDENTIALS, EmbeddedAws
from handler.settings import Settings

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
"""Of the stand-in, by operation."""


class _StandIn(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(self.headers["X-Amz-Target"].rpartition(".")[2])

    def do_GET(self) -> None:
        self._answer(self.path.strip("/").rpartition("/")[2])

    def _answer(self, operation: str) -> None:
        answer = ANSWERS.get(operation, {"__type": "AccessDeniedException", "message": f"not allowed: {operation}"})
        body = json.dumps(answer).encode()
        self.send_response(400 if "__type" in answer else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Silent."""


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
    assert found(moto, Wanted(concurrency=0, subnets=tuple(subnets), endpoints=True)).state == THERE
    assert found(moto, Wanted(concurrency=0, subnets=("subnet-00000000",))).state == UNKNOWN


def test_an_alarm_address_that_is_not_confirmed(stand_in: str, moto: str) -> None:
    sns = boto3.client("sns", endpoint_url=moto, region_name="us-east-1")
    topic = sns.create_topic(Name="alarms")["TopicArn"]
    finding = found(moto, Wanted(concurrency=0, topic=topic))
    assert (finding.state, finding.words) == (MISSING, "nobody has subscribed to the topic")
    sns.subscribe(TopicArn=topic, Protocol="email", Endpoint="you@example.com")
    assert found(moto, Wanted(concurrency=0, topic=topic)).state == THERE, "moto confirms at once"
