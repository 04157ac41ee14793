"""What it costs, whole: the templates' resources are summed, and the document's table is held against the sum."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from handler.api.pricing import END, START, host_hour
from handler.aws.metrics import Metrics
from handler.aws.queue import TaskQueue
from handler.aws.store import TaskStore
from handler.care.rounds import Doctor
from handler.cli.local.aws import EmbeddedAws, create_resources
from handler.errors import CODES
from handler.settings import Settings
from handler.work.serving import Generate

from ..support import PlainEngine, sqs_event
from .costs import (
    HOURS,
    IDLE_PARTS,
    IMAGE_GB,
    INSIGHTS,
    ROUND_REQUESTS,
    alarm_metrics,
    calls_a_month,
    idle,
    idle_events,
    idle_workers,
    table,
)
from .template import INFRA, Template, read

pytestmark = pytest.mark.infra

README = (INFRA / "README.md").read_text()
MOST = 2.0
"""Dollars a month of a deployment with default parameters that nobody uses, alarms included."""


HOOK = {
    "WebhookUrl": "https://example.com/hook",
    "WebhookSecret": "s3cret",
    "AlarmTopicArn": "arn:aws:sns:us-east-1:123456789012:darkroom-alarms",
}


def rows() -> dict[str, list[str]]:
    """The document's table of fixed costs, by part."""
    text = README.partition("| part | what there is of it | a month |")[2].partition("\n\n")[0]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()[2:]]
    return {row[0]: row[1:] for row in cells}


def test_a_bus_costs_nothing_by_being_there() -> None:
    assert idle_events() == {}
    assert idle_events(WebhookUrl=HOOK["WebhookUrl"], WebhookSecret=HOOK["WebhookSecret"]) == {}
    assert idle_events(**HOOK).keys() == {"alarms"}


def test_idle_costs_little() -> None:
    costs = idle()
    assert 1 < sum(costs.values()) < MOST
    assert set(costs) == set(IDLE_PARTS) - {"dashboard"}


def test_what_is_off_by_default_costs_nothing_by_default() -> None:
    body = read("template.yaml")["Parameters"] | read("alarms.yaml")["Parameters"]
    off = {"Tracing": "PassThrough", "AccessLog": "false", "WithDashboard": "false", "KmsKeyArn": ""}
    assert {name: body[name]["Default"] for name in off} == off
    there = Template(read("template.yaml")).resources()
    functions = [one["Properties"] for one in there.values() if one["Type"] == "AWS::Lambda::Function"]
    assert {one["TracingConfig"]["Mode"] for one in functions} == {"PassThrough"}
    assert there["Stage"]["Properties"]["TracingEnabled"] is False
    assert "TracePolicy" not in there


def test_what_has_no_price_is_not_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    def more(file: str) -> dict[str, Any]:
        body = read(file)
        return body | {"Resources": body["Resources"] | {"Nat": {"Type": "AWS::EC2::NatGateway"}}}

    monkeypatch.setattr("tests.infra.costs.read", more)
    with pytest.raises(ValueError, match="what does Nat"):
        idle()


def test_every_part_of_the_sum_is_in_the_document() -> None:
    costs, written = idle(), rows()
    for part in costs:
        assert written[part][-1] == f"${costs[part]:.2f}", part
    assert written["**together**"][-1] == f"**${sum(costs.values()):.2f}**"
    alarms = [one["Properties"] for one in Template(read("alarms.yaml")).resources().values() if "Alarm" in one["Type"]]
    assert written["alarms"][0].startswith(f"{sum(map(alarm_metrics, alarms))} metrics in {len(alarms)} alarms")


def test_every_part_that_a_parameter_or_its_use_adds_is_in_the_document(names: set[str]) -> None:
    price, written = table(), rows()
    host = read("gpu.yaml")["Parameters"]["PricedAs"]["Default"]
    disk = int(read("gpu.yaml")["Parameters"]["DiskGb"]["Default"])
    tail = START + END
    dollars = {
        "dashboard": sum(idle(WithDashboard="true").values()) - sum(idle().values()),
        "metrics": len(names) * price["custom_metric_month"],
        "traces": 1e6 * price["trace"],
        "logs": price["log_gb"],
        "events": 1e6 * (price["event"] + price["webhook_call"]),
        "alarm on events": sum(idle_events(**HOOK).values()),
        "pictures that are fetched": price["out_gb"],
        "a NAT gateway": HOURS * (price["nat_hour"] + price["address_hour"]),
        "an endpoint": HOURS * price["endpoint_hour"],
        "scaling": sum(idle_workers().values()),
        "alarm on workers": sum(idle(GpuWorkers="silent").values()) - sum(idle().values()),
        "Container Insights": INSIGHTS * price["custom_metric_month"],
        "AWS's hand on a host": HOURS * (host_hour(host, price) - price["hosts"][host]),
        "a host's disk": disk * price["disk_gb_month"],
        "a GPU's tail": tail / 3600 * host_hour(host, price),
        "a pull": IMAGE_GB * price["nat_gb"],
        "a key of your own": price["key_month"],
        "images in ECR": price["registry_gb_month"],
    }
    assert written.keys() == idle().keys() | {"**together**"} | dollars.keys()
    assert {part: written[part][-1] for part in dollars} == {part: f"${one:.2f}" for part, one in dollars.items()}
    assert written["metrics"][0].startswith(f"{len(names)} of")
    assert f"${price['nat_gb']}" in written["a NAT gateway"][0]
    assert f"{tail / 60:g} minutes of a {host}" in written["a GPU's tail"][0]
    assert f"{IMAGE_GB:g} GB" in written["a pull"][0]
    assert f"{disk} GB" in written["a host's disk"][0]
    assert f"${price['endpoint_gb']:.2f} for each GB" in written["an endpoint"][0]
    assert written["Container Insights"][0].startswith(f"`Insights=enabled`: {INSIGHTS} metrics")
    assert f"{100 * price['managed_fee']:g} %" in written["AWS's hand on a host"][0]
    counted = sum(idle(GpuWorkers="counted").values()) - sum(idle().values())
    assert f"`counted` ${counted:.2f}" in written["alarm on workers"][0]


