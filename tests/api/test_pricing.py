"""What a plan says can be worked out by hand, and the price file can be replaced."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from handler.api.pricing import END, PRICES, START, Plan, Speed, host_hour, plans, prices, speed_of
from handler.cli.main import app
from handler.errors import InvalidRequest

README = (Path(__file__).parents[2] / "infra/README.md").read_text()
FREE: dict[str, Any] = dict.fromkeys(("lambda_request", "api_request", "s3_put", "s3_get", "sqs_request"), 0.0)
TABLE = {**FREE, "lambda_gb_second": {"x86_64": 0.0}, "hosts": {"gpu": 1.0}, "managed_fee": 0.0}


def of(host: str, made: list[Plan]) -> Plan:
    (one,) = [plan for plan in made if plan.host.startswith(host)]
    return one


def test_lambda_costs_what_it_draws() -> None:
    table = {**TABLE, "lambda_gb_second": {"x86_64": 0.001}}
    slow = of("Lambda", plans(10, 20, Speed(0.1, 1.0), table, memory=2048))
    assert slow.seconds == pytest.approx(3.0)
    # 3 s of 2 GB, and twice a light function's tenth of a second and once more for the second poll.
    assert slow.dollars_a_thousand == pytest.approx(1000 * (6 + 2 * 0.1 + 0.1) * 0.001)
    assert slow.dollars_an_hour == pytest.approx(slow.dollars_a_thousand / 100)


@pytest.mark.parametrize(("rate", "workers"), [(1, 1), (2880, 1), (2881, 2), (28800, 10)])
def test_workers_have_time_to_spare(rate: float, workers: int) -> None:
    """At a second an image a worker draws 3,600 an hour, and is given 2,880."""
    one = of("gpu", plans(rate, 10, Speed(0.1), TABLE))
    assert one.workers == workers
    assert one.dollars_an_hour == pytest.approx(workers)
    assert one.dollars_a_thousand == pytest.approx(1000 * workers / rate)


def test_hosts_that_come_and_go_cost_a_tail_a_burst_apart() -> None:
    """Two workers, three times a day: minutes in which they start, and in which nobody knows yet that all is drawn."""
    stays, goes = (of("gpu", plans(2881, 10, Speed(0.1), TABLE, bursts=bursts)) for bursts in (0, 3))
    assert stays.tail_dollars_a_day == 0
    assert goes.tail_dollars_a_day == pytest.approx(2 * 3 * 1.0 * (START + END) / 3600)
    assert (goes.dollars_an_hour, goes.dollars_a_thousand) == (stays.dollars_an_hour, stays.dollars_a_thousand)
    # Lambda is paid by the millisecond of use.
    assert of("Lambda", plans(2881, 10, Speed(0.1), TABLE, bursts=3)).tail_dollars_a_day == 0


def test_the_command_shows_tails_where_bursts_are_told() -> None:
    command = ["plan", "--rate", "1000", "--step-seconds", "0.1", "--on", "g6.xlarge spot"]
    with_tails = CliRunner().invoke(app, [*command, "--bursts", "3"]).stdout
    assert "3 bursts a day: GPU hosts are paid for 7 min before their first picture, 7 min after" in with_tails
    # One worker for 2 s an image; three times 14 minutes at $0.45 an hour, and 7.8 % of $0.8048 on top.
    assert "  1 workers" in with_tails
    assert "and $0.36 a day of tails" in with_tails
    assert "tails" not in CliRunner().invoke(app, command).stdout
    (told,) = json.loads(CliRunner().invoke(app, [*command, "--bursts", "3", "--json"]).stdout)
    assert told["tail_dollars_a_day"] == pytest.approx(3 * (0.45 + 0.078 * 0.8048) * 14 / 60)


def test_managing_a_host_costs_a_part_of_its_price_on_demand() -> None:
    table = {**TABLE, "managed_fee": 0.1, "hosts": {"gpu": 1.0, "gpu spot": 0.4, "other spot": 0.4}}
    assert [host_hour(name, table) for name in table["hosts"]] == pytest.approx([1.1, 0.5, 0.44])
    assert [plan.dollars_an_hour for plan in plans(2880, 10, Speed(0.1), table)][-3:] == pytest.approx([1.1, 0.5, 0.44])


def test_the_price_file_says_when_and_from_where() -> None:
    table = prices()
    assert table["date"] >= "2026"
    assert table["region"]
    assert table["source"]
    # Each price by itself: its page, and where it was seen; or why it could not be.
    told = {"date", "region", "source", "sources", "hosts"}
    assert table["sources"].keys() == (table.keys() - told) | table["hosts"].keys()
    for name, one in table["sources"].items():
        assert one["page"].startswith("aws.amazon.com/"), name
        assert one["seen"] or one["why"], name


def test_another_price_file(tmp_path: Path) -> None:
    file = tmp_path / "prices.json"
    file.write_text(json.dumps({**json.loads(PRICES.read_text()), "hosts": {"mine": 7.0}}))
    done = CliRunner().invoke(app, ["plan", "--rate", "1", "--step-seconds", "0.1", "--prices", str(file), "--json"])
    assert {one["host"]: one["workers"] for one in json.loads(done.stdout)}["mine"] == 1
    file.write_text('{"date": "2026"}')
    with pytest.raises(InvalidRequest, match="lacks api_request"):
        prices(file)
    file.write_text("{")
    with pytest.raises(InvalidRequest, match="is no price file"):
        prices(file)


def test_a_result_tells_its_speed(tmp_path: Path) -> None:
    times = {"text": 0.1, "denoise": 8.0, "decode": 0.2, "encode": 0.1, "upload": 0.1, "queue": 9, "total": 9}
    result = {"timings": times, "request": {"num_inference_steps": 20, "num_images": 1}, "batch_size": 4}
    speed, steps = speed_of(result)
    assert [speed.step, speed.other, steps] == pytest.approx([0.1, 0.5, 20])
    file = tmp_path / "result.json"
    file.write_text(json.dumps(result))
    done = CliRunner().invoke(app, ["plan", "--rate", "60", "--from", str(file)])
    assert "60 images an hour of 20 steps" in done.stdout
    assert "2.50 s an image" in done.stdout
    with pytest.raises(InvalidRequest, match="not that of a completed task"):
        speed_of({**result, "timings": None})


def test_the_readmes_table_is_what_the_command_says() -> None:
    lines = README.partition("\n## What it costs\n")[2].partition("\n## ")[0].splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")][2:]
    assert len(rows) == 7
    options: list[str] = []
    for _, shown, host, seconds, dollars in rows:
        options = options if shown == "the same" else shown.strip("`").split()
        done = CliRunner().invoke(app, ["plan", "--rate", "1000", *options, "--json"])
        (one,) = [plan for plan in json.loads(done.stdout) if plan["host"] == host]
        assert (f"{one['seconds']:.2f}", f"${one['dollars_a_thousand']:.2f}") == (seconds, dollars)


def test_one_source_of_seconds() -> None:
    assert CliRunner().invoke(app, ["plan", "--rate", "60"]).exit_code == 2
