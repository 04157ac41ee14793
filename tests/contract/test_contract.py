"""The API against its own description, over real HTTP: schemathesis makes requests up and holds every answer to it.

The server is that of ``darkroom serve``, with a worker beside it whose engine draws squares: what is asked for at
random would keep a pipeline busy for hours.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from handler.work.serving import Generate
from handler.worker import Worker

from ..cli.test_http import served
from ..support import PlainEngine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from handler.aws.queue import TaskQueue
    from handler.aws.store import TaskStore
    from handler.settings import Settings

pytestmark = pytest.mark.slow

SEED, EXAMPLES = "1", "20"
ROOT = Path(__file__).parents[2]
WITHOUT = {
    "use_after_free": "DELETE cancels; the task stays to be read",
    "ignored_auth": "who may call is API Gateway's business: the handlers' description says where a key goes",
}
"""Checks that ask for what this API does not promise."""


@pytest.fixture
def site_url(settings: Settings, store: TaskStore, queue: TaskQueue) -> Iterator[str]:
    engine = PlainEngine()
    worker = Worker(Generate(settings, store, queue, lambda _: engine), queue, settings, poll_seconds=1)
    thread = threading.Thread(target=worker.run, daemon=True)
    thread.start()
    while store.read_health() is None:
        thread.join(0.05)
    with served(settings, store, queue) as site:
        yield site.url
    worker.stop()
    thread.join()


def test_every_answer_is_as_described(site_url: str, tmp_path: Path) -> None:
    """Examples, edges, random requests, and walks along the links: submit, ask, cancel, retry, page by page."""
    command = [sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()", "run"]
    options = [
        *("--phases", "examples,coverage,fuzzing,stateful", "--checks", "all", "--exclude-checks", ",".join(WITHOUT)),
        *("--max-examples", EXAMPLES, "--seed", SEED, "--generation-database", "none", "--request-timeout", "30"),
        *("--continue-on-failure", "--no-color"),
    ]
    done = subprocess.run(
        [*command, *options, f"{site_url}/openapi.json"],
        env={
            "PATH": "/usr/bin:/bin",
            "HOME": str(tmp_path),
            "SCHEMATHESIS_HOOKS": "tests.contract.contract_hooks",
            "PYTHONPATH": str(ROOT),
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Stateful" in done.stdout
