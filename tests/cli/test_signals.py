"""Ctrl-C and SIGTERM, as a person or a host sends them to whole commands."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from ..support import on_one_core, record_of
from ..warm import Command

if TYPE_CHECKING:
    from collections.abc import Iterator

    from handler.aws.queue import TaskQueue
    from handler.aws.store import TaskStore

ROOT = Path(__file__).parents[2]
LONG = ("--steps", "200", "--width", "96", "--height", "96", "--num-images", "4")
BEATS = {"FIRST_BEAT": "0", "BEAT_EVERY": "0.2"}
STOPPING = "stopping: what is drawn is saved at its next step; once more ends at once"


@contextmanager
def serving(*options: str) -> Iterator[subprocess.Popen[str]]:
    """``darkroom serve``, whose stdout and stderr can be read."""
    base = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "TERM": "dumb", "MAX_BATCH": "2"}
    line = [sys.executable, "-m", "handler.cli.main", "serve", "--port", "0", *options]
    with on_one_core():
        child = subprocess.Popen(line, env=base, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield child
    finally:
        child.kill()
        child.wait()
        for pipe in (child.stdout, child.stderr):
            if pipe:
                pipe.close()


def read(url: str) -> Any:
    with urllib.request.urlopen(url) as answer:
        return json.loads(answer.read())


def begun(store: TaskStore, task_id: str) -> None:
    """Waits until a step of the task is told."""
    ends = time.monotonic() + 90
    while time.monotonic() < ends:
        stored = store.read(task_id)
        record = json.loads(stored.body) if stored else {}
        if record.get("status") == "processing" and (record.get("progress") or {}).get("step"):
            return
        time.sleep(0.1)
    raise AssertionError("the task never began")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_invoke_saves_what_it_draws_and_says_how_to_go_on(
    tmp_path: Path, environ: dict[str, str], store: TaskStore, queue: TaskQueue, number: int, status: int
) -> None:
    asked = ("invoke", "fox", *LONG, "--task-id", "mine", "--aws", "--out", str(tmp_path))
    with Command("handler.cli.main", asked, environ | BEATS) as child:
        begun(store, "mine")
        began = time.monotonic()
        child.send_signal(number)
        ended = child.wait(30)
        out, err = child.out, child.err
    assert time.monotonic() - began < 10
    assert (ended, out) == (status, "")
    record = record_of(store, "mine")
    assert record.status == "pending"
    assert record.saved_step > 0
    assert STOPPING in err
    assert f"{record.saved_step} of 200 steps saved; to go on: darkroom invoke fox --steps 200" in err
    assert "Traceback" not in err
    assert queue.receive(wait=1), "somebody else can go on"


def test_the_second_one_ends_at_once(environ: dict[str, str], store: TaskStore) -> None:
    """Nothing is left processing; a worker's first signal would have finished what is almost done."""
    with Command("handler", (), environ | BEATS) as child:
        from handler.aws.queue import TaskQueue
        from handler.settings import Settings

        body = {"prompt": "fox", "num_inference_steps": 200, "width": 96, "height": 96, "num_images": 8}
        TaskQueue(Settings.load(environ)).send(json.dumps({**body, "task_id": "mine"}))
        begun(store, "mine")
        for _ in range(2):
            child.send_signal(signal.SIGTERM)
            time.sleep(0.02)
        began = time.monotonic()
        ended = child.wait(30)
    assert time.monotonic() - began < 10
    assert ended in {0, 143}  # 0: it was done with the first before the second came
    assert record_of(store, "mine").status == "pending"


def test_serve_is_a_place_to_develop_against(tmp_path: Path) -> None:
    lines: list[str] = []
    with serving("--env", str(tmp_path / "env")) as child:
        assert child.stderr is not None
        assert child.stdout is not None
        for line in child.stderr:
            lines.append(line.strip())
            if line.startswith("http://"):
                break
        exports = [child.stdout.readline().strip() for _ in range(8)]
        health_of = partial(read, lines[-1].split()[0] + "/health")
        assert health_of()["status"] == "ok"  # and whatever it says of the model now is not said for half a minute
        exported = dict(line.removeprefix("export ").split("=", 1) for line in exports)
        variables = {name: value.strip("'") for name, value in exported.items()}
        (client,) = re.findall(r"```python\n(import boto3.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
        base = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
        subprocess.run([sys.executable, "-c", client], env=base | variables, cwd=tmp_path, check=True, timeout=90)
        with Image.open(tmp_path / "fox.png") as drawn:
            assert drawn.size == (64, 64)
        health = health_of()
        assert (health["status"], health["model_status"], health["reason"]) == ("ok", "available", None)
        rest = threading.Thread(target=lambda: lines.extend(child.stderr or ()), daemon=True)
        rest.start()
        child.send_signal(signal.SIGINT)
        assert child.wait(30) == 130
        rest.join(10)
    assert (tmp_path / "env").read_text().splitlines() == exports
    wanted = {"BUCKET", "QUEUE_URL", "AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    assert set(exported) == wanted | {"AWS_REGION", "AWS_DEFAULT_REGION", "DARKROOM_ENDPOINT"}
    assert "bucket and queues are in memory: they end with this process" in lines
    assert "Traceback" not in "".join(lines)
