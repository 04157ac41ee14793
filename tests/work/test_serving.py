"""The queue-triggered handler on events as Lambda sends them: what is written, what is consumed, what goes back."""

from __future__ import annotations

import errno
import json
import re
import threading
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, cast

import pytest

from handler.aws.queue import TaskQueue
from handler.aws.store import TaskStore
from handler.contract.record import ModelRef, Record, Remark, Timings
from handler.contract.request import GenerationRequest
from handler.contract.responses import ResultResponse
from handler.errors import DarkroomError, Internal, ModelUnavailable, OutOfMemory, UnsafeContent, WorkerBroken
from handler.generate import app, handle
from handler.task import moves
from handler.work.serving import Generate

from ..support import Clock, PlainEngine, answer_of, event_of, held, http_event, lose_the_lease, record_of, sqs_event

if TYPE_CHECKING:
    from handler.api.results import Status
    from handler.api.submission import Submit
    from handler.engine import Developed, Engine, Observer
    from handler.settings import Settings

CONSUMED: dict[str, object] = {"batchItemFailures": []}


def back(*ids: str) -> dict[str, object]:
    return {"batchItemFailures": [{"itemIdentifier": name} for name in ids]}


def test_a_bare_message_becomes_a_picture(generate: Generate, store: TaskStore) -> None:
    assert generate.handle(sqs_event('{"prompt": "a red apple"}', ids=["m-1"]), None) == CONSUMED
    record = record_of(store, "m-1")
    assert (record.status, record.attempt, record.cold_start, record.batch_size) == ("completed", 1, True, 1)
    assert record.request is not None
    assert (record.request.seed, record.request.num_inference_steps) == (1234, 4)
    assert record.model == ModelRef(id="built-in", revision=None, pipeline="TestPipeline", dtype="float32")
    assert record.created_at.isoformat() == "2026-01-02T03:04:05+00:00"  # when SQS took the message
    (image,) = record.images
    assert image.key == "tasks/m-1/1/0.png"
    assert len(store.read_image(image.key)) == image.bytes
    assert record.timings is not None
    assert record.timings.load == 0.25


@pytest.mark.parametrize(
    ("output_format", "extension", "magic"),
    [("png", "png", b"\x89PNG"), ("jpeg", "jpg", b"\xff\xd8\xff"), ("webp", "webp", b"RIFF")],
)
def test_every_format(generate: Generate, store: TaskStore, output_format: str, extension: str, magic: bytes) -> None:
    body = json.dumps({"prompt": "fox", "task_id": "f", "output_format": output_format, "num_images": 2})
    generate.handle(sqs_event(body), None)
    images = record_of(store, "f").images
    assert [image.key for image in images] == [f"tasks/f/1/{index}.{extension}" for index in range(2)]
    assert {image.content_type for image in images} == {f"image/{output_format}"}
    assert store.read_image(images[1].key).startswith(magic)


def test_a_submitted_task(generate: Generate, submit: Submit, store: TaskStore, queue: TaskQueue) -> None:
    record = submit.submit('{"prompt": "fox"}')
    (message,) = queue.receive(wait=1)
    generate.handle(sqs_event(message.body), None)
    assert record_of(store, record.task_id).status == "completed"
    assert record_of(store, record.task_id).sequence == 3  # pending, processing, completed


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ("not json", {"body"}),
        ('{"prompt": 5, "num_inference_steps": "many", "surprise": 1}', {"prompt", "num_inference_steps", "surprise"}),
        ('{"prompt": "fox", "width": 100}', {"width"}),
        ('{"prompt": ""}', {"prompt"}),
        ('{"prompt": "fox", "task_id": "../../health/model"}', {"task_id"}),
        ('{"prompt": "' + "x" * 2_000_000 + '"}', {"body"}),
    ],
)
def test_a_bad_message_is_consumed_and_tells_why(
    generate: Generate, store: TaskStore, plain: PlainEngine, body: str, fields: set[str]
) -> None:
    event = sqs_event(body, '{"prompt": "a good one"}', ids=["bad", "good"])
    assert generate.handle(event, None) == CONSUMED
    record = record_of(store, "bad")
    assert record.status == "failed"
    assert record.error is not None
    assert (record.error.code, record.error.retryable) == ("INVALID_REQUEST", False)
    assert {one.field for one in record.error.details} == fields
    assert record_of(store, "good").status == "completed"
    assert plain.drawn == ["a good one"]


