"""The container as a worker, against the embedded AWS."""

from __future__ import annotations

import signal
import time
import urllib.request
from hashlib import sha256
from typing import TYPE_CHECKING

import pytest

from handler.work.liveness import MOST_SECONDS

from ..work.test_worker import wait_for

if TYPE_CHECKING:
    from handler.aws.queue import TaskQueue
    from handler.aws.store import TaskStore

    from .container import Image

pytestmark = pytest.mark.image

APPLE = '{"prompt": "a red apple on a blue background", "num_inference_steps": 8, "seed": 7}'


def test_a_picture_comes_out_of_the_container(
    image: Image, environ: dict[str, str], store: TaskStore, queue: TaskQueue
) -> None:
    task_id = queue.send(APPLE)
    with image.run(*image.command, environ=environ) as worker:
        record = wait_for(store, task_id, "completed")
        worker.send_signal(signal.SIGTERM)
        log, _ = worker.communicate(timeout=20)
    assert worker.returncode == 0, log
    (picture,) = record.images
    with urllib.request.urlopen(store.presign(picture.key)) as reply:
        body = reply.read()
    assert body.startswith(b"\x89PNG")
    assert sha256(body).hexdigest() == picture.sha256
    assert record.model is not None
    assert record.model.id == "built-in"
    assert "Traceback" not in log
    assert "Warning" not in log
    assert queue.receive(wait=1) == []


def test_its_health_check_looks_at_the_workers_own_sign_of_life(image: Image, environ: dict[str, str]) -> None:
    """In one container: before the worker, beside it, and long after its last turn."""
    check = " ".join(image.config["Healthcheck"]["Test"][1:])
    script = f"""
{check} && exit 1
python -m handler & worker=$!
for _ in $(seq 100); do {check} 2>/dev/null && break; sleep 0.1; done
{check} || exit 2
kill -TERM $worker; wait $worker || exit 3
touch -d '-{MOST_SECONDS + 1:.0f} seconds' "$ALIVE_FILE"
{check} && exit 4
exit 0
"""
    began = time.monotonic()
    text = image.output("/bin/sh", "-c", script, environ=environ)
    assert "no sign of life" in text
    assert f"{MOST_SECONDS + 1:.0f} s old" in text
    assert time.monotonic() - began < 60
