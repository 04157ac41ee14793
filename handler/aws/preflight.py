"""What an account lacks for a deployment, asked before anything is made or costs money: calls that read, and no others.

Quota codes: AWS Service Quotas, L-DB2E81BA "Running On-Demand G and VT instances" and L-3819A6DF "All G and VT Spot
Instance Requests", both in vCPUs. Lambda's concurrency: ``GetAccountSettings``. Routes' targets and states: Amazon EC2
API reference, Route.
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
ENDPOINTS = {
    "sqs": "WithSqs",
    "ecr.api": "WithEcrApi",
    "ecr.dkr": "WithEcrDocker",
    "logs": "WithLogs",
    "ecs": "WithEcs",
    "ecs-agent": "WithEcsAgent",
    "ecs-telemetry": "WithEcsTelemetry",
    "kms": "WithKms",
    "events": "WithEvents",
    "xray": "WithXRay",
    "ssmmessages": "WithSsmMessages",
}
"""Services that infra/gpu.yaml, which is no part of the package, makes private names of, and what leaves each out."""
WAYS_OUT = ("NatGatewayId", "TransitGatewayId", "InstanceId", "NetworkInterfaceId", "CoreNetworkArn")
"""Targets of a default route by which a task without a public address may reach AWS."""
GATEWAYS_OUT = ("vpce-", "vgw-")
"""Of ``GatewayId``: a firewall's endpoint, and the way to a network of one's own. ``igw-`` is none: it serves public
addresses, which a host has at most and never a task in ``awsvpc`` mode. Peering is none: it ends in the other VPC."""
GONE = {"deleted", "expired", "failed", "rejected"}
"""States of an endpoint that answers by its names no more."""


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
    if wanted.subnets and wanted.endpoints:
        yield _found("private names", "ec2", client, _names, wanted)
        yield _found("endpoints", "ec2", client, _endpoints, wanted)
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
    found = network.describe_subnets(SubnetIds=list(wanted.subnets))["Subnets"]
    _fit_together(found, wanted)
    of_theirs = [{"Name": "vpc-id", "Values": [found[0]["VpcId"]]}]
    pages = network.get_paginator("describe_route_tables").paginate(Filters=of_theirs)
    tables = [table for page in pages for table in page["RouteTables"]]
    routes = {one["SubnetId"]: _default_route(one["SubnetId"], tables) for one in found}
    cut_off = [f"{subnet} ({_why_not(route)})" for subnet, route in routes.items() if not _way_out(route)]
    if cut_off and wanted.endpoints:
        return "workers reach AWS by endpoints"
    if cut_off:
        names = ", ".join(cut_off)
        raise Lacks(f"{names}: workers reach nothing without a NAT gateway or the like; or deploy with Endpoints=true")
    others = sorted({_way_out(route) for route in routes.values() if not route.get("NatGatewayId")})
    if others:
        return f"their way out is {', '.join(others)}; whether it leads on to AWS is not told here"
    return "a NAT gateway is their way out"


def _fit_together(subnets: list[dict[str, Any]], wanted: Wanted) -> None:
    if len(vpcs := _vpcs(subnets)) > 1:
        raise Lacks(f"they lie in {' and '.join(vpcs)}: workers and their hosts take subnets of one VPC")
    zones: dict[str, list[str]] = {}
    for one in subnets:
        zones.setdefault(one["AvailabilityZone"], []).append(one["SubnetId"])
    shared = [f"{' and '.join(names)} in {zone}" for zone, names in zones.items() if len(names) > 1]
    if shared and wanted.endpoints:
        words = "an endpoint takes one subnet of a zone (DuplicateSubnetsInSameZone): name one"
        raise Lacks(f"{', '.join(shared)}, and {words}")


def _vpcs(subnets: list[dict[str, Any]]) -> list[str]:
    return sorted({one["VpcId"] for one in subnets})


def _default_route(subnet: str, tables: list[dict[str, Any]]) -> dict[str, Any]:
    """Of the table that is associated with the subnet, else of its VPC's main one."""

    def serves(table: dict[str, Any], key: str, value: object) -> bool:
        return any(one.get(key) == value for one in table["Associations"])

    own = [table for table in tables if serves(table, "SubnetId", subnet)]
    main = [table for table in tables if serves(table, "Main", True)]
    routes = [route for table in own or main for route in table["Routes"]]
    return next((route for route in routes if route.get("DestinationCidrBlock") == "0.0.0.0/0"), {})