def test_a_bad_message_that_names_its_task_fails_there(generate: Generate, store: TaskStore) -> None:
    generate.handle(sqs_event('{"prompt": "", "task_id": "mine"}', ids=["m-1"]), None)
    assert record_of(store, "mine").status == "failed"
    assert store.read("m-1") is None


def test_a_bad_message_never_touches_another_task(generate: Generate, store: TaskStore) -> None:
    generate.handle(sqs_event('{"prompt": "fox", "task_id": "mine"}'), None)
    assert generate.handle(sqs_event('{"prompt": "", "task_id": "mine"}'), None) == CONSUMED
    assert record_of(store, "mine").status == "completed"


def test_another_request_under_a_taken_id_fails_under_its_own(
    generate: Generate, store: TaskStore, plain: PlainEngine
) -> None:
    generate.handle(sqs_event('{"prompt": "fox", "task_id": "mine"}'), None)
    assert generate.handle(sqs_event('{"prompt": "owl", "task_id": "mine"}', ids=["m-2"]), None) == CONSUMED
    assert plain.drawn == ["fox"]
    record = record_of(store, "m-2")
    assert record.error is not None
    assert record.error.code == "CONFLICT"


def test_a_message_twice_draws_once(generate: Generate, store: TaskStore, plain: PlainEngine) -> None:
    event = sqs_event('{"prompt": "fox"}', ids=["m-1"])
    generate.handle(event, None)
    before = record_of(store, "m-1")
    assert generate.handle(event, None) == CONSUMED
    assert record_of(store, "m-1") == before
    assert plain.drawn == ["fox"]


def test_a_message_twice_in_one_batch_draws_once(generate: Generate, store: TaskStore, plain: PlainEngine) -> None:
    body = '{"prompt": "fox", "task_id": "mine"}'
    answer = generate.handle(sqs_event(body, body, ids=["m-1", "m-2"]), None)
    assert len(answer["batchItemFailures"]) <= 1  # back while the lease is alive, or consumed after the end
    assert plain.drawn == ["fox"]
    assert record_of(store, "mine").status == "completed"


def test_a_task_that_another_worker_holds_comes_back_when_its_lease_ends(
    generate: Generate, store: TaskStore, queue: TaskQueue, clock: Clock, plain: PlainEngine
) -> None:
    held(store, clock)
    queue.send('{"prompt": "fox", "task_id": "mine"}')
    (message,) = queue.receive(wait=1)
    event = sqs_event(message.body, ids=[message.message_id])
    event["Records"][0]["receiptHandle"] = message.receipt_handle
    assert generate.handle(event, None) == back(message.message_id)
    assert plain.drawn == []
    clock.forward(63)
    assert generate.handle(event, None) == CONSUMED
    record = record_of(store, "mine")
    assert (record.status, record.attempt) == ("completed", 2)
    assert record.images[0].key == "tasks/mine/2/0.png"


def test_a_superseded_attempt_writes_nothing_more(
    generate: Generate, store: TaskStore, clock: Clock, plain: PlainEngine
) -> None:
    """While the first attempt draws, its lease ends and another worker finishes the task."""
    taken = threading.Event()

    def another_worker() -> None:
        if not taken.is_set():
            taken.set()
            stored = store.read("mine")
            assert stored is not None
            record = Record.from_json(stored.body)
            finished = moves.complete(record, now=clock(), images=[], timings=Timings(), batch_size=1, cold_start=False)
            store.change(stored, finished.model_copy(update={"attempt": 2}))

    plain.between = another_worker
    assert generate.handle(sqs_event('{"prompt": "fox", "task_id": "mine"}'), None) == CONSUMED
    record = record_of(store, "mine")
    assert (record.attempt, record.images) == (2, [])


def test_an_attempt_whose_lease_ran_out_stops_by_itself(
    generate: Generate, store: TaskStore, clock: Clock, plain: PlainEngine
) -> None:
    steps: list[int] = []

    def slow_step() -> None:
        steps.append(1)
        if len(steps) == 2:
            lose_the_lease(generate, clock)

    plain.between = slow_step
    generate.handle(sqs_event('{"prompt": "fox", "task_id": "mine"}'), None)
    record = record_of(store, "mine")
    assert (record.status, record.attempt) == ("completed", 2)
    assert len(steps) == 2 + 4  # stopped after two, drawn anew


