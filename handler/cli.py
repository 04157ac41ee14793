"""``darkroom``: the whole path on this machine, or against a deployment."""

from __future__ import annotations

import json
import sys
import time
import urllib.request
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from . import tasks
from .errors import DarkroomError, Internal, InvalidRequest, ModelUnavailable, SettingsError
from .logs import logger
from .operations import operations
from .settings import Settings

if TYPE_CHECKING:
    from .status import Status

app = typer.Typer(no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False, help=__doc__)
app.add_typer(operations)
err = Console(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, for scripts")]
Endpoint = Annotated[
    str | None, typer.Option(help="Use the AWS at this URL (BUCKET and QUEUE_URL set) in place of the embedded one")
]
ModelOption = Annotated[str | None, typer.Option("--model", help="Hub id, folder or s3://bucket/prefix")]
Prompt = Annotated[str | None, typer.Argument(help="What to draw")]
Negative = Annotated[str | None, typer.Option("--negative-prompt", help="What to keep out of the picture")]
Steps = Annotated[int | None, typer.Option("--steps", help="Denoising steps, 1 to 200")]
Guidance = Annotated[float | None, typer.Option("--guidance", help="How closely to follow the prompt, 0 to 50")]
Seed = Annotated[int | None, typer.Option(help="Same seed, same picture")]
Width = Annotated[int | None, typer.Option(help="Pixels")]
Height = Annotated[int | None, typer.Option(help="Pixels")]
Number = Annotated[int | None, typer.Option("--num-images", help="1 to 8")]
Format = Annotated[str | None, typer.Option("--format", help="png, jpeg or webp")]
Quality = Annotated[int | None, typer.Option(help="1 to 100, for jpeg and webp")]
Name = Annotated[str | None, typer.Option("--task-id", help="Names the task")]


def main() -> None:
    """Exit status: 0 done, 1 the task failed or something broke, 2 the command line or a setting is wrong."""
    try:
        app()
    except DarkroomError as fault:
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
    output_format: Format = None,
    quality: Quality = None,
    task_id: Name = None,
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
    from .local.session import invoke_event, invoke_request, surroundings

    if (prompt is None) == (event is None):
        raise typer.BadParameter("give a prompt or --event FILE, one of them")
    logger.setLevel("INFO" if verbose else "CRITICAL")
    with surroundings(endpoint, model) as settings:
        if event is not None:
            results = invoke_event(settings, _recorded(event))
        else:
            asked = _body(
                prompt=prompt,
                negative_prompt=negative_prompt,
                num_inference_steps=steps,
                guidance_scale=guidance,
                seed=seed,
                width=width,
                height=height,
                num_images=num_images,
                output_format=output_format,
                quality=quality,
                task_id=task_id,
            )
            results = [invoke_request(settings, asked, quiet=as_json)]
        for result in results:
            result["files"] = [str(path) for path in download(result, out)]
        _show(results, as_json=as_json)
    if any(result["status"] != "completed" for result in results):
        raise typer.Exit(1)


@app.command()
def serve(
    port: Annotated[int, typer.Option(help="On 127.0.0.1; 0 takes a free one")] = 8000,
    model: ModelOption = None,
    endpoint: Endpoint = None,
) -> None:
    """Serves the HTTP API with a worker beside it until Ctrl-C."""
    from .local.session import serve_forever, surroundings

    with surroundings(endpoint, model) as settings:
        err.print(f"AWS at {settings.aws_endpoint_url or 'its own place'}, bucket {settings.bucket}", highlight=False)
        worked = serve_forever(settings, port, lambda text: err.print(text, highlight=False))
    if not worked:
        raise ModelUnavailable("the worker ended: the model cannot be loaded; the log tells why")


@app.command()
def worker() -> None:
    """Serves the queue until SIGTERM: what the container does outside Lambda."""
    from .worker import main as work

    raise typer.Exit(work())


@app.command()
def submit(
    prompt: Annotated[str, typer.Argument(help="What to draw")],
    negative_prompt: Negative = None,
    steps: Steps = None,
    guidance: Guidance = None,
    seed: Seed = None,
    num_images: Number = None,
    task_id: Name = None,
    as_json: Json = False,
) -> None:
    """Records and queues a task of the deployment that BUCKET and QUEUE_URL name; prints its id."""
    from .storage import TaskStore
    from .submit import Submit
    from .taskqueue import TaskQueue

    settings = Settings.load()
    asked = _body(
        prompt=prompt,
        negative_prompt=negative_prompt,
        num_inference_steps=steps,
        guidance_scale=guidance,
        seed=seed,
        num_images=num_images,
        task_id=task_id,
    )
    record = Submit(settings, TaskStore(settings), TaskQueue(settings)).submit(json.dumps(asked))
    typer.echo(json.dumps({"task_id": record.task_id, "status": record.status}) if as_json else record.task_id)


@app.command()
def status(task_id: str, as_json: Json = False) -> None:
    """Shows a task: its record, with presigned URLs."""
    _show([_status().result(task_id)], as_json=as_json)


@app.command()
def cancel(task_id: str) -> None:
    """Cancels a task; a worker that is drawing it stops within seconds."""
    from .storage import TaskStore
    from .submit import Submit
    from .taskqueue import TaskQueue

    settings = Settings.load()
    record = Submit(settings, TaskStore(settings), TaskQueue(settings)).cancel(task_id)
    typer.echo(f"{task_id} is {record.status}")


@app.command()
def wait(
    task_id: str,
    timeout: Annotated[float, typer.Option(help="Seconds")] = 600,
    out: Annotated[Path | None, typer.Option(help="Folder for the pictures")] = None,
    as_json: Json = False,
) -> None:
    """Waits until a task is terminal, then shows it, and fetches its pictures where --out says so."""
    reader, deadline = _status(), time.monotonic() + timeout
    result = reader.result(task_id)
    while result["status"] not in tasks.TERMINAL and time.monotonic() < deadline:
        time.sleep(min(2.0, max(0.0, deadline - time.monotonic())))
        result = reader.result(task_id)
    if out is not None:
        result["files"] = [str(path) for path in download(result, out)]
    _show([result], as_json=as_json)
    if result["status"] != "completed":
        raise typer.Exit(1)


@app.command()
def schema() -> None:
    """Prints the JSON Schemas of all that crosses a boundary."""
    from pydantic.json_schema import models_json_schema

    from .card import ModelCard
    from .request import GenerationRequest
    from .responses import ErrorResponse, HealthResponse, ResultPage, ResultResponse, TaskResponse

    contracts = (
        GenerationRequest,
        tasks.Record,
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

    from . import plan as planning

    if (step_seconds is None) == (result is None):
        raise typer.BadParameter("give --step-seconds or --from FILE, one of them")
    table = planning.prices(prices or planning.PRICES)
    speed = planning.Speed(step_seconds or 0.0, other_seconds)
    if result is not None:
        speed, steps = planning.measured(json.loads(result.read_text()))
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
    from .engine.running import start
    from .settings import use

    engine = start(use(**({"MODEL_ID": model} if model else {})))
    typer.echo(engine.card.model_dump_json(indent=2))
    engine.close()


def download(result: dict[str, Any], folder: Path) -> list[Path]:
    """Fetches a result's images through their presigned URLs into ``folder``; checks each against its sha256."""
    paths = []
    for index, image in enumerate(result["images"]):
        with urllib.request.urlopen(image["url"], timeout=60) as reply:  # noqa: S310
            body = reply.read()
        if sha256(body).hexdigest() != image["sha256"]:
            raise Internal("the image that came back is not the one that was written")
        suffix = "" if len(result["images"]) == 1 else f"-{index}"
        extension = image["content_type"].removeprefix("image/").replace("jpeg", "jpg")
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{result['task_id']}{suffix}.{extension}"
        path.write_bytes(body)
        paths.append(path)
    return paths


def _recorded(file: Path) -> dict[str, Any]:
    try:
        event: dict[str, Any] = json.loads(file.read_text())
        _ = [record["body"] for record in event["Records"]]
    except (ValueError, KeyError, TypeError) as fault:
        raise typer.BadParameter(f"{file} holds no SQS event: {fault!r}") from fault
    return event


def _body(**given: Any) -> dict[str, Any]:
    return {name: value for name, value in given.items() if value is not None}


def _status() -> Status:
    from .status import Status
    from .storage import TaskStore

    settings = Settings.load()
    return Status(settings, TaskStore(settings))


def _show(results: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        return typer.echo(json.dumps(results[0] if len(results) == 1 else results))
    for result in results:
        _show_one(result)
    return None


def _show_one(result: dict[str, Any]) -> None:
    from .settings import terminal_variables
    from .terminal import picture_escape

    typer.echo(json.dumps(result, indent=2))
    for image, path in zip(result["images"], result.get("files", []), strict=False):
        drawn = picture_escape(Path(path).read_bytes(), image["content_type"], terminal_variables())
        if drawn and sys.stdout.isatty():
            typer.echo(drawn)
        typer.echo(f"{path}  seed {image['seed']}  sha256 {image['sha256']}")
    if result["timings"]:
        typer.echo("seconds: " + ", ".join(f"{name} {value:.3g}" for name, value in result["timings"].items()))
    if result["error"]:
        typer.echo(f"{result['error']['code']}: {result['error']['message']}", err=True)


if __name__ == "__main__":
    main()
