"""``darkroom``: the whole path on this machine, or against a deployment."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from ..contract.record import Record
from ..errors import DarkroomError, FieldError, InvalidRequest, SettingsError
from ..process import around_proxies
from .deployment import deployment, with_model
from .drawing import drawing
from .faults import of_the_system, told
from .operations import operations
from .options import Json, ModelOption
from .output import save
from .remote import remote

app = typer.Typer(add_completion=True, pretty_exceptions_enable=False, help=__doc__)
for one in (drawing, remote, operations):
    app.add_typer(one)


def main() -> None:
    """Exit status: 0 done, 1 the task did not complete or something broke, 2 the command line, a setting or the request
    is wrong, 3 the timeout was reached and the task goes on, 130 interrupted, 143 terminated.
    """
    around_proxies()
    try:
        sys.exit(app(sys.argv[1:] or ["--help"], standalone_mode=False))
    except typer.TyperException as usage:
        line = f"{usage.format_message().rstrip('.')}; see darkroom --help"
        _complain(InvalidRequest([FieldError("command line", line)]), line)
    except DarkroomError as fault:
        _complain(fault, told(fault, verbose="--verbose" in sys.argv or "-v" in sys.argv))
    except OSError as fault:
        _complain(of_the_system(fault), str(of_the_system(fault)))


def _complain(fault: DarkroomError, line: str) -> NoReturn:
    if "--json" in sys.argv:
        typer.echo(json.dumps(fault.envelope()))
    Console(stderr=True).print(line, style="red", highlight=False, markup=False, soft_wrap=True)
    sys.exit(2 if isinstance(fault, SettingsError | InvalidRequest) else 1)


@app.command()
def worker() -> None:
    """Serves the queue until SIGTERM: what the container does outside Lambda."""
    from ..worker import main as work

    raise typer.Exit(work(deployment("bucket", "queue_url")))


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
    bursts: Annotated[
        int, typer.Option(min=0, help="Bursts a day for which GPU hosts come and go; 0 counts none of their tails")
    ] = 0,
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
    every = planning.plans(rate, steps, speed, table, memory=memory, bursts=bursts)
    made = [one for one in every if one.host.lower().startswith(on.lower())]
    if as_json:
        return typer.echo(json.dumps([asdict(one) for one in made]))
    typer.echo(f"{rate:g} images an hour of {steps} steps; prices of {table['date']}, {table['region']}")
    if bursts:
        before, after = (f"{seconds / 60:g} min" for seconds in (planning.START, planning.END))
        typer.echo(f"{bursts} bursts a day: GPU hosts are paid for {before} before their first picture, {after} after")
    for one in made:
        dollars = f"${one.dollars_an_hour:.2f} an hour  ${one.dollars_a_thousand:.2f} for 1,000"
        tails = f"  and ${one.tail_dollars_a_day:.2f} a day of tails" if one.tail_dollars_a_day else ""
        typer.echo(f"{one.host:<24}{one.seconds:7.2f} s an image  {one.workers:3} workers  {dollars}{tails}")
    return None


@app.command()
def card(
    model: ModelOption = None,
    write: Annotated[bool, typer.Option("--write", help="Into the model's folder, as model_card.json")] = False,
) -> None:
    """Loads the model and prints its card, or writes it next to the weights."""
    from ..contract.health import card_beside
    from ..work.serving import load_engine

    settings = with_model(model)
    place = Path(settings.model_source)
    if write and not place.exists():
        raise typer.BadParameter(f"--write needs a model in a folder, and {settings.model_name} is none")
    engine = load_engine(settings)
    text = engine.card.model_dump_json(indent=2)
    engine.close()
    typer.echo(save(card_beside(place), f"{text}\n".encode()) if write else text)


@app.command()
def prove(
    out: Annotated[Path, typer.Option(help="A folder for the files; copy them beside the weights, or into an image")],
    model: ModelOption = None,
) -> None:
    """Loads the model as a worker does, and writes what it proves, measures and compiles on this device.

    Workers on such a device, of this version and with these settings, begin with it and need not do it anew.
    """
    from ..work.proving import prove as proven

    for file, digest in proven(with_model(model), out).items():
        typer.echo(f"{file}" if not digest else f"{file}\nCOMPILED_SHA256={digest}")


if __name__ == "__main__":
    main()
