"""The AWS that tests talk to: moto's server over HTTP, or, with ``--ministack PYTHON``, MiniStack."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import cache, partial
from typing import TYPE_CHECKING, TypeVar
from uuid import uuid4

import botocore.session
import pytest
from botocore.loaders import create_loader

from handler.api.results import Status
from handler.api.submission import Submit
from handler.aws.queue import TaskQueue
from handler.aws.store import TaskStore
from handler.care.rounds import Doctor
from handler.cli.local.aws import CREDENTIALS, EmbeddedAws, create_resources
from handler.contract.record import Record
from handler.engine import kept
from handler.engine.starting import start
from handler.process import around_proxies
from handler.settings import Settings
from handler.work.serving import Generate

from .ministack import ministack
from .support import Clock, PlainEngine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from handler.cli.local.aws import Resources
    from handler.engine.running import PipelineEngine

T = TypeVar("T")
for name in [name for name in os.environ if name.startswith("AWS_")]:
    del os.environ[name]
os.environ.update(CREDENTIALS)
around_proxies()
# botocore looks through its folders and parses megabytes of JSON anew for every session, which took most of the suite's
# time: all sessions share what has been read.
botocore.session.create_loader = cache(create_loader)
# A shell that starts a suite in the background has it ignore SIGINT, and every process that the suite starts, too.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--ministack", metavar="PYTHON", help="run against the MiniStack installed for this interpreter")
    parser.addoption("--awscli", metavar="AWS", help="the AWS command line to run the commands of infra/README.md with")


DRAW = ("tests/engine/", "tests/families/", "tests/work/test_path.py")
"""Tests that load a real pipeline in their own process. So do those that are marked, and that ask for an ``engine``."""
SPAWN = ("tests/cli/test_cli.py", "tests/cli/test_signals.py", "tests/work/test_worker.py")
"""Tests whose subprocesses load one. They stay in one process, too: that has one warm parent for all of them."""
SMALL = ("tests/families/", "tests/engine/test_proof.py")
"""Tests that draw with small pipelines on one core: beside those that spawn, who wait a lot."""


@pytest.hookimpl(tryfirst=True)  # before xdist, which then writes the groups into the names
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """``make test`` runs in several processes: what draws stays in one of them, for two that draw slow each other. It
    begins first, with what spawns workers: these few files take the longest.
    """
    for item in items:
        draws = item.nodeid.startswith(DRAW) or "engine" in getattr(item, "fixturenames", ())
        draws = draws or item.get_closest_marker("pipeline") is not None
        spawns = item.nodeid.startswith(SPAWN) or item.get_closest_marker("spawns")
        if draws or spawns:
            item.add_marker("pipeline")
            elsewhere = spawns or item.nodeid.startswith(SMALL)
            item.add_marker(pytest.mark.xdist_group("spawns" if elsewhere else "pipeline"))
    items.sort(key=lambda item: item.get_closest_marker("pipeline") is None)


@pytest.fixture(autouse=True)
def _nothing_was_proven_before(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Or a test that loads a model would prove nothing, the second time. Within a test what was proven is kept, however
    busy the machine is that the tests run on.
    """
    monkeypatch.setattr("handler.engine.warmup.BUSY", 0.0)
    monkeypatch.setattr(kept, "FOLDER", str(tmp_path_factory.getbasetemp() / f"proofs-{uuid4()}"))


@pytest.fixture(scope="session")
def endpoint(request: pytest.FixtureRequest) -> Iterator[str]:
    python = request.config.getoption("--ministack")
    if python:
        with ministack(python) as url:
            yield url
    else:
        with EmbeddedAws() as aws:
            yield aws.endpoint


@pytest.fixture
def resources(endpoint: str) -> Resources:
    return create_resources(endpoint, visibility=30, max_receives=3)


@pytest.fixture
def environ(endpoint: str, resources: Resources) -> dict[str, str]:
    return {**CREDENTIALS, **resources.variables, "AWS_ENDPOINT_URL": endpoint}


@pytest.fixture
def settings(environ: dict[str, str]) -> Settings:
    return Settings.load(environ)


@pytest.fixture
def store(settings: Settings) -> TaskStore:
    return TaskStore(settings)


@pytest.fixture
def queue(settings: Settings) -> TaskQueue:
    return TaskQueue(settings)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A time that moves when it is told to; S3's own is the same."""
    clock = Clock()
    monkeypatch.setattr(TaskStore, "now", lambda _: clock())
    monkeypatch.setattr(TaskStore, "age", lambda _, stored: clock.age(Record.from_json(stored.body)))
    return clock


@pytest.fixture
def later(clock: Clock) -> Clock:
    """The bucket's own clock is the machine's: so the doctor's has to start there."""
    clock.time = datetime.now(UTC)
    return clock


@pytest.fixture
def doctor(settings: Settings, store: TaskStore, queue: TaskQueue, later: Clock) -> Doctor:
    return Doctor(settings, store, queue, now=later)


@pytest.fixture
def plain() -> PlainEngine:
    return PlainEngine()


@pytest.fixture
def generate(settings: Settings, store: TaskStore, queue: TaskQueue, plain: PlainEngine, clock: Clock) -> Generate:
    return Generate(settings, store, queue, lambda _: plain, now=clock, new_seed=lambda: 1234, worker="worker-1")


@pytest.fixture
def submit(settings: Settings, store: TaskStore, queue: TaskQueue, clock: Clock) -> Submit:
    return Submit(settings, store, queue, now=clock, new_id=lambda: "fresh-id", new_seed=lambda: 1234)


@pytest.fixture
def status(settings: Settings, store: TaskStore, clock: Clock) -> Status:
    return Status(settings, store, now=clock)


@pytest.fixture(scope="session")
def engine() -> Iterator[PipelineEngine]:
    """The built-in model's real pipeline."""
    engine = start(Settings())
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def one_core() -> Iterator[None]:
    """Small models are no slower so, and many times faster where other processes want the cores."""
    import torch

    def elsewhere(work: Callable[[], T]) -> T:
        """In a thread of its own: what is set there is the default of all later ones."""
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(work).result()

    before, default = torch.get_num_threads(), elsewhere(torch.get_num_threads)
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    elsewhere(partial(torch.set_num_threads, default))
