"""What an account lacks for a deployment, asked before anything is made or costs money: calls that read, and no others.

Quota codes: AWS Service Quotas, L-DB2E81BA "Running On-Demand G and VT instances" and L-3819A6DF "All G and VT Spot
Instance Requests", both in vCPUs. Lambda's concurrency: ``GetAccountSettings``.
"""

from __future__ import annotations

import json
import re
import urllib.request
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..settings import Settings

MISSING, UNKNOWN, THERE = "missing", "unknown", "there"
ON_DEMAND, SPOT = "L-DB2E81BA", "L-3819A6DF"
SMALLEST_GPU = 4
"""vCPUs of the smallest instances with one GPU: g4dn.xlarge, g5.xlarge, g6.xlarge."""
ENOUGH = 10
"""Concurrency that the doors need beside the drawing function."""
LAMBDA_ARCHITECTURES = {"x86_64": "amd64", "arm64": "arm64"}
IMAGE = re.compile(
    r"(?P<account>\d{12})\.dkr\.ecr\.(?P<region>[\w-]+)\.amazonaws\.com[\w.]*/"
    r"(?P<repository>[\w./-]+?)(?::(?P<tag>[\w.-]+)|@(?P<digest>sha256:[\da-f]{64}))"
)
TIMEOUT = 10


@dataclass(frozen=True)
class Wanted:
    """What a deployment is to be made of. Empty: it has none of it, and nothing is asked.

    ``concurrency``: of the drawing function (``MaxConcurrency``); ``gpus``: hosts at most (``MaxWorkers``).
    """

    image: str = ""
    architecture: str = "x86_64"
    concurrency: int = 4
    gpus: int = 0
    spot: bool = True
    subnets: tuple[str, ...] = ()
    endpoints: bool = False
    topic: str = ""


@dataclass(frozen=True)
class Finding:
    """``state``: MISSING, UNKNOWN (it could not be asked, ``words`` say why) or THERE."""

    what: str
    state: str
    words: str


class Lacks(Exception):
    """What is missing, in words."""


def preflight(settings: Settings, wanted: Wanted) -> Iterator[Finding]:
    """Each thing that the deployment needs, and whether it is there."""
    session = boto3.Session(region_name=settings.aws_region or None)

    def client(service: str) -> Any:
        return session.client(service, endpoint_url=settings.aws_endpoint_url or None)  # type: ignore[call-overload]

    yield _found("credentials", "sts", client, _caller, wanted)
    if wanted.concurrency:
        yield _found("Lambda concurrency", "lambda", client, _concurrency, wanted)
    if wanted.image:
        yield _found("image", "ecr", client, _image, wanted)
    if wanted.gpus:
        yield _found("GPU quota", "service-quotas", client, _quota, wanted)
    if wanted.subnets:
        yield _found("subnets", "ec2", client, _routes, wanted)
    if wanted.topic:
        yield _found("alarm address", "sns", client, _confirmed, wanted)


def _found(
    what: str, service: str, client: Callable[[str], Any], check: Callable[[Any, Wanted], str], wanted: Wanted
) -> Finding:
    try:
        return Finding(what, THERE, check(client(service), wanted))
    except Lacks as lack:
        return Finding(what, MISSING, str(lack))
    except ClientError as fault:
        error = fault.response.get("Error", {})
        reason = f"{error.get('Code')}: {error.get('Message')}"
        return Finding(what, UNKNOWN, f"{fault.operation_name} was refused: {reason}")
    except (BotoCoreError, OSError, LookupError, ValueError) as fault:
        return Finding(what, UNKNOWN, f"it could not be asked: {fault}")


def _caller(sts: Any, _: Wanted) -> str:
    return f"{sts.get_caller_identity()['Arn']} in {sts.meta.region_name}"


def _concurrency(functions: Any, wanted: Wanted) -> str:
    limits = functions.get_account_settings()["AccountLimit"]
    free = int(limits.get("UnreservedConcurrentExecutions", limits["ConcurrentExecutions"]))
    words = f"{free} of the account's {limits['ConcurrentExecutions']} are free"
    if free <= wanted.concurrency:
        asked = f"MaxConcurrency={wanted.concurrency}"
        raise Lacks(f"{words}, and {asked} leaves none for the doors: ask for a higher quota, or draw fewer at a time")
    left = free - wanted.concurrency
    return words if left >= ENOUGH else f"{words}; {left} are left for the doors, which is few: ask for a higher quota"