def _way_out(route: dict[str, Any]) -> str:
    """Its target, or "" where that is none."""
    if route.get("State") == "blackhole":  # what it led to was deleted, or a host that was stopped
        return ""
    gateway = str(route.get("GatewayId", ""))
    targets = [str(route[name]) for name in WAYS_OUT if route.get(name)]
    return next(iter(targets), gateway if gateway.startswith(GATEWAYS_OUT) else "")


def _why_not(route: dict[str, Any]) -> str:
    if not route:
        return "no default route"
    if route.get("State") == "blackhole":
        return "what its default route leads to is gone"
    if route.get("VpcPeeringConnectionId"):
        return "its default route is peering, which ends in the other VPC"
    if str(route.get("GatewayId")).startswith("igw-"):
        return "its default route is an internet gateway, and tasks have no public address"
    return "its default route is none that a task is known to take"


def _names(network: Any, wanted: Wanted) -> str:
    """Both attributes are needed; hostnames are off at first in every VPC but the default one."""
    vpcs = _vpcs(network.describe_subnets(SubnetIds=list(wanted.subnets))["Subnets"])
    off = []
    for vpc in vpcs:
        for name, option in (("DnsSupport", "dns-support"), ("DnsHostnames", "dns-hostnames")):
            answer = network.describe_vpc_attribute(VpcId=vpc, Attribute=f"enable{name}")
            if not answer[f"Enable{name}"]["Value"]:
                off.append(f"enable{name} is off: aws ec2 modify-vpc-attribute --vpc-id {vpc} --enable-{option}")
    if off:
        raise Lacks("; ".join(off))
    return f"{', '.join(vpcs)} resolves those of endpoints"


def _endpoints(network: Any, wanted: Wanted) -> str:
    """What EC2 would refuse as a conflicting DNS domain. One without private names stands in nobody's way."""
    vpcs = _vpcs(network.describe_subnets(SubnetIds=list(wanted.subnets))["Subnets"])
    pages = network.get_paginator("describe_vpc_endpoints").paginate(Filters=[{"Name": "vpc-id", "Values": vpcs}])
    taken: dict[str, str] = {}
    for one in (one for page in pages for one in page["VpcEndpoints"]):
        service = one["ServiceName"].partition(f".{network.meta.region_name}.")[2]
        if service in ENDPOINTS and one.get("PrivateDnsEnabled") and one["State"].lower() not in GONE:
            taken[service] = one["VpcEndpointId"]
    if not taken:
        return f"{', '.join(vpcs)} has no other with their names"
    there = ", ".join(f"{service} ({name})" for service, name in taken.items())
    without = " ".join(f"{ENDPOINTS[service]}=false" for service in taken)
    # An update would find its own, and would delete them if it were told to leave them out.
    raise Lacks(f"{there} would be refused a second time: deploy with {without}, unless they are this stack's own")


def _confirmed(topics: Any, wanted: Wanted) -> str:
    """Only who has confirmed has an ARN: before it stands PendingConfirmation there, and Deleted after the end."""
    pages = topics.get_paginator("list_subscriptions_by_topic").paginate(TopicArn=wanted.topic)
    found = [one for page in pages for one in page["Subscriptions"]]
    waiting = [one["Endpoint"] for one in found if one["SubscriptionArn"] == "PendingConfirmation"]
    if waiting:
        raise Lacks(f"{', '.join(waiting)} has not confirmed: open the link in AWS's mail")
    confirmed = [one for one in found if one["SubscriptionArn"].startswith("arn:")]
    if not confirmed:
        raise Lacks("nobody has subscribed to the topic")
    return f"{len(confirmed)} confirmed"
