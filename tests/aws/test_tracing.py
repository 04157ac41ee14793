"""What X-Ray's daemon is told of attempts: held against the published constraints of segment documents."""

from __future__ import annotations

import json
import re
import signal
import socket
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from handler.api.submission import Submit
from handler.aws.tracing import Trace, Tracer
from handler.clock import utc_now
from handler.errors import Internal, OutOfMemory, ServiceFault, SettingsError
from handler.settings import Settings
from handler.work.serving import Generate

from ..runtime_api import RuntimeApi
from ..support import CARD, PlainEngine, http_event, record_of, sqs_event
from ..work.test_worker import process, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from handler.aws.queue import TaskQueue
    from handler.aws.store import TaskStore

ROOT, PARENT = "1-67891233-abcdef012345678912345678", "53995c3f42cd8ad8"
SAMPLED = f"Root={ROOT};Parent={PARENT};Sampled=1"
FOX = '{"prompt": "a secret fox", "task_id": "mine"}'
PARTS = ["text", "denoise", "decode", "encode", "upload"]
KNOWN = {
    *("name", "id", "trace_id", "parent_id", "type", "start_time", "end_time", "origin", "namespace", "aws"),
    *("annotations", "subsegments", "error", "fault", "throttle", "cause"),
}


class Daemon:
    """Listens as X-Ray's daemon does; ``told`` takes what has come, and checks it."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))

    @property
    def address(self) -> str:
        host, port = self._socket.getsockname()
        return f"{host}:{port}"

    def told(self, wait: float = 0.2) -> list[dict[str, Any]]:
        """All that came, until nothing comes for ``wait`` seconds."""
        found: list[dict[str, Any]] = []
        self._socket.settimeout(wait)
        while True:
            try:
                datagram = self._socket.recv(1 << 16)
            except TimeoutError:
                return found
            assert b"secret" not in datagram
            preamble, _, body = datagram.partition(b"\n")
            assert json.loads(preamble) == {"format": "json", "version": 1}
            found.append(json.loads(body))
            conforms(found[-1])

    def close(self) -> None:
        self._socket.close()


def conforms(document: dict[str, Any], parent: dict[str, Any] | None = None) -> None:
    """AWS X-Ray developer guide, "AWS X-Ray segment documents": required fields, formats, limits."""
    assert document.keys() <= KNOWN
    assert re.fullmatch(r"[\w\s.:/%&#=+\\\-@]{1,200}", document["name"])
    assert re.fullmatch("[0-9a-f]{16}", document["id"])
    assert document["start_time"] <= document["end_time"]
    if parent is None:
        assert re.fullmatch("1-[0-9a-f]{8}-[0-9a-f]{24}", document["trace_id"])
        assert re.fullmatch("[0-9a-f]{16}", document.get("parent_id", PARENT))
        assert abs(document["end_time"] - time.time()) < 60  # epoch seconds, not monotonic ones
    else:
        # Embedded: what names the trace is the parent's. A millisecond for rounding.
        assert document.keys() == {"id", "name", "start_time", "end_time"}
        assert parent["start_time"] - 1e-3 <= document["start_time"]
        assert document["end_time"] <= parent["end_time"] + 1e-3
    for name, value in document.get("annotations", {}).items():
        assert re.fullmatch("[A-Za-z0-9_]+", name)
        assert isinstance(value, str | int | float | bool)
        assert len(str(value)) <= 250
    for exception in document.get("cause", {}).get("exceptions", []):
        assert re.fullmatch("[0-9a-f]{16}", exception["id"])
    for part in document.get("subsegments", []):
        conforms(part, document)
    ids = [document["id"], *(part["id"] for part in document.get("subsegments", []))]
    assert len(set(ids)) == len(ids)


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    daemon = Daemon()
    yield daemon
    daemon.close()


@pytest.fixture
def traced(settings: Settings, daemon: Daemon) -> Settings:
    return replace(settings, aws_xray_daemon_address=daemon.address)


@pytest.fixture
def generate(traced: Settings, store: TaskStore, queue: TaskQueue, plain: PlainEngine) -> Generate:
    return Generate(traced, store, queue, lambda _: plain)


def event(header: str | None = SAMPLED, body: str = FOX) -> dict[str, Any]:
    made = sqs_event(body, sent_ms=int(time.time() * 1000))
    if header is not None:
        made["Records"][0]["attributes"]["AWSTraceHeader"] = header
    return made


@pytest.mark.spawns
def test_a_real_worker_tells_of_a_task_that_came_with_a_trace(
    environ: dict[str, str], store: TaskStore, queue: TaskQueue, daemon: Daemon
) -> None:
    """From a message on the queue to a datagram: a process of its own, with the built-in model."""
    ecs = {"ECS_CONTAINER_METADATA_URI_V4": "http://127.0.0.1:9/v4/container"}
    with process(environ | ecs | {"AWS_XRAY_DAEMON_ADDRESS": daemon.address}) as worker:
        began = time.time()
        queue.send('{"prompt": "a secret red apple", "num_inference_steps": 3, "task_id": "traced"}', trace=SAMPLED)
        wait_for(store, "traced", "completed")
        queue.send('{"prompt": "a secret red apple", "num_inference_steps": 3, "task_id": "plain"}')
        wait_for(store, "plain", "completed")
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(15) == 0
    (segment,) = daemon.told()
    record = record_of(store, "traced")
    assert (segment["name"], segment["trace_id"], segment["parent_id"]) == ("darkroom-worker", ROOT, PARENT)
    assert segment["origin"] == "AWS::ECS::Container"
    assert record.model is not None
    assert segment["annotations"] == {
        "task_id": "traced",
        "attempt": 1,
        "outcome": "completed",
        "model": record.model.id,
        "batch_size": record.batch_size,
    }
    assert not {"fault", "error", "throttle", "cause", "type"} & segment.keys()
    assert record.timings is not None
    assert record.completed_at is not None
    assert segment["end_time"] == record.completed_at.timestamp()
    seconds = {part["name"]: part["end_time"] - part["start_time"] for part in segment["subsegments"]}
    assert list(seconds) == ["load", *PARTS]  # the first task of a process waited for the model
    for name, took in seconds.items():
        assert took == pytest.approx(getattr(record.timings, name), abs=1e-3)
    assert segment["end_time"] - segment["start_time"] < time.time() - began


def test_parts_follow_each_other_up_to_the_end(generate: Generate, daemon: Daemon) -> None:
    generate.handle(event(), None)
    (segment,) = daemon.told()
    *_, text, denoise, decode, encode, upload = parts = segment["subsegments"]
    assert [part["name"] for part in parts if part["name"] != "load"] == PARTS
    for before, after in zip([text, denoise, decode, encode], [denoise, decode, encode, upload], strict=True):
        assert before["end_time"] == after["start_time"]
    assert upload["end_time"] == pytest.approx(segment["end_time"], abs=1e-5)


@pytest.mark.parametrize(
    ("fault", "flags", "annotations", "message"),
    [
        (OutOfMemory("too large"), {"fault"}, {"outcome": "failed", "code": "OUT_OF_MEMORY"}, "too large"),
        (Internal("the pipeline broke: RuntimeError: a secret fox"), {"fault"}, {"outcome": "released"}, None),
        (ValueError("`prompt` is a secret fox"), {"fault"}, {"outcome": "failed", "code": "INTERNAL"}, None),
    ],
)
def test_a_fault_is_flagged_by_its_code_and_quotes_no_prompt(
    generate: Generate,
    plain: PlainEngine,
    daemon: Daemon,
    fault: Exception,
    flags: set[str],
    annotations: dict[str, str],
    message: str | None,
) -> None:
    plain.fault = fault
    generate.handle(event(), None)
    (segment,) = daemon.told()
    assert {"fault", "error", "throttle"} & segment.keys() == flags
    assert annotations.items() <= segment["annotations"].items()
    (exception,) = segment["cause"]["exceptions"]
    assert exception["type"] == segment["annotations"]["code"]
    assert message in {None, exception["message"]}
    assert "subsegments" not in segment


def test_the_callers_error_and_anothers_limit(generate: Generate, plain: PlainEngine, daemon: Daemon) -> None:
    from handler.errors import UnsafeContent

    plain.fault = UnsafeContent("the model's safety checker refused the picture")
    generate.handle(event(), None)
    (refused,) = daemon.told()
    assert (refused["error"], "fault" in refused) == (True, False)
    plain.fault = ServiceFault("S3 failed to write an image")
    plain.fault.__cause__ = OSError("503 Service Unavailable: <Code>SlowDown</Code>")
    generate.handle(event(body='{"prompt": "a secret fox", "task_id": "slow"}'), None)
    (slowed,) = daemon.told()
    assert (slowed["fault"], slowed["throttle"]) == (True, True)


def test_one_that_goes_on_elsewhere_is_no_fault(
    generate: Generate, plain: PlainEngine, queue: TaskQueue, daemon: Daemon
) -> None:
    """Each attempt is a span of its own, beside the other, under the same parent."""
    plain.between = generate.suspend
    generate.handle(event(), None)
    (first,) = daemon.told()
    assert first["annotations"]["outcome"] == "suspended"
    assert not {"fault", "error", "cause"} & first.keys()
    (message,) = queue.receive(wait=1)
    assert message.trace == SAMPLED


def test_a_task_that_was_cancelled(
    generate: Generate, plain: PlainEngine, traced: Settings, store: TaskStore, queue: TaskQueue, daemon: Daemon
) -> None:
    def cancel() -> None:
        Submit(traced, store, queue).cancel("mine")

    plain.between = cancel
    generate.handle(event(), None)
    (segment,) = daemon.told()
    assert segment["annotations"]["outcome"] == "lost"
    assert not {"fault", "error", "cause"} & segment.keys()


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "nonsense",
        "Root=1-2-3;Sampled=1",
        f"Root={ROOT};Parent={PARENT}",
        f"Root={ROOT};Parent={PARENT};Sampled=0",
        f"Root={ROOT};Parent={PARENT};Sampled=?",
        f"Root={ROOT};Parent=tooshort;Sampled=1",
        f"Root={ROOT.upper()};Parent={PARENT};Sampled=1",
        f"Parent={PARENT};Sampled=1",
        SAMPLED.replace(";", ","),
    ],
)
def test_what_is_not_sampled_or_malformed_is_not_told(
    generate: Generate, store: TaskStore, daemon: Daemon, header: str | None
) -> None:
    generate.handle(event(header), None)
    assert record_of(store, "mine").status == "completed"
    assert daemon.told() == []


def test_headers_as_others_write_them() -> None:
    assert Trace.read(f"Self=1-67891234-12456789abcdef012345678a;Root={ROOT};Parent={PARENT};Sampled=1;Lineage=a:1")
    assert Trace.read(f"Root={ROOT}; Parent={PARENT}; Sampled=1;") == Trace(ROOT, PARENT, sampled=True)
    assert Trace.read(f"Root={ROOT};Sampled=1") == Trace(ROOT, None, sampled=True)
    assert Trace(ROOT, PARENT, sampled=True).header() == SAMPLED
    assert Trace(ROOT, None, sampled=False).header() == f"Root={ROOT};Sampled=0"


@pytest.mark.parametrize("address", ["127.0.0.1:9", "no-such-host.invalid:2000", "[::1]:9"])
def test_a_daemon_that_is_not_there_holds_nothing_up(
    settings: Settings, store: TaskStore, queue: TaskQueue, plain: PlainEngine, address: str
) -> None:
    generate = Generate(replace(settings, aws_xray_daemon_address=address), store, queue, lambda _: plain)
    for name in ("one", "two", "three"):
        began = time.monotonic()
        generate.handle(event(body=f'{{"prompt": "fox", "task_id": "{name}"}}'), None)
        assert time.monotonic() - began < 5
        assert record_of(store, name).status == "completed"


def test_a_daemon_that_reads_nothing_holds_nothing_up(generate: Generate, store: TaskStore, traced: Settings) -> None:
    """Its buffer is full after some hundred datagrams; the rest gets lost."""
    began = time.monotonic()
    tracer = Tracer(traced, utc_now)
    for _ in range(2000):
        tracer._tell({"name": "x" * 1000})
    assert time.monotonic() - began < 5
    generate.handle(event(), None)
    assert record_of(store, "mine").status == "completed"


@pytest.mark.parametrize("address", ["2000", "host", "host:", ":2000", "host:70000", "host:0", "tcp:a:1", "a b:1"])
def test_an_address_that_is_none_is_refused_at_the_start(address: str) -> None:
    with pytest.raises(SettingsError, match="AWS_XRAY_DAEMON_ADDRESS="):
        Tracer(Settings(aws_xray_daemon_address=address), utc_now)


def test_the_notation_with_two_addresses(
    settings: Settings, store: TaskStore, queue: TaskQueue, plain: PlainEngine, daemon: Daemon
) -> None:
    for address in (f"tcp:127.0.0.1:9 udp:{daemon.address}", f"udp:{daemon.address} tcp:127.0.0.1:9"):
        Generate(replace(settings, aws_xray_daemon_address=address), store, queue, lambda _: plain).handle(
            event(body=f'{{"prompt": "fox", "task_id": "{address.partition(":")[0]}"}}'), None
        )
        assert len(daemon.told()) == 1


def test_the_longest_span_fits_a_datagram(
    traced: Settings, store: TaskStore, queue: TaskQueue, plain: PlainEngine, daemon: Daemon
) -> None:
    plain.card = CARD.model_copy(update={"id": "ü" * 5000})
    plain.fault = OutOfMemory("ü" * 100_000)
    Generate(traced, store, queue, lambda _: plain).handle(event(body=FOX.replace("mine", "m" * 128)), None)
    (segment,) = daemon.told()
    assert len(json.dumps(segment)) < 10_000


@pytest.mark.spawns
def test_under_lambda_an_attempt_is_part_of_the_functions_own_segment(
    environ: dict[str, str], store: TaskStore, daemon: Daemon
) -> None:
    """The function's trace is another one than the message's; Lambda links the two."""
    own = Trace("1-5bef4de7-ad49b0e87f6ef6c87fc2e700", "0123456789abcdef", sampled=True)
    variables = environ | {"AWS_XRAY_DAEMON_ADDRESS": daemon.address}
    with (
        RuntimeApi(event(), trace=own.header() + ";Lineage=1:24be3460:0") as api,
        process({**variables, **api.variables}, "handler.generate.handle"),
    ):
        assert json.loads(api.answer(60)) == {"batchItemFailures": []}
    wait_for(store, "mine", "completed")
    (part,) = daemon.told()
    assert (part["type"], part["name"]) == ("subsegment", "attempt")
    assert (part["trace_id"], part["parent_id"]) == (own.root, own.parent)
    assert part["annotations"]["task_id"] == "mine"
    assert [one["name"] for one in part["subsegments"]] == ["load", *PARTS]


def submitted(
    environ: dict[str, str], queue: TaskQueue, daemon: Daemon, trace: str, header: str | None
) -> tuple[str | None, list[dict[str, Any]]]:
    """The header of the message that ``submit`` sent under Lambda, and what the daemon was told."""
    request = http_event("POST", "/generate", body=FOX, headers={"X-Amzn-Trace-Id": header} if header else {})
    variables = environ | {"AWS_XRAY_DAEMON_ADDRESS": daemon.address}
    with RuntimeApi(request, trace=trace) as api, process({**variables, **api.variables}, "handler.submit.handle"):
        assert json.loads(api.answer(60))["statusCode"] == 202
    (message,) = queue.receive(wait=1)
    return message.trace, daemon.told()


@pytest.mark.spawns
def test_under_lambda_the_message_belongs_to_the_invocations_trace(
    environ: dict[str, str], queue: TaskQueue, daemon: Daemon
) -> None:
    """The API's header names a parent above the function; the queue's place is below it."""
    own = f"Root={ROOT};Parent=0123456789abcdef;Sampled=1;Lineage=1:24be3460:0"
    header, (sending,) = submitted(environ, queue, daemon, own, f"Root={ROOT};Parent={PARENT};Sampled=1")
    assert (sending["name"], sending["namespace"], sending["type"]) == ("SQS", "aws", "subsegment")
    assert (sending["trace_id"], sending["parent_id"]) == (ROOT, "0123456789abcdef")
    assert sending["aws"] == {"operation": "SendMessage", "queue_url": queue.url}
    assert header == Trace(ROOT, sending["id"], sampled=True).header()


@pytest.mark.spawns
def test_under_lambda_an_unsampled_invocation_says_so(
    environ: dict[str, str], queue: TaskQueue, daemon: Daemon
) -> None:
    own = f"Root={ROOT};Parent=0123456789abcdef;Sampled=0"
    assert submitted(environ, queue, daemon, own + ";Lineage=1:24be3460:0", SAMPLED) == (own, [])


def test_a_message_that_could_not_be_sent_is_told(
    traced: Settings, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_X_AMZN_TRACE_ID", SAMPLED)
    tracer = Tracer(replace(traced, aws_lambda_runtime_api="127.0.0.1:9"), utc_now)
    with pytest.raises(ServiceFault), tracer.sending(None, "https://sqs.example/q"):
        raise ServiceFault("SQS failed to send a message")
    (sending,) = daemon.told()
    assert sending["fault"] is True
    assert sending["cause"]["exceptions"][0]["message"] == "SQS failed to send a message"