@pytest.mark.parametrize("fault", [OutOfMemory("too large"), UnsafeContent("refused")])
def test_a_permanent_fault_ends_the_task(
    generate: Generate, store: TaskStore, plain: PlainEngine, fault: DarkroomError
) -> None:
    plain.fault = fault
    assert generate.handle(sqs_event('{"prompt": "fox"}', ids=["m-1"]), None) == CONSUMED
    record = record_of(store, "m-1")
    assert record.status == "failed"
    assert record.error is not None
    assert (record.error.code, record.error.message) == (fault.code, fault.message)


def test_an_unsafe_picture_keeps_no_other(
    generate: Generate, store: TaskStore, plain: PlainEngine, status: Status
) -> None:
    plain.unsafe, plain.warnings = frozenset({1}), (("prompt", "the model reads 77 tokens; 23 more were cut"),)
    generate.handle(sqs_event('{"prompt": "fox", "task_id": "mine", "num_images": 4, "seed": 5}'), None)
    record = record_of(store, "mine")
    assert record.status == "completed"
    assert [(image.seed, image.unsafe, bool(image.key)) for image in record.images] == [
        (5, False, True),
        (6, True, False),
        (7, False, True),
        (8, False, True),
    ]
    assert store.objects_of("mine").keys() == {image.key for image in record.images if image.key}
    assert record.warnings == [Remark(field="prompt", message="the model reads 77 tokens; 23 more were cut")]
    reply = status.handle(http_event("GET", "/results/mine", query={"inline": "base64"}), None)
    shown = ResultResponse.model_validate(answer_of(reply)[1])
    assert [(one.unsafe, one.url is None, one.base64 is None) for one in shown.images] == [
        (False, False, False),
        (True, True, True),
        (False, False, False),
        (False, False, False),
    ]
    assert shown.image_base64 == shown.images[0].base64


