"""``darkroom invoke`` and ``serve``: the whole path on this machine."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..clock import utc_now
from ..logs import log
from .options import Endpoint, Json, ModelOption, OwnAws, Prompt, Verbose
from .output import can_be_written, save, say
from .request_options import takes_request
from .showing import print_json, print_results

if TYPE_CHECKING:
    from ..client import Picture
    from ..contract.record import Record
    from ..contract.responses import ResultResponse
    from ..settings import Settings

drawing = typer.Typer()
PATIENCE = 60.0
"""Seconds for which a download is retried."""


@drawing.command()
@takes_request
def invoke(
    prompt: Prompt = None,
    asked: dict[str, Any] | None = None,
    image: Path | None = None,
    out: Annotated[Path, typer.Option(help="Folder for the pictures")] = Path("pictures"),
    event: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Feed this recorded SQS event to the handler instead"),
    ] = None,
    model: ModelOption = None,
    own: OwnAws = False,
    endpoint: Endpoint = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Draws a picture through the whole path: SQS, worker, pipeline, S3, presigned URL."""
    if (prompt is None) == (event is None):
        raise typer.BadParameter("give a prompt or --event FILE, one of them")
    recorded = _recorded(event) if event else None
    can_be_written(out)
    log(at_all=verbose)
    from .local.session import Interrupted, aws_environment, invoke_event, invoke_request

    with aws_environment(endpoint, model, own=own, say=say) as settings:
        try:
            if recorded is not None:
                results = invoke_event(settings, recorded, say)
            else:
                request = {"prompt": prompt, **(asked or {})} | _uploaded(settings, image)
                results = [invoke_request(settings, request, quiet=as_json, say=say)]
        except Interrupted as ended:
            _interrupted(ended.status, ended.left, kept=own or bool(endpoint))
        told = [_fetched(one, out) for one in results]
    if as_json:
        files = [[str(path) for _, path in saved] for _, saved in told]
        print_json([one | {"files": paths} for one, paths in zip(results, files, strict=True)])
    else:
        print_results(told, utc_now())
    if any(one["status"] != "completed" for one in results):
        raise typer.Exit(1)


@drawing.command()
def serve(
    port: Annotated[int, typer.Option(help="On 127.0.0.1; 0 takes a free one")] = 8000,
    model: ModelOption = None,
    own: OwnAws = False,
    endpoint: Endpoint = None,
    tenants: Annotated[bool, typer.Option("--tenants", help="Tell callers apart by the header X-API-Key")] = False,
    env: Annotated[
        Path | None, typer.Option("--env", metavar="FILE", help="Write the variables that other programs need")
    ] = None,
) -> None:
    """Serves the HTTP API with a worker beside it until Ctrl-C."""
    from ..process import use
    from .local.aws import CREDENTIALS
    from .local.session import Interrupted, aws_environment, serve_forever

    if tenants:
        use(TENANTS="header")
    with aws_environment(endpoint, model, own=own, say=say) as settings:
        kept = own or endpoint

        def ready(url: str) -> None:
            lines = [
                f"export {name}={shlex.quote(value)}"
                for name, value in exports(settings, url, {} if kept else CREDENTIALS).items()
            ]
            text = "\n".join([*lines, ""])
            typer.echo(text, nl=False)
            if env is not None:
                say(f"the same in {save(env, text.encode())}")
            if not kept:
                say("bucket and queues are in memory: they end with this process")
            say(f"{url}  Ctrl-C ends it")

        try:
            serve_forever(settings, port, say, ready)
        except Interrupted as ended:
            _end(ended.status)


def exports(settings: Settings, url: str, credentials: dict[str, str]) -> dict[str, str]:
    """The variables with which another program, boto3's own among them, uses what is served here."""
    variables = {"BUCKET": settings.bucket, "QUEUE_URL": settings.queue_url, "DARKROOM_ENDPOINT": url}
    variables |= settings.other_aws
    if "AWS_REGION" in credentials:
        variables["AWS_DEFAULT_REGION"] = credentials["AWS_REGION"]  # boto3 knows no other name
    return variables | credentials


def _interrupted(status: int, left: Record | None, *, kept: bool) -> None:
    """Says what has become of the task, and ends the process."""
    if left is None:
        say("nothing was drawn yet")
    elif not kept:
        say(f"task {left.task_id} was {left.status}; it ends with the embedded AWS. With --aws it would be kept")
    elif left.completed_at is not None:
        say(f"task {left.task_id} is {left.status}: darkroom download {left.task_id}")
    else:
        steps = left.request.steps if left.request else "its"
        command = shlex.join(["darkroom", *sys.argv[1:]])
        named = "" if "--task-id" in sys.argv else f" --task-id {left.task_id}"
        say(
            f"task {left.task_id} is in the queue, {left.saved_step} of {steps} steps saved; to go on: {command}{named}"
        )
    _end(status)


def _end(status: int) -> None:
    from ..work.signals import end

    end(status)


def _fetched(result: dict[str, Any], folder: Path) -> tuple[ResultResponse, list[tuple[Picture, Path]]]:
    from ..client.net import HttpClient
    from ..client.patience import Clock
    from ..client.pictures import fetch
    from ..contract.responses import ResultResponse

    told = ResultResponse.model_validate(result, extra="ignore")
    return told, [(one, one.save(folder)) for one in fetch(told, HttpClient(), PATIENCE, Clock())]


def _recorded(file: Path) -> dict[str, Any]:
    try:
        event: dict[str, Any] = json.loads(file.read_text())
        _ = [record["body"] for record in event["Records"]]
    except (ValueError, KeyError, TypeError) as fault:
        raise typer.BadParameter(f"{file} holds no SQS event: {fault!r}") from fault
    return event


def _uploaded(settings: Settings, file: Path | None) -> dict[str, str]:
    """Uploads an input image; returns the request's field that names it, none without one."""
    from ..aws.store import TaskStore
    from ..client.asking import content_type_of
    from ..contract.ids import new_id

    if file is None:
        return {}
    upload_id, body = new_id(), file.read_bytes()
    TaskStore(settings).put_upload(upload_id, body, content_type_of(body))
    return {"image": upload_id}
