"""What CloudWatch is told: one line for each event, in its embedded format, and only where it is wanted."""

from __future__ import annotations

import io
import json
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from handler.api.submission import Submit
from handler.aws.metrics import Metrics
from handler.care.deadletters import DeadLetters
from handler.errors import Internal, NotFinite, OutOfMemory, OutOfTime, UnsafeContent
from handler.logs import logger
from handler.work.serving import Generate

from ..support import PlainEngine, http_event, sqs_event

if TYPE_CHECKING:
    from collections.abc import Iterator

    from handler.aws.queue import TaskQueue
    from handler.aws.store import TaskStore
    from handler.errors import DarkroomError
    from handler.settings import Settings

FOX = '{"prompt": "a secret fox", "task_id": "mine"}'
TRACE = "Root=1-67891233-abcdef012345678912345678;Parent=53995c3f42cd8ad8;Sampled=1"


def told(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.fixture
def metered(settings: Settings) -> Settings:
    return replace(settings, metrics=True)


@pytest.fixture
def generate(metered: Settings, store: TaskStore, queue: TaskQueue, plain: PlainEngine) -> Generate:
    return Generate(metered, store, queue, lambda _: plain)


def test_a_finished_task(generate: Generate, capsys: pytest.CaptureFixture[str]) -> None:
    generate.handle(sqs_event(FOX), None)
    (line,) = told(capsys)
    (about,) = line["_aws"]["CloudWatchMetrics"]
    assert (about["Namespace"], about["Dimensions"]) == ("Darkroom", [["stack"]])
    units = {one["Name"]: one["Unit"] for one in about["Metrics"]}
    assert (units["TotalSeconds"], units["ImageBytes"], units["Images"]) == ("Seconds", "Bytes", "Count")
    assert (line["TasksCompleted"], line["ColdStarts"], line["BatchSize"]) == ([1.0], [1.0], [1.0])
    assert line["DenoiseSeconds"] == [0.02]
    assert line["ImageBytes"][0] > 0


@pytest.mark.parametrize(
    ("body", "fault", "code", "counted"),
    [
        (FOX, OutOfMemory("too large"), "OUT_OF_MEMORY", "TasksFailed"),
        (FOX, NotFinite("overflows"), "INTERNAL", "TasksFailed"),
        (FOX, OutOfTime("too late"), "TIMED_OUT", "TasksFailed"),
        (FOX, UnsafeContent("unsafe"), "UNSAFE_CONTENT", "TasksRefused"),
        ('{"prompt": ""}', None, "INVALID_REQUEST", "TasksRefused"),
    ],
)
def test_a_task_that_failed_or_was_asked_for_in_vain(
    generate: Generate,
    plain: PlainEngine,
    capsys: pytest.CaptureFixture[str],
    body: str,
    fault: DarkroomError | None,
    code: str,
    counted: str,
) -> None:
    """What its caller did wrong is counted apart: the alarm is for our own faults."""
    plain.fault = fault
    generate.handle(sqs_event(body), None)
    failed, by_code = told(capsys)
    assert failed.keys() & {"TasksFailed", "TasksRefused"} == {counted}
    assert failed[counted] == [1.0]
    assert (by_code["code"], by_code["FailedByCode"]) == (code, [1.0])
    assert sorted(by_code["_aws"]["CloudWatchMetrics"][0]["Dimensions"][0]) == ["code", "stack"]


@pytest.mark.parametrize(
    ("queue_url", "stack"),
    [
        ("https://sqs.us-east-1.amazonaws.com/123456789012/prod-2-tasks", "prod-2"),
        ("https://sqs.us-east-1.amazonaws.com/123456789012/pictures", "pictures"),
        ("", "darkroom"),
    ],
)
def test_stacks_are_told_apart(
    metered: Settings, capsys: pytest.CaptureFixture[str], queue_url: str, stack: str
) -> None:
    Metrics(replace(metered, queue_url=queue_url)).cancelled()
    (line,) = told(capsys)
    assert line["stack"] == stack


def test_a_model_that_cannot_be_loaded(
    metered: Settings, store: TaskStore, queue: TaskQueue, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its tasks wait and none fails, so that nothing else would tell."""

    def load(_: Settings) -> PlainEngine:
        raise OSError("no weights")

    Generate(metered, store, queue, load).handle(sqs_event(FOX), None)
    (line,) = told(capsys)
    assert line["ModelUnavailable"] == [1.0]


def test_wasted_steps(generate: Generate, plain: PlainEngine, capsys: pytest.CaptureFixture[str]) -> None:
    plain.fault = Internal("passing")
    generate.handle(sqs_event(FOX), None)
    (line,) = told(capsys)
    assert line["WastedSteps"] == [3.0]  # begun with the fourth, which nobody knows to be done


def test_a_cancelled_and_an_exhausted_task(
    metered: Settings, store: TaskStore, queue: TaskQueue, capsys: pytest.CaptureFixture[str]
) -> None:
    submit = Submit(metered, store, queue)
    submit.submit(FOX)
    submit.cancel("mine")
    submit.cancel("mine")
    DeadLetters(metered, store, None).handle(sqs_event("nonsense"), None)
    cancelled, failed, by_code = told(capsys)
    assert cancelled["TasksCancelled"] == [1.0]
    assert (failed["TasksFailed"], by_code["code"]) == ([1.0], "RETRIES_EXHAUSTED")


def test_nothing_is_told_unless_it_is_wanted(
    settings: Settings, store: TaskStore, queue: TaskQueue, plain: PlainEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    Generate(settings, store, queue, lambda _: plain).handle(sqs_event(FOX), None)
    assert told(capsys) == []


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What the logger writes, as text."""
    handler, stream = logger.registered_handler, io.StringIO()
    assert isinstance(handler, logging.StreamHandler)
    usual = handler.setStream(stream)
    yield stream
    if usual is not None:
        handler.setStream(usual)


def lines_of(log: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.getvalue().splitlines()]


def test_every_line_names_task_attempt_and_trace(
    settings: Settings, store: TaskStore, queue: TaskQueue, plain: PlainEngine, log: io.StringIO
) -> None:
    """From the door through the queue to the worker."""
    Submit(settings, store, queue).handle(
        http_event("POST", "/generate", body=FOX, headers={"X-Amzn-Trace-Id": TRACE}), None
    )
    (message,) = queue.receive(wait=1)
    assert message.trace == TRACE
    event = sqs_event(message.body, ids=[message.message_id])
    event["Records"][0]["attributes"] = dict(message.attributes)
    Generate(settings, store, queue, lambda _: plain).handle(event, None)
    (completed,) = [line for line in lines_of(log) if line["message"] == "completed"]
    assert (completed["task_id"], completed["attempt"], completed["trace_id"]) == ("mine", 1, TRACE)
    assert "secret" not in log.getvalue()


def test_prompts_are_logged_only_where_that_is_wanted(
    settings: Settings, store: TaskStore, queue: TaskQueue, plain: PlainEngine, log: io.StringIO
) -> None:
    Generate(replace(settings, log_prompts=True), store, queue, lambda _: plain).handle(sqs_event(FOX), None)
    (claimed,) = [line for line in lines_of(log) if line["message"] == "claimed"]
    assert claimed["prompt"] == "a secret fox"


@pytest.mark.parametrize("header", ["nonsense", "Root=1-2-3", TRACE + "\n"])
def test_a_header_that_is_no_trace_stays_at_the_door(
    settings: Settings, store: TaskStore, queue: TaskQueue, header: str
) -> None:
    Submit(settings, store, queue).handle(
        http_event("POST", "/generate", body=FOX, headers={"X-Amzn-Trace-Id": header}), None
    )
    (message,) = queue.receive(wait=1)
    assert message.trace is None