def test_a_passing_fault_gives_the_task_back(
    generate: Generate, store: TaskStore, plain: PlainEngine, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    plain.fault = RuntimeError("cuBLAS hiccup")
    event = sqs_event('{"prompt": "fox"}', ids=["m-1"])
    assert generate.handle(event, None) == back("m-1")
    record = record_of(store, "m-1")
    assert (record.status, record.lease) == ("pending", None)
    assert record.error is not None
    assert record.error.retryable
    said_in_the_log(record, caplog, "cuBLAS hiccup")
    seed = record.request.seed if record.request else None
    plain.fault = None
    assert generate.handle(event, None) == CONSUMED
    record = record_of(store, "m-1")
    assert (record.status, record.attempt, record.error) == ("completed", 2, None)
    assert record.request is not None
    assert record.request.seed == seed


def test_one_failure_does_not_hold_up_the_batch(
    settings: Settings, store: TaskStore, queue: TaskQueue, clock: Clock
) -> None:
    class Picky(PlainEngine):
        def develop(
            self, request: GenerationRequest, observer: Observer, checkpoint: bytes = b"", image: bytes = b""
        ) -> Developed:
            if request.prompt == "bad":
                raise RuntimeError("no")
            return super().develop(request, observer, checkpoint, image)

    generate = Generate(settings, store, queue, lambda _: Picky(), now=clock)
    event = sqs_event('{"prompt": "a"}', '{"prompt": "bad"}', '{"prompt": "b"}', ids=["a", "bad", "b"])
    assert generate.handle(event, None) == back("bad")
    assert {record_of(store, name).status for name in ("a", "b")} == {"completed"}


def test_progress_is_written_while_it_draws(
    settings: Settings, store: TaskStore, queue: TaskQueue, clock: Clock
) -> None:
    seen: list[Record] = []
    waited = threading.Event()

    def watch() -> None:
        for _ in range(100):
            record = record_of(store, "mine")
            if record.progress is not None and (not seen or record.sequence > seen[-1].sequence):
                seen.append(record)
                return
            waited.wait(0.02)

    plain = PlainEngine(between=watch)
    often = replace(settings, beat_every=0.1, first_beat=0)
    generate = Generate(often, store, queue, lambda _: plain, now=clock)
    generate.handle(sqs_event('{"prompt": "fox", "task_id": "mine"}'), None)
    assert len(seen) >= 2
    steps = [record.progress.step for record in seen if record.progress]
    assert steps == sorted(steps)
    final = record_of(store, "mine")
    assert final.sequence > seen[-1].sequence
    assert final.progress is not None
    assert final.progress.fraction == 1.0


def test_without_a_model_tasks_wait(settings: Settings, store: TaskStore, queue: TaskQueue, clock: Clock) -> None:
    loads: list[int] = []

    def load(_: Settings) -> Engine:
        loads.append(1)
        raise ModelUnavailable("no such folder")

    generate = Generate(settings, store, queue, load, now=clock)
    event = sqs_event('{"prompt": "fox"}', '{"prompt": "owl"}', ids=["m-1", "m-2"])
    failures = generate.handle(event, None)["batchItemFailures"]
    assert {one["itemIdentifier"] for one in failures} == {"m-1", "m-2"}  # side by side: in any order
    assert {record_of(store, name).status for name in ("m-1", "m-2")} == {"pending"}
    assert len(loads) == 1
    health = store.read_health()
    assert health is not None
    assert health["model_status"] == "unavailable"
    assert "no such folder" not in health["reason"]  # nor whatever else a library says: that is for the log


def test_storage_that_fails_sends_the_message_back(settings: Settings, queue: TaskQueue, clock: Clock) -> None:
    nowhere = TaskStore(replace(settings, bucket="no-such-bucket"))
    generate = Generate(settings, nowhere, queue, lambda _: PlainEngine(), now=clock)
    assert generate.handle(sqs_event('{"prompt": "fox"}', ids=["m-1"]), None) == back("m-1")


def test_a_task_taken_before_its_model_was_known_fails_when_the_model_refuses_it(
    generate: Generate, submit: Submit, store: TaskStore, queue: TaskQueue
) -> None:
    """The door knew no card that refuses a width of 100; the worker's does."""
    request = GenerationRequest(prompt="fox", width=100)
    record = moves.create("mine", request, 7, Clock()(), timedelta(days=1))
    store.create(record)
    assert generate.handle(sqs_event(record.pointer()), None) == CONSUMED
    record = record_of(store, "mine")
    assert (record.status, record.sequence) == ("failed", 2)
    assert record.error is not None
    assert [one.field for one in record.error.details] == ["width"]


def test_what_the_pipeline_refuses_is_not_tried_again(
    generate: Generate, store: TaskStore, plain: PlainEngine, caplog: pytest.LogCaptureFixture
) -> None:
    plain.fault = ValueError("`height` has to be divisible by 32")
    assert generate.handle(sqs_event('{"prompt": "fox"}', ids=["m-1"]), None) == CONSUMED
    record = record_of(store, "m-1")
    assert record.error is not None
    assert (record.status, record.error.code, record.error.retryable) == ("failed", "INTERNAL", False)
    said_in_the_log(record, caplog, "divisible by 32")


def said_in_the_log(record: Record, caplog: pytest.LogCaptureFixture, text: str) -> None:
    """The record names the line of the log that has a library's text, and holds none of it itself."""
    assert text not in record.to_json().decode()
    assert record.error is not None
    (log_id,) = re.findall(r"under id ([0-9a-f]{8})", record.error.message)
    (line,) = [one for one in caplog.records if getattr(one, "id", None) == log_id]
    assert line.exc_info is not None
    assert text in str(line.exc_info[1])


@pytest.mark.parametrize(
    "fault", [RuntimeError("a shape of /opt/models/mine"), FileNotFoundError(errno.ENOENT, "none", "/opt/models/mine")]
)
def test_what_the_pipeline_dies_of_is_for_the_log_alone(
    settings: Settings, store: TaskStore, queue: TaskQueue, caplog: pytest.LogCaptureFixture, fault: Exception
) -> None:
    generate = Generate(replace(settings, max_tries=1), store, queue, lambda _: PlainEngine(fault=fault))
    assert generate.handle(sqs_event('{"prompt": "fox"}', ids=["m-1"]), None) == CONSUMED
    record = record_of(store, "m-1")
    assert record.error is not None
    assert record.error.code == "RETRIES_EXHAUSTED"
    said_in_the_log(record, caplog, "/opt/models/mine")


def test_a_record_from_the_future_is_an_error_in_the_log(
    generate: Generate, store: TaskStore, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    class Newer:
        task_id, created_at = "mine", clock()

        def to_json(self) -> bytes:
            return b'{"task_id": "mine", "from": "a newer version"}'

    store.create(cast("Record", Newer()))
    assert generate.handle(sqs_event('{"prompt": "fox", "task_id": "mine"}', ids=["m-1"]), None) == back("m-1")
    assert "unexpected fault" in caplog.text


def test_characters_that_sqs_changes_do_not_change_the_task(submit: Submit, queue: TaskQueue) -> None:
    submit.submit(json.dumps({"prompt": "fox \ufffe\uffff \U0001f98a", "tags": ["\u0001"]}))
    (message,) = queue.receive(wait=1)
    assert message.body.isascii()


def test_any_failure_to_load_is_a_model_that_is_not_available(
    settings: Settings, store: TaskStore, queue: TaskQueue
) -> None:
    def load(_: Settings) -> Engine:
        raise ImportError("libcudnn.so.9: cannot open shared object file")

    generate = Generate(settings, store, queue, load)
    with pytest.raises(ModelUnavailable, match="cannot load the model") as caught:
        generate.engine()
    assert "libcudnn" not in str(caught.value)
    health = store.read_health()
    assert health is not None
    assert health["model_status"] == "unavailable"


def test_a_sign_of_life_whose_answer_was_lost_does_not_lose_the_task(
    settings: Settings, store: TaskStore, queue: TaskQueue, clock: Clock
) -> None:
    """S3 wrote it and said 500: the record has moved, and is this attempt's all the same."""
    plain = PlainEngine()
    moved = threading.Event()

    def behind_its_back() -> None:
        stored = store.read("mine")
        assert stored is not None
        if not moved.is_set():
            moved.set()
            record = Record.from_json(stored.body)
            store.change(stored, moves.beat(record, now=clock(), lease=timedelta(seconds=60), progress=None))

    plain.between = behind_its_back
    generate = Generate(settings, store, queue, lambda _: plain, now=clock)
    assert generate.handle(sqs_event('{"prompt": "fox", "task_id": "mine"}'), None) == CONSUMED
    record = record_of(store, "mine")
    assert (record.status, record.attempt, record.sequence) == ("completed", 1, 4)
    assert plain.drawn == ["fox"]


def test_a_duplicate_of_a_held_task_is_consumed(generate: Generate, store: TaskStore, clock: Clock) -> None:
    """The holder's own message is in the queue until the task has ended; this one would only count as poison."""
    held(store, clock, message_id="the holder's")
    assert generate.handle(sqs_event('{"prompt": "fox", "task_id": "mine"}', ids=["another"]), None) == CONSUMED
    assert record_of(store, "mine").status == "processing"


@pytest.mark.parametrize("fault", [WorkerBroken("the device is lost"), OSError(errno.ENOSPC, "no space left")])
def test_a_broken_worker_gives_its_tasks_away_and_takes_no_more(
    generate: Generate, store: TaskStore, queue: TaskQueue, plain: PlainEngine, fault: Exception
) -> None:
    plain.fault = fault
    queue.send('{"prompt": "fox", "task_id": "mine"}')
    (message,) = queue.receive(wait=1)
    assert generate.handle(event_of(message), None) == back(message.message_id)
    assert generate.broken is not None
    record = record_of(store, "mine")
    assert (record.status, record.attempts[0].outcome) == ("pending", "released")
    assert store.read_checkpoint("mine") == b"step by step"
    (again,) = queue.receive(wait=1)  # at once
    plain.fault = None
    assert generate.handle(event_of(again), None) == back(again.message_id)
    assert plain.drawn == []


def test_messages_that_met_a_fault_together_do_not_come_back_together(
    settings: Settings, store: TaskStore, queue: TaskQueue, plain: PlainEngine, clock: Clock
) -> None:
    delays: list[float] = []

    class Watched(TaskQueue):
        def change_visibility(self, receipt_handle: str, seconds: float) -> None:
            delays.append(seconds)

    plain.fault = Internal("passing")
    for chance in (0.0, 1.0):
        generate = Generate(settings, store, Watched(settings), lambda _: plain, now=clock, chance=lambda: chance)  # noqa: B023
        for _ in range(3):  # received often, for it waited for others, too: what counts are the task's own faults
            generate.handle(sqs_event('{"prompt": "fox"}', ids=[f"m-{chance}"], count=20), None)
    assert delays == [2.5, 5.0, 10.0, 5.0, 10.0, 20.0]


def test_under_lambda_a_broken_worker_ends_its_process(
    environ: dict[str, str], plain: PlainEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    plain.fault = WorkerBroken("the device is lost")
    monkeypatch.setattr("handler.engine.starting.start", lambda *_: plain)
    with pytest.raises(SystemExit) as ended:
        handle(sqs_event('{"prompt": "fox"}'), None)
    assert ended.value.code == 1
    app.cache_clear()