def test_workers_that_are_not_there_cost_two_alarms_and_what_the_network_needs() -> None:
    price, written = table(), rows()
    assert idle_workers().keys() == {"alarms"}
    cut_off = {"Endpoints": "true", "VpcCidr": "10.0.0.0/16", "S3Gateway": "true", "RouteTableIds": "rtb-1"}
    endpoints = idle_workers(**cut_off)["endpoints"]
    least = round(endpoints / (HOURS * price["endpoint_hour"]))
    assert f"{least} at least, ${endpoints:.2f}" in written["an endpoint"][0]
    assert idle_workers(**cut_off, SubnetIds="subnet-1,subnet-2")["endpoints"] == 2 * endpoints
    # S3's own costs nothing, and each that is left out is not paid for.
    assert idle_workers(S3Gateway="true", RouteTableIds="rtb-1") == idle_workers()
    one = endpoints - idle_workers(**cut_off, WithSqs="false")["endpoints"]
    assert round(one, 2) == round(HOURS * price["endpoint_hour"], 2)


@pytest.fixture
def names(settings: Settings, store: TaskStore, queue: TaskQueue, capsys: pytest.CaptureFixture[str]) -> set[str]:
    """Of all metrics that are ever told, but for those of error codes."""
    metered = replace(settings, metrics=True)
    Generate(metered, store, queue, lambda _: PlainEngine()).handle(sqs_event('{"prompt": "fox"}'), None)
    metrics = Metrics(metered)
    for code in CODES:
        metrics.failed(code)  # type: ignore[arg-type]
    metrics.cancelled()
    metrics.unloadable()
    metrics.wasted(1)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    public = [name for name in vars(Metrics) if not name.startswith("_")]
    assert sorted(public) == ["cancelled", "completed", "failed", "unloadable", "wasted"]
    about = [one for line in lines for one in line["_aws"]["CloudWatchMetrics"]]
    return {metric["Name"] for one in about for metric in one["Metrics"]} - {"FailedByCode"}


def test_the_doctors_idle_round_asks_for_what_is_summed() -> None:
    counted: Counter[str] = Counter()
    aws = EmbeddedAws()
    server: Any = aws._server
    app = server.app

    def counting(environ: dict[str, Any], start_response: Any) -> Any:
        listing = environ["REQUEST_METHOD"] == "GET" and "list-type" in environ.get("QUERY_STRING", "")
        of_s3 = "s3_put" if listing or environ["REQUEST_METHOD"] == "PUT" else "s3_get"
        counted["sqs_request" if "AmazonSQS" in environ.get("HTTP_X_AMZ_TARGET", "") else of_s3] += 1
        return app(environ, start_response)

    with aws:
        made = create_resources(aws.endpoint)
        settings = Settings.load({**made.variables, "AWS_REGION": "us-east-1", "AWS_ENDPOINT_URL": aws.endpoint})
        doctor = Doctor(settings, TaskStore(settings), TaskQueue(settings))
        server.app = counting
        assert doctor.examine(fix=True) == []
    assert counted == ROUND_REQUESTS


def test_every_price_says_where_it_is_from() -> None:
    own = json.loads((INFRA / "prices.json").read_text())
    assert own["sources"].keys() == own.keys() - {"date", "region", "source", "sources"}
    assert re.fullmatch(r"\d{4}-\d{2}", own["date"])
    for source in own["sources"].values():
        assert source["page"].startswith("aws.amazon.com/")
        assert source["seen"] or source["why"]
    assert not own.keys() & json.loads((INFRA.parent / "handler/api/prices.json").read_text()).keys() - {
        "date",
        "region",
        "source",
        "sources",
    }


def test_calls_a_month() -> None:
    assert calls_a_month("rate(10 minutes)") == 4380
    assert round(calls_a_month("rate(7 days)"), 1) == 4.3
    with pytest.raises(ValueError, match="how often"):
        calls_a_month("cron(0 * * * ? *)")
