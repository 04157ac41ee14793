"""The templates in AWS's other partitions: nothing in them names a place that is there in one alone."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from .policies import grants, matches
from .template import EXAMPLES, Template, edges, read

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.infra

PARTITIONS = {
    "aws": ("us-east-1", "amazonaws.com", "us-east-1.console.aws.amazon.com"),
    "aws-cn": ("cn-north-1", "amazonaws.com.cn", "cn-north-1.console.amazonaws.cn"),
    "aws-us-gov": ("us-gov-west-1", "amazonaws.com", "us-gov-west-1.console.amazonaws-us-gov.com"),
}
"""Region, suffix and console of each: AWS general reference; "Signing in to the console" of China's and GovCloud's."""
FILES = ("template.yaml", "alarms.yaml", "events.yaml", "gpu.yaml")
PRINCIPAL = re.compile(r"[a-z.-]+\.amazonaws\.com")
"""A service's name as a principal: the same everywhere for those that are used here (IAM user guide)."""
ENDPOINT = re.compile(r"com\.amazonaws\.(?P<region>[a-z0-9-]+)\.[a-z0-9.-]+")
"""A service's name for an endpoint in a VPC, no host. In China some begin with ``cn.``: the document says so."""


def pseudo(partition: str) -> dict[str, str]:
    region, suffix, _ = PARTITIONS[partition]
    return {
        "AWS::StackName": "darkroom",
        "AWS::Region": region,
        "AWS::AccountId": "123456789012",
        "AWS::Partition": partition,
        "AWS::URLSuffix": suffix,
    }


def there(partition: str) -> dict[str, list[str]]:
    """The examples, as they would be in a partition."""
    region, suffix, _ = PARTITIONS[partition]

    def moved(text: str) -> str:
        return (
            text.replace("us-east-1", region).replace("amazonaws.com", suffix).replace("arn:aws:", f"arn:{partition}:")
        )

    return {name: [moved(one) for one in values] for name, values in EXAMPLES.items()}


def texts(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every text in it, and where it is."""
    if isinstance(value, dict):
        for name, one in value.items():
            yield from texts(one, f"{path}.{name}")
    elif isinstance(value, list):
        for one in value:
            yield from texts(one, path)
    elif isinstance(value, str):
        yield path, value


def resolved(file: str, partition: str) -> Iterator[tuple[str, str]]:
    """Of resources and outputs, with every parameter at every edge."""
    body, examples = read(file), there(partition)
    for parameters in edges(body):
        given = {
            name: examples[name][-1] if name in examples and value else value for name, value in parameters.items()
        }
        template = Template(body, given, pseudo=pseudo(partition))
        outputs = {name: one for name, one in body["Outputs"].items() if template.holds(one.get("Condition"))}
        yield from texts({"Resources": template.resources(), "Outputs": template.resolve(outputs)})


def strangers(found: Iterator[tuple[str, str]], partition: str) -> set[tuple[str, str]]:
    """Texts that name another partition, or a host that is not of this one."""
    region, suffix, console = PARTITIONS[partition]
    bad = set()
    for path, text in found:
        # kms:ViaService ends in a star, for either suffix.
        if ("Principal" in path and PRINCIPAL.fullmatch(text)) or text.endswith(".amazonaws.com*"):
            continue
        endpoint = ENDPOINT.fullmatch(text) if path.endswith(".ServiceName") else None
        if endpoint and endpoint["region"] == region:
            continue
        if [one for one in re.findall(r"arn:(aws[a-z-]*):", text) if one != partition]:
            bad.add((path, text))
        for host in re.findall(r"[a-z0-9.-]*(?:amazonaws|aws\.amazon)[a-z0-9.-]*", text):
            if host != console and not re.search(rf"(^|\.){re.escape(suffix)}$", host):
                bad.add((path, text))
    return bad


@pytest.mark.parametrize("partition", PARTITIONS)
@pytest.mark.parametrize("file", FILES)
def test_nothing_names_another_partition(file: str, partition: str) -> None:
    found = list(resolved(file, partition))
    assert len(found) > 50
    assert strangers(iter(found), partition) == set()


def test_that_would_be_seen() -> None:
    wrong = [
        ("Resources.A.Properties.Resource", "arn:aws:s3:::bucket"),
        ("Outputs.A.Value", "https://cn-north-1.console.aws.amazon.com/cloudwatch"),
        ("Resources.A.Properties.Url", "https://sqs.cn-north-1.amazonaws.com/1/q"),
        ("Resources.A.Properties.ServiceName", "com.amazonaws.us-east-1.sqs"),
        ("Resources.A.Properties.Url", "com.amazonaws.cn-north-1.sqs"),
    ]
    right = [
        ("Resources.A.Properties.Statement.Principal.Service", "lambda.amazonaws.com"),
        ("Resources.A.Properties.Url", "https://sqs.cn-north-1.amazonaws.com.cn/1/q"),
        ("Resources.A.Properties.ServiceName", "com.amazonaws.cn-north-1.ecr.api"),
    ]
    assert strangers(iter(wrong + right), "aws-cn") == set(wrong)


@pytest.mark.parametrize("partition", PARTITIONS)
def test_the_dashboard_is_at_the_partitions_console(partition: str) -> None:
    template = Template(read("alarms.yaml"), {"WithDashboard": "true"}, pseudo=pseudo(partition))
    url = template.resolve(read("alarms.yaml")["Outputs"]["DashboardUrl"]["Value"])
    assert urlsplit(url).netloc == PARTITIONS[partition][2]


@pytest.mark.parametrize("partition", PARTITIONS)
def test_parameters_take_what_is_named_there(partition: str) -> None:
    for file in FILES:
        for name, values in there(partition).items():
            pattern = read(file)["Parameters"].get(name, {}).get("AllowedPattern", "")
            assert [one for one in values if not re.search(pattern, one)] == []


@pytest.mark.parametrize("partition", PARTITIONS)
def test_a_key_may_be_used_by_way_of_the_partitions_services(partition: str) -> None:
    """Under either suffix, as IAM compares with StringLike."""
    region, suffix, _ = PARTITIONS[partition]
    key = there(partition)["KmsKeyArn"][0]
    made = Template(read("template.yaml"), {"KmsKeyArn": key}, pseudo=pseudo(partition)).resources()
    for name, services in (("KeyPolicy", ("s3", "sqs")), ("StatusKeyPolicy", ("s3",))):
        (statement,) = made[name]["Properties"]["PolicyDocument"]["Statement"]
        patterns = statement["Condition"]["StringLike"]["kms:ViaService"]
        patterns = patterns if isinstance(patterns, list) else [patterns]
        wanted = [f"{service}.{region}.{suffix}" for service in services]
        assert [one for one in wanted if not any(matches(pattern, one) for pattern in patterns)] == []
        assert len(patterns) == len(services)
    worker = Template(
        read("gpu.yaml"), {name: one[-1] for name, one in there(partition).items()}, pseudo=pseudo(partition)
    )
    used = [one for one in grants(worker) if one.action.startswith("kms:")]
    assert {one.resource for one in used} == {there(partition)["KmsKeyArn"][-1]}
    policies = worker.resources()["WorkerRole"]["Properties"]["Policies"]
    (statement,) = next(one for one in policies if one["PolicyName"] == "key")["PolicyDocument"]["Statement"]
    patterns = statement["Condition"]["StringLike"]["kms:ViaService"]
    assert [any(matches(one, f"{service}.{region}.{suffix}") for one in patterns) for service in ("s3", "sqs")] == [
        True,
        True,
    ]
    assert not any(matches(one, f"sns.{region}.{suffix}") for one in patterns)
