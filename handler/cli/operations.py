"""``darkroom redrive`` and ``darkroom doctor``: an operator's commands."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ..clock import utc_now
from .deployment import deployment

operations = typer.Typer()
UNITS = {"m": "minutes", "h": "hours", "d": "days"}


def parse_time(text: str, now: datetime) -> datetime:
    """Parses an ISO 8601 date or time (UTC if it has no zone), or a time ago: 90m, 12h, 3d. Raises BadParameter."""
    if ago := re.fullmatch(r"(\d{1,6})([mhd])", text):
        return now - timedelta(**{UNITS[ago[2]]: int(ago[1])})
    try:
        when = datetime.fromisoformat(text)
    except ValueError as fault:
        raise typer.BadParameter(f"{text!r} is neither a date like 2026-01-31 nor a time ago like 12h") from fault
    return when if when.tzinfo else when.replace(tzinfo=UTC)


@operations.command()
def redrive(
    task: Annotated[list[str] | None, typer.Option("--task", help="A failed task; may be given several times")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every task that the queue had given up on")] = False,
    since: Annotated[str | None, typer.Option(help="With --all: ended since; 2026-01-31 or 12h")] = None,
    tenant: Annotated[str | None, typer.Option(help="Whose; --all without it means every tenant's")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would do, and do nothing")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a task on stdout")] = False,
) -> None:
    """Gives failed tasks of the deployment that BUCKET and QUEUE_URL name another chance."""
    from ..aws.queue import TaskQueue
    from ..aws.store import TaskStore
    from ..care.redrive import Redrive

    if bool(task) == every or (since and not every):
        raise typer.BadParameter("give --task ID or --all, and --since only with --all")
    settings, count = deployment("bucket", "queue_url"), 0
    store, queue, after = TaskStore(settings), TaskQueue(settings), parse_time(since, utc_now()) if since else None
    for one in [store.for_tenant(tenant)] if task or tenant else store.all_tenants():
        redriver = Redrive(one, queue)
        chosen = (redriver.one(name, dry_run=dry_run) for name in task or [])
        for record in chosen if task else redriver.all(after, dry_run=dry_run):
            count += 1
            line = {"task_id": record.task_id, "attempts": record.attempt, "redriven": not dry_run}
            would = "would be pending again" if dry_run else "is pending again"
            whose = f"{record.task_id} of {one.tenant}" if one.tenant else record.task_id
            line_json = json.dumps(line | {"tenant": one.tenant})
            typer.echo(line_json if as_json else f"{whose} {would}, after {record.attempt} attempts")
    if not count and not as_json:
        typer.echo("there is no task that the queue has given up on")


@operations.command()
def doctor(
    fix: Annotated[bool, typer.Option("--fix", help="Mend what is found")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a finding on stdout")] = False,
) -> None:
    """Finds stuck tasks and what was left lying in the deployment. Exits with 1 if something stays as it was found."""
    from ..care.rounds import build

    findings = build(deployment("bucket", "queue_url")).examine(fix=fix)
    if as_json:
        for finding in findings:
            typer.echo(json.dumps(finding.to_json()))
    elif findings:
        table = Table("tenant", "task", "what", "since", "mended")
        for finding in findings:
            since = f"{finding.since:%Y-%m-%d %H:%M:%S}"
            table.add_row(finding.tenant, finding.task_id, finding.kind, since, str(finding.mended))
        Console().print(table)
    else:
        typer.echo("nothing is stuck, and nothing was left lying")
    if not all(finding.mended for finding in findings):
        raise typer.Exit(1)


@operations.command()
def preflight(
    image: Annotated[str, typer.Option(help="The image's URI, as ImageUri will be")] = "",
    architecture: Annotated[str, typer.Option(help="x86_64 or arm64, as Architecture will be")] = "x86_64",
    concurrency: Annotated[int, typer.Option(min=0, help="MaxConcurrency; 0 draws on GPUs alone")] = 4,
    gpus: Annotated[int, typer.Option(min=0, help="MaxWorkers on GPUs")] = 0,
    on_demand: Annotated[bool, typer.Option("--on-demand", help="GPUs on demand in place of spot")] = False,
    subnets: Annotated[str, typer.Option(help="SubnetIds, with commas")] = "",
    endpoints: Annotated[bool, typer.Option("--endpoints", help="The stack makes endpoints in these subnets")] = False,
    topic: Annotated[str, typer.Option(help="ARN of the topic that alarms are sent to")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a check on stdout")] = False,
) -> None:
    """What the account lacks for a deployment, by calls that only read. Exits with 1 if something is missing."""
    from dataclasses import asdict

    from ..aws.preflight import LAMBDA_ARCHITECTURES, MISSING, Wanted
    from ..aws.preflight import preflight as checks

    if architecture not in LAMBDA_ARCHITECTURES:
        raise typer.BadParameter(f"--architecture is one of {', '.join(LAMBDA_ARCHITECTURES)}")
    named = tuple(filter(None, (one.strip() for one in subnets.split(","))))
    wanted = Wanted(image, architecture, concurrency, gpus, not on_demand, named, endpoints, topic)
    states = []
    for finding in checks(deployment(), wanted):
        states.append(finding.state)
        line = f"{finding.state:8} {finding.what}: {finding.words}"
        typer.echo(json.dumps(asdict(finding)) if as_json else line)
    if MISSING in states:
        raise typer.Exit(1)
