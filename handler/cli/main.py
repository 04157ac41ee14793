"""``darkroom``: the whole path on this machine, or against a deployment."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from ..contract.record import Record
from ..errors import DarkroomError, InvalidRequest, ModelUnavailable, SettingsError
from ..logs import logger
from .operations import operations
from .options import (
    Endpoint,
    Format,
    Guidance,
    Height,
    Json,
    ModelOption,
    Name,
    Negative,
    Number,
    Prompt,
    Quality,
    Seed,
    Source,
    Steps,
    Strength,
    Tags,
    Width,
    request_fields,
)
from .remote import remote
from .showing import print_json, print_task

if TYPE_CHECKING:
    from ..client import Picture
    from ..contract.responses import ResultResponse
    from ..settings import Settings

app = typer.Typer(no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False, help=__doc__)
app.add_typer(remote)
app.add_typer(operations)
err = Console(stderr=True)
PATIENCE = 60.0
"""Seconds for which a download is retried."""


def main() -> None:
    """Exit status: 0 done, 1 the task did not complete or something broke, 2 the command line, a setting or the request
    is wrong, 3 the timeout was reached and the task goes on, 130 interrupted.
    """
    try:
        app()
    except DarkroomError as fault:
        if "--json" in sys.argv:
            typer.echo(json.dumps(fault.envelope()))
        err.print(f"{fault.code} {fault.message}", style="red", highlight=False, markup=False, soft_wrap=True)
        sys.exit(2 if isinstance(fault, SettingsError | InvalidRequest) else 1)


@app.command()
def invoke(
    prompt: Prompt = None,
    negative_prompt: Negative = None,
    steps: Steps = None,
    guidance: Guidance = None,
    seed: Seed = None,
    width: Width = None,
    height: Height = None,
    num_images: Number = None,
    image: Source = None,
    strength: Strength = None,
    output_format: Format = None,
    quality: Quality = None,
    task_id: Name = None,
    tag: Tags = None,
    out: Annotated[Path, typer.Option(help="Folder for the pictures")] = Path("pictures"),
    event: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Feed this recorded SQS event to the handler instead"),
    ] = None,
    model: ModelOption = None,
    endpoint: Endpoint = None,
    as_json: Json = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the handlers' log")] = False,
) -> None:
    """Draws a picture through the whole path: SQS, worker, pipeline, S3, presigned URL."""
    from .local.session import aws_environment, invoke_event, invoke_request

    if (prompt is None) == (event is None):
        raise typer.BadParameter("give a prompt or --event FILE, one of them")
    logger.setLevel("INFO" if verbose else "CRITICAL")
    with aws_environment(endpoint, model) as settings:
        if event is not None:
            results = invoke_event(settings, _recorded(event))
        else:
            asked = request_fields(
                prompt=prompt,
                negative_prompt=negative_prompt,
                num_inference_steps=steps,
                guidance_scale=guidance,
                seed=seed,
                width=width,
                height=height,
                num_images=num_images,
                image=_uploaded(settings, image),
                strength=strength,
                output_format=output_format,
                quality=quality,
                task_id=task_id,
                tags=tag,
            )
            results = [invoke_request(settings, asked, quiet=as_json)]
        told = [_fetched(one, out) for one in results]
    if as_json:
        files = [[str(path) for _, path in saved] for _, saved in told]
        print_json([one | {"files": paths} for one, paths in zip(results, files, strict=True)])
    else:
        for result, saved in told:
            print_task(result, saved)
    if any(one["status"] != "completed" for one in results):
        raise typer.Exit(1)


@app.command()
def serve(
    port: Annotated[int, typer.Option(help="On 127.0.0.1; 0 takes a free one")] = 8000,
    model: ModelOption = None,
    endpoint: Endpoint = None,
    tenants: Annotated[bool, typer.Option("--tenants", help="Tell callers apart by the header X-API-Key")] = False,
) -> None:
    """Serves the HTTP API with a worker beside it until Ctrl-C."""
    from ..settings import use
    from .local.session import aws_environment, serve_forever

    if tenants:
        use(TENANTS="header")
    with aws_environment(endpoint, model) as settings:
        err.print(f"AWS at {settings.aws_endpoint_url or 'its own place'}, bucket {settings.bucket}", highlight=False)
        worked = serve_forever(settings, port, lambda text: err.print(text, highlight=False))
    if not worked:
        raise ModelUnavailable("the worker ended: the model cannot be loaded; the log tells why")


@app.command()
def worker() -> None:
    """Serves the queue until SIGTERM: what the container does outside Lambda."""
    from ..worker import main as work

    raise typer.Exit(work())


@app.command()
def schema() -> None:
    """Prints the JSON Schemas of all that crosses a boundary."""
    from pydantic.json_schema import models_json_schema

    from ..contract.card import ModelCard
    from ..contract.request import GenerationRequest
    from ..contract.responses import ErrorResponse, HealthResponse, ResultPage, ResultResponse, TaskResponse

    contracts = (
        GenerationRequest,
        Record,
        TaskResponse,
        ResultResponse,
        ResultPage,
        HealthResponse,
        ErrorResponse,
        ModelCard,
    )
    _, schemas = models_json_schema([(contract, "validation") for contract in contracts], title="Darkroom")
    typer.echo(json.dumps(schemas, indent=2))


@app.command()
def plan(
    rate: Annotated[float, typer.Option(min=0.001, help="Images an hour")],
    steps: Annotated[int, typer.Option(min=1, max=200, help="Denoising steps")] = 20,
    step_seconds: Annotated[float | None, typer.Option(min=0, help="Seconds of one image's step, measured")] = None,
    other_seconds: Annotated[float, typer.Option(min=0, help="Seconds of all the rest of an image")] = 0.0,
    result: Annotated[
        Path | None, typer.Option("--from", exists=True, help="A result (status --json) to take steps and seconds from")
    ] = None,
    memory: Annotated[int, typer.Option(min=128, max=10240, help="MB of the Lambda function")] = 3008,
    on: Annotated[
        str, typer.Option(help="Only hosts whose names begin so; a step takes a time of its own on each")
    ] = "",
    prices: Annotated[Path | None, typer.Option(exists=True, help="Another price file")] = None,
    as_json: Json = False,
) -> None:
    """Workers, seconds and dollars for so many images an hour, from measured step times and dated list prices."""
    from dataclasses import asdict

    from ..api import pricing as planning

    if (step_seconds is None) == (result is None):
        raise typer.BadParameter("give --step-seconds or --from FILE, one of them")
    table = planning.prices(prices or planning.PRICES)
    speed = planning.Speed(step_seconds or 0.0, other_seconds)
    if result is not None:
        speed, steps = planning.speed_of(json.loads(result.read_text()))
    every = planning.plans(rate, steps, speed, table, memory=memory)
    made = [one for one in every if one.host.lower().startswith(on.lower())]
    if as_json:
        return typer.echo(json.dumps([asdict(one) for one in made]))
    typer.echo(f"{rate:g} images an hour of {steps} steps; prices of {table['date']}, {table['region']}")
    for one in made:
        dollars = f"${one.dollars_an_hour:.2f} an hour  ${one.dollars_a_thousand:.2f} for 1,000"
        typer.echo(f"{one.host:<24}{one.seconds:7.2f} s an image  {one.workers:3} workers  {dollars}")
    return None


@app.command()
def card(model: ModelOption = None) -> None:
    """Loads the model and prints its card, to be written next to the weights as model_card.json."""
    from ..settings import use
    from ..work.serving import load_engine

    engine = load_engine(use(**({"MODEL_ID": model} if model else {})))
    typer.echo(engine.card.model_dump_json(indent=2))
    engine.close()


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


def _uploaded(settings: Settings, file: Path | None) -> str | None:
    """Uploads an input image; returns its upload_id."""
    from ..aws.store import TaskStore
    from ..client.asking import content_type_of
    from ..contract.ids import new_id

    if file is None:
        return None
    upload_id, body = new_id(), file.read_bytes()
    TaskStore(settings).put_upload(upload_id, body, content_type_of(body))
    return upload_id


if __name__ == "__main__":
    main()
