"""``darkroom submit``, ``wait`` and so on: the tasks of a deployment, through the client."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..clock import utc_now
from ..contract.statuses import STATUSES
from ..errors import StillRunning
from .deployment import deployment
from .options import Json
from .output import can_be_written
from .request_options import takes_request
from .showing import ProgressLines, print_json, print_results, print_table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..client import Darkroom, Picture
    from ..contract.responses import ResultResponse

remote = typer.Typer()
STILL_RUNNING = 3
PATIENCE = 20.0
"""Seconds for which a call is tried again: somebody is waiting."""
MOST_WAITED = 64
"""Tasks that are waited for at a time."""

Api = Annotated[
    str | None,
    typer.Option(metavar="URL", help="The HTTP API; else DARKROOM_ENDPOINT, else BUCKET and QUEUE_URL directly"),
]
Key = Annotated[
    str | None, typer.Option("--api-key", help="Sent as X-API-Key; better DARKROOM_API_KEY, which no ps shows")
]
Out = Annotated[Path | None, typer.Option(help="Folder for the pictures")]
Timeout = Annotated[float, typer.Option(min=0, help="Seconds; the task goes on after")]
Ids = Annotated[list[str], typer.Argument(metavar="TASK_ID...")]


@remote.command()
@takes_request
def submit(
    prompt: Annotated[str, typer.Argument(help="What to draw")],
    asked: dict[str, Any],
    image: Path | None = None,
    quote: Annotated[bool, typer.Option("--quote", help="Only say what it would run and cost")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Stay until it has ended")] = False,
    timeout: Timeout = 600,
    out: Out = None,
    api: Api = None,
    api_key: Key = None,
    as_json: Json = False,
) -> None:
    """Queues a task and prints its id; with --wait or --out stays with it."""
    if out is not None:
        can_be_written(out)
    with _service(api, api_key) as darkroom:
        request = {"prompt": prompt, **asked}
        if image is not None:
            request["image"] = "of-yours" if quote else darkroom.upload(image)
        if quote:
            return typer.echo(darkroom.quote(request).model_dump_json(indent=None if as_json else 2))
        task = darkroom.submit(request)
        if wait or out is not None:
            return _wait_for(darkroom, [task.task_id], timeout, out, as_json=as_json)
    return typer.echo(task.model_dump_json() if as_json else task.task_id)


@remote.command()
def status(task_ids: Ids, api: Api = None, api_key: Key = None, as_json: Json = False) -> None:
    """Shows tasks as they are now, with fresh presigned URLs."""
    with _service(api, api_key) as darkroom:
        results = [darkroom.result(task_id) for task_id in task_ids]
    if as_json:
        print_json([one.model_dump(mode="json") for one in results])
    else:
        print_results([(one, []) for one in results], utc_now())


@remote.command()
def wait(
    task_ids: Ids,
    timeout: Timeout = 600,
    out: Out = None,
    api: Api = None,
    api_key: Key = None,
    as_json: Json = False,
) -> None:
    """Waits until all have ended, then shows them, and fetches their pictures where --out says so.

    A task that is not known yet is waited for as well: a message to SQS is, until a worker reads it.
    """
    if out is not None:
        can_be_written(out)
    with _service(api, api_key) as darkroom:
        _wait_for(darkroom, task_ids, timeout, out, as_json=as_json)


@remote.command()
def download(
    task_ids: Ids,
    out: Annotated[Path, typer.Option(help="Folder for the pictures")] = Path("pictures"),
    api: Api = None,
    api_key: Key = None,
    as_json: Json = False,
) -> None:
    """Fetches the pictures of completed tasks, each checked against its sha256, and prints where they are."""
    can_be_written(out)
    with _service(api, api_key) as darkroom:
        for task_id in task_ids:
            files = [str(path) for _, path in _saved(darkroom, task_id, out)]
            typer.echo(json.dumps({"task_id": task_id, "files": files}) if as_json else "\n".join(files))


@remote.command()
def cancel(
    task_ids: Ids,
    unseen: Annotated[
        bool, typer.Option("--unseen", help="Also a message to SQS that no worker has read yet; it is consumed undrawn")
    ] = False,
    api: Api = None,
    api_key: Key = None,
    as_json: Json = False,
) -> None:
    """Cancels tasks; a worker that is drawing one stops within seconds."""
    with _service(api, api_key) as darkroom:
        for task_id in task_ids:
            task = darkroom.cancel(task_id, unseen=unseen)
            typer.echo(task.model_dump_json() if as_json else f"{task_id} is {task.status}")


@remote.command()
def retry(task_id: str, api: Api = None, api_key: Key = None, as_json: Json = False) -> None:
    """A new task with the request and seed of one that has ended; prints its id."""
    with _service(api, api_key) as darkroom:
        task = darkroom.retry(task_id)
    typer.echo(task.model_dump_json() if as_json else task.task_id)


@remote.command(name="list")
def list_(
    limit: Annotated[int, typer.Option(min=1, help="At most so many")] = 20,
    status: Annotated[str | None, typer.Option(help="Only those that are: " + ", ".join(STATUSES))] = None,
    tag: Annotated[str | None, typer.Option(help="Only those that have this tag")] = None,
    api: Api = None,
    api_key: Key = None,
    as_json: Json = False,
) -> None:
    """Lists tasks, newest first. With --json an object a line, each as soon as it is known."""
    if status is not None and status not in STATUSES:
        raise typer.BadParameter(f"--status must be one of {', '.join(STATUSES)}")
    with _service(api, api_key) as darkroom:
        results = darkroom.results(limit, status=status, tag=tag)
        if not as_json:
            return print_table(list(results), utc_now())
        for one in results:
            typer.echo(one.model_dump_json())
    return None


@contextmanager
def _service(api: str | None, api_key: str | None) -> Iterator[Darkroom]:
    from ..client import Darkroom
    from ..settings import Settings

    if not (api or Settings.load().darkroom_endpoint):
        deployment("bucket")
    with Darkroom(endpoint=api, api_key=api_key, patience=PATIENCE) as darkroom:
        yield darkroom


def _wait_for(darkroom: Darkroom, task_ids: list[str], timeout: float, out: Path | None, *, as_json: bool) -> None:
    """Waits for all at once. Exits with 3 if one still runs, else with 1 if one did not complete."""
    names = list(dict.fromkeys(task_ids))
    with ProgressLines(names, quiet=as_json) as lines, ThreadPoolExecutor(min(len(names), MOST_WAITED)) as pool:
        try:
            ended = list(pool.map(partial(_await, darkroom, lines, timeout), names))
        except KeyboardInterrupt:
            typer.echo(f"still at work; look again: darkroom wait {' '.join(names)}", err=True)
            pool.shutdown(wait=False, cancel_futures=True)
            lines.__exit__()
            raise
    told = [(one, _saved(darkroom, one, out) if one else []) for one in ended]
    if as_json:
        lines_of = [
            one.model_dump(mode="json") if one else {"task_id": name} for name, one in zip(names, ended, strict=True)
        ]
        files = [[str(path) for _, path in saved] for _, saved in told]
        print_json([one | {"files": paths} for one, paths in zip(lines_of, files, strict=True)])
    else:
        print_results([(one, saved) for one, saved in told if one is not None], utc_now())
    statuses = {result.status if result else "pending" for result in ended}
    if statuses & {"pending", "processing"}:
        running = [name for name, one in zip(names, ended, strict=True) if one is None or one.completed_at is None]
        typer.echo(f"not over after {timeout:g} s, and goes on: {', '.join(running)}", err=True)
        raise typer.Exit(STILL_RUNNING)
    if statuses != {"completed"}:
        raise typer.Exit(1)


def _await(darkroom: Darkroom, lines: ProgressLines, timeout: float, task_id: str) -> ResultResponse | None:
    try:
        return darkroom.wait(
            task_id,
            timeout=timeout,
            on_change=partial(lines.show, task_id),
            on_unseen=partial(lines.show_unseen, task_id),
        )
    except StillRunning as fault:
        return fault.result


def _saved(darkroom: Darkroom, task: str | ResultResponse, folder: Path | None) -> list[tuple[Picture, Path]]:
    """Fetches a task's pictures into a folder; none without one, or of a task that did not complete."""
    if folder is None or not (isinstance(task, str) or task.status == "completed"):
        return []
    return [(one, one.save(folder)) for one in darkroom.images(task)]