def _image(registry: Any, wanted: Wanted) -> str:
    named = IMAGE.fullmatch(wanted.image)
    if named is None:
        raise Lacks(f"{wanted.image}: Lambda takes images of ECR alone, ACCOUNT.dkr.ecr.REGION.amazonaws.com/NAME:TAG")
    if named["region"] != registry.meta.region_name:
        raise Lacks(f"it lies in {named['region']}, and Lambda takes one of {registry.meta.region_name} alone")
    place = {"registryId": named["account"], "repositoryName": named["repository"]}
    manifest = _manifest_of(registry, place, named["tag"], named["digest"])
    if "manifests" in manifest:
        raise Lacks("it is an image index, which Lambda does not take: build it with --provenance=false")
    is_for = _architecture_of(registry, place, manifest["config"]["digest"])
    needed = LAMBDA_ARCHITECTURES[wanted.architecture]
    if is_for != needed:
        raise Lacks(f"it is for {is_for}: build it with --platform linux/{needed}")
    return f"it is for {is_for}"


def _manifest_of(registry: Any, place: dict[str, str], tag: str | None, digest: str | None) -> dict[str, Any]:
    try:
        answer = registry.batch_get_image(**place, imageIds=[{"imageDigest": digest} if digest else {"imageTag": tag}])
    except registry.exceptions.RepositoryNotFoundException as fault:
        raise Lacks(f"there is no repository {place['repositoryName']}") from fault
    if not answer["images"]:
        raise Lacks(f"there is no image {digest or tag} in {place['repositoryName']}")
    return dict(json.loads(answer["images"][0]["imageManifest"]))


def _architecture_of(registry: Any, place: dict[str, str], digest: str) -> str:
    """Out of the image's configuration (OCI image specification), which lies where a layer does."""
    url = registry.get_download_url_for_layer(**place, layerDigest=digest)["downloadUrl"]
    with urllib.request.urlopen(url, timeout=TIMEOUT) as reply:  # noqa: S310 (AWS's own answer)
        return str(json.load(reply)["architecture"])


def _quota(quotas: Any, wanted: Wanted) -> str:
    code, name = (SPOT, "spot") if wanted.spot else (ON_DEMAND, "on demand")
    vcpus = float(quotas.get_service_quota(ServiceCode="ec2", QuotaCode=code)["Quota"]["Value"])
    words = f"{vcpus:g} vCPUs of G and VT instances {name} ({code})"
    hosts = int(vcpus // SMALLEST_GPU)
    if hosts < wanted.gpus:
        raise Lacks(f"{words} are {hosts} of {wanted.gpus} hosts of {SMALLEST_GPU} vCPUs: ask for a higher quota")
    return words


def _routes(network: Any, wanted: Wanted) -> str:
    """A task of ECS in a subnet whose way out is an internet gateway has no public address, and hears nothing."""
    found = network.describe_subnets(SubnetIds=list(wanted.subnets))["Subnets"]
    vpc = {"Name": "vpc-id", "Values": [found[0]["VpcId"]]}
    tables = network.describe_route_tables(Filters=[vpc])["RouteTables"]
    cut_off = [one["SubnetId"] for one in found if not _leads_out(one["SubnetId"], tables)]
    if not cut_off:
        return "a NAT gateway or the like is their way out"
    if wanted.endpoints:
        return "workers reach AWS by endpoints"
    names = ", ".join(cut_off)
    raise Lacks(f"{names}: no NAT gateway is their way out, so workers reach nothing; or deploy with Endpoints=true")


def _leads_out(subnet: str, tables: list[dict[str, Any]]) -> bool:
    def serves(table: dict[str, Any], key: str, value: object) -> bool:
        return any(one.get(key) == value for one in table["Associations"])

    own = [table for table in tables if serves(table, "SubnetId", subnet)]
    main = [table for table in tables if serves(table, "Main", True)]
    routes = [route for table in own or main for route in table["Routes"]]
    through = ("NatGatewayId", "TransitGatewayId", "InstanceId", "NetworkInterfaceId", "VpcPeeringConnectionId")
    return any(
        route.get("DestinationCidrBlock") == "0.0.0.0/0" and any(route.get(name) for name in through)
        for route in routes
    )


def _confirmed(topics: Any, wanted: Wanted) -> str:
    found = topics.list_subscriptions_by_topic(TopicArn=wanted.topic)["Subscriptions"]
    waiting = [one["Endpoint"] for one in found if one["SubscriptionArn"] == "PendingConfirmation"]
    if waiting:
        raise Lacks(f"{', '.join(waiting)} has not confirmed: open the link in AWS's mail")
    if not found:
        raise Lacks("nobody has subscribed to the topic")
    return f"{len(found)} confirmed"
