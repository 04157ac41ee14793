"""TaskStore's contract, on moto, (``make test-emulators``) on MiniStack, and on the stand-in in memory."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, ClassVar, cast
from urllib.parse import parse_qs, urlsplit

import boto3
import pytest

from handler.aws.listing import FAR_FUTURE_MS, index_name
from handler.aws.store import TaskStore
from handler.aws.weights import fetch_model
from handler.contract.record import Record
from handler.contract.request import GenerationRequest
from handler.errors import InvalidRequest, LostRace, NotFound, ServiceFault
from handler.task import moves

from ..memory import Bucket, MemoryStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from handler.settings import Settings

    from ..support import Clock

pytestmark = pytest.mark.contract
KEEP = timedelta(days=1)
ON_AWS = pytest.mark.parametrize("store", ["aws"], indirect=True)
"""What the stand-in has no part in: URLs, and the headers and signatures behind them."""
HAS_NO_STAND_IN = {"presign", "presign_any"}


@pytest.fixture(params=["aws", "memory"])
def store(request: pytest.FixtureRequest) -> TaskStore:
    if request.param == "memory":
        return cast("TaskStore", MemoryStore(Bucket(lambda: datetime.now(UTC))))
    return TaskStore(request.getfixturevalue("settings"))


def record(task_id: str, clock: Clock, prompt: str = "fox") -> Record:
    return moves.create(task_id, GenerationRequest(prompt=prompt), 7, clock(), KEEP)


def test_a_record_comes_back_as_it_was_written(store: TaskStore, clock: Clock) -> None:
    written = store.create(record("a", clock))
    read = store.read("a")
    assert read == written
    assert Record.from_json(read.body) == record("a", clock)


def test_there_is_none_where_none_was_written(store: TaskStore) -> None:
    assert store.read("nobody") is None


def test_creating_twice_loses(store: TaskStore, clock: Clock) -> None:
    store.create(record("a", clock))
    with pytest.raises(LostRace):
        store.create(record("a", clock, "another"))
    kept = store.read("a")
    assert kept is not None
    assert b"fox" in kept.body


def test_a_change_needs_the_record_as_it_is(store: TaskStore, clock: Clock) -> None:
    first = store.create(record("a", clock))
    second = store.change(first, record("a", clock, "owl"))
    with pytest.raises(LostRace):
        store.change(first, record("a", clock, "cat"))
    assert store.read("a") == second


def test_a_change_of_nothing_loses(store: TaskStore, clock: Clock) -> None:
    stored = store.create(record("a", clock))
    with pytest.raises(LostRace):
        store.change(stored, record("gone", clock))


def test_of_many_creators_one_wins(store: TaskStore, clock: Clock) -> None:
    def attempt(number: int) -> bool:
        try:
            store.create(record("contested", clock, f"from {number}"))
        except LostRace:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(8))) == 1


def test_of_many_changers_one_wins(store: TaskStore, clock: Clock) -> None:
    stored = store.create(record("contested", clock))

    def attempt(number: int) -> bool:
        try:
            store.change(stored, record("contested", clock, f"from {number}"))
        except LostRace:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(8))) == 1


def test_the_same_bytes_again_are_the_same_write(store: TaskStore, clock: Clock) -> None:
    """A retry after a lost answer must not take its own first write for somebody else's."""
    stored = store.create(record("a", clock))
    assert store.create(record("a", clock)) == stored


def test_newest_first_page_by_page(store: TaskStore, clock: Clock) -> None:
    for number in range(5):
        clock.forward(1)
        store.announce(record(f"t{number}", clock))
        store.create(record(f"t{number}", clock))
    seen, cursor, pages = [], None, 0
    while pages == 0 or cursor:
        page, cursor = store.newest(2, cursor)
        seen += [Record.from_json(one.body).task_id for one in page]
        pages += 1
    assert seen == ["t4", "t3", "t2", "t1", "t0"]
    assert pages == 3


def test_the_list_never_lies(store: TaskStore, clock: Clock) -> None:
    store.announce(record("crashed-before-create", clock))
    store.announce(record("a", clock))
    clock.forward(5)
    store.announce(record("a", clock))  # a second submitter that lost: its time is not the record's
    clock.forward(-5)
    store.create(record("a", clock))
    page, cursor = store.newest(10)
    assert [Record.from_json(one.body).task_id for one in page] == ["a"]
    assert cursor is None


def test_index_names_sort_by_time_descending(clock: Clock) -> None:
    early = index_name("z", clock())
    clock.forward(0.001)
    late = index_name("a", clock())
    assert late < early
    assert int(early[:13]) == FAR_FUTURE_MS - 1767323045678


def test_only_what_is_handed_out_names_the_public_host(settings: Settings) -> None:
    """Nothing answers there, and nothing that the store itself does asks it, S3's clock included."""
    store = TaskStore(replace(settings, public_endpoint_url="http://127.0.0.1:9/s3/"))
    key = store.image_key("public", 1, 0, "png")
    store.put_image(key, b"picture", "image/png")
    assert store.read_image(key) == b"picture"
    assert store.now()
    for url in (store.presign(key), store.presign_any()):
        assert url.startswith(f"http://127.0.0.1:9/s3/{settings.bucket}/")


@ON_AWS
def test_a_presigned_url_yields_the_image_with_its_headers(store: TaskStore, settings: Settings) -> None:
    key = store.image_key("task-1", 2, 0, "png")
    store.put_image(key, b"\x89PNG...", "image/png")
    url = store.presign(key)
    with urllib.request.urlopen(url) as reply:
        assert reply.read() == b"\x89PNG..."
        assert reply.headers["Content-Type"] == "image/png"
        assert reply.headers["Content-Disposition"] == 'inline; filename="task-1-2-0.png"'
    parts = urlsplit(url)
    query = parse_qs(parts.query)
    assert parts.path == f"/{settings.bucket}/tasks/task-1/2/0.png"
    assert query["X-Amz-Expires"] == ["3600"]
    assert query["X-Amz-Algorithm"] == ["AWS4-HMAC-SHA256"]
    assert query["X-Amz-SignedHeaders"] == ["host"]


def test_the_lifetime_of_urls_is_a_setting(settings: Settings) -> None:
    url = TaskStore(replace(settings, url_lifetime=60)).presign("tasks/x/1/0.png")
    assert parse_qs(urlsplit(url).query)["X-Amz-Expires"] == ["60"]


def test_an_image_that_is_gone(store: TaskStore) -> None:
    with pytest.raises(NotFound):
        store.read_image("tasks/a/1/0.png")


def test_health_is_kept(store: TaskStore) -> None:
    assert store.read_health() is None
    store.write_health({"model_status": "available"})
    assert store.read_health() == {"model_status": "available"}
    store.write_health({"model_status": "unavailable"})
    loaded, failed = store.read_reports()
    assert [one.body["model_status"] for one in (loaded, failed)] == ["available", "unavailable"]
    assert timedelta(0) <= failed.at - loaded.at < timedelta(minutes=1)


def test_the_stand_in_has_the_same_methods() -> None:
    def public(kind: type) -> set[str]:
        return {name for name in vars(kind) if not name.startswith("_")}

    assert public(TaskStore) - public(MemoryStore) == HAS_NO_STAND_IN
    assert public(MemoryStore) <= public(TaskStore)


def test_open_tasks_are_listed_until_they_are_closed(store: TaskStore, clock: Clock) -> None:
    began = datetime.now(UTC)
    for tenant, name in ((None, "b"), (None, "a"), ("alice", "a")):
        store.for_tenant(tenant).announce(record(name, clock))
    listed = list(store.open_tasks())
    assert [(one.tenant, one.task_id) for one in listed] == [(None, "a"), (None, "b"), ("alice", "a")]
    assert all(abs(one.since - began) < timedelta(minutes=1) for one in listed)
    assert [one.name for one in store.open_tasks(listed[0].name)] == [one.name for one in listed[1:]]
    store.close("a")
    store.close("a")  # twice does no harm
    store.for_tenant("alice").close("a")
    assert [one.task_id for one in store.open_tasks()] == ["b"]
    store.open("a")
    assert [one.task_id for one in store.open_tasks()] == ["a", "b"]


def test_who_ends_a_task_late_takes_nothing_off_the_list_that_has_begun_again(store: TaskStore) -> None:
    store.open("a")
    store.open("a", again=True)
    store.close("a")
    (again,) = store.open_tasks()
    assert (again.task_id, again.again, again.tenant) == ("a", True, None)
    store.close("a", again=True)
    assert list(store.open_tasks()) == []


def test_what_a_task_left_behind_is_found_and_deleted(store: TaskStore, clock: Clock) -> None:
    store.create(record("a", clock))
    store.create(record("another", clock))
    keys = [store.image_key("a", 1, 0, "png"), store.checkpoint_key("a"), store.preview_key("a")]
    store.put_image(keys[0], b"one", "image/png")
    store.put_checkpoint("a", b"steps")
    store.put_image(keys[2], b"small", "image/jpeg")
    left = store.objects_of("a")
    assert sorted(left) == sorted(keys)
    assert all(abs(at - datetime.now(UTC)) < timedelta(minutes=1) for at in left.values())
    assert (store.read_image(keys[0]), store.read_checkpoint("a")) == (b"one", b"steps")
    store.delete_checkpoint("a")
    store.delete_checkpoint("a")  # twice does no harm
    assert store.read_checkpoint("a") == b""
    store.delete_objects(store.objects_of("a"))
    assert store.objects_of("a") == {}
    assert store.read("a") is not None


def test_the_doctor_finds_its_place_again(store: TaskStore) -> None:
    assert store.read_doctors_place() is None
    store.write_doctors_place("-/a")
    assert store.read_doctors_place() == "-/a"
    store.write_doctors_place(None)
    assert store.read_doctors_place() is None


def test_what_is_a_tenants_is_nobody_elses(store: TaskStore, clock: Clock) -> None:
    alice, bob = store.for_tenant("alice"), store.for_tenant("bob")
    alice.announce(record("a", clock))
    alice.create(record("a", clock))
    key = alice.image_key("a", 1, 0, "png")
    alice.put_image(key, b"one", "image/png")
    assert [one.read("a") is not None for one in (store, alice, bob)] == [False, True, False]
    assert [len(one.newest(10)[0]) for one in (store, alice, bob)] == [0, 1, 0]
    assert [one.tenant for one in store.all_tenants()] == [None, "alice"]
    for other in (store, bob):
        with pytest.raises(NotFound):
            other.read_image(key)
        with pytest.raises(NotFound):
            other.delete_objects([key])
    for name in ("", "-", "a/b", ".."):
        with pytest.raises(InvalidRequest):
            store.for_tenant(name)


@pytest.mark.parametrize("name", ["", "..", "a/b", "-a", "x" * 129])
def test_no_name_leads_out_of_its_folder(store: TaskStore, name: str) -> None:
    for call in (store.read, store.open, store.objects_of, store.read_checkpoint, store.read_upload):
        with pytest.raises(NotFound):
            call(name)


def test_a_list_is_filtered(store: TaskStore, clock: Clock) -> None:
    for number in range(4):
        clock.forward(1)
        store.announce(record(f"t{number}", clock))
        store.create(record(f"t{number}", clock))
    page, cursor = store.newest(1, None, lambda found: found["task_id"] in {"t0", "t2"})
    assert [Record.from_json(one.body).task_id for one in page] == ["t2"]
    page, cursor = store.newest(1, cursor, lambda found: found["task_id"] in {"t0", "t2"})
    assert ([Record.from_json(one.body).task_id for one in page], cursor) == (["t0"], None)


def test_an_upload_is_kept(store: TaskStore) -> None:
    assert store.read_upload("u") is None
    store.put_upload("u", b"12345", "image/png")
    upload = store.read_upload("u")
    assert upload is not None
    assert (upload.size, upload.body) == (5, b"12345")


def test_spending_is_compared_and_swapped(store: TaskStore, clock: Clock) -> None:
    day = clock().date()
    assert store.read_spending(day) is None
    first = store.write_spending(day, b"{}", None)
    with pytest.raises(LostRace):
        store.write_spending(day, b"[]", None)
    store.write_spending(day, b"[1]", first)
    with pytest.raises(LostRace):
        store.write_spending(day, b"[2]", first)
    kept = store.read_spending(day)
    assert kept is not None
    assert kept.body == b"[1]"


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_store_that_does_not_answer_is_a_service_fault(settings: Settings, clock: Clock) -> None:
    nowhere = TaskStore(replace(settings, bucket="no-such-bucket"))
    with pytest.raises(ServiceFault, match="S3 failed to write"):
        nowhere.put_image("tasks/a/1/0.png", b"x", "image/png")


def test_a_model_in_s3_is_fetched_once_for_each_content(endpoint: str, settings: Settings, tmp_path: Path) -> None:
    s3 = boto3.client("s3", endpoint_url=endpoint)
    s3.put_object(Bucket=settings.bucket, Key="models/one/model_index.json", Body=b"{}")
    s3.put_object(Bucket=settings.bucket, Key="models/one/unet/weights", Body=b"12345")
    s3.put_object(Bucket=settings.bucket, Key="models/one-more/other", Body=b"x")
    here = replace(settings, cache_dir=str(tmp_path))
    folder, revision = fetch_model(f"s3://{settings.bucket}/models/one/", here)
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == {
        "model_index.json",
        "unet/weights",
    }
    assert (folder / "unet/weights").read_bytes() == b"12345"
    assert fetch_model(f"s3://{settings.bucket}/models/one", here) == (folder, revision)
    s3.put_object(Bucket=settings.bucket, Key="models/one/unet/weights", Body=b"54321")
    changed, other = fetch_model(f"s3://{settings.bucket}/models/one", here)
    assert other != revision
    assert (changed / "unet/weights").read_bytes() == b"54321"


def test_a_model_in_s3_may_be_one_object(endpoint: str, settings: Settings, tmp_path: Path) -> None:
    s3 = boto3.client("s3", endpoint_url=endpoint)
    for key in ("models/one.safetensors", "models/one.safetensors.txt"):
        s3.put_object(Bucket=settings.bucket, Key=key, Body=b"12345")
    here = replace(settings, cache_dir=str(tmp_path))
    folder, revision = fetch_model(f"s3://{settings.bucket}/models/one.safetensors", here)
    assert [(path.name, path.read_bytes()) for path in folder.rglob("*")] == [("one.safetensors", b"12345")]
    assert fetch_model(f"s3://{settings.bucket}/models/one.safetensors", here) == (folder, revision)


def test_folder_markers_are_no_files(endpoint: str, settings: Settings, tmp_path: Path) -> None:
    s3 = boto3.client("s3", endpoint_url=endpoint)
    for key, body in (("m/", b""), ("m/unet/", b""), ("m/unet/weights", b"1"), ("m/model_index.json", b"{}")):
        s3.put_object(Bucket=settings.bucket, Key=key, Body=body)
    folder, _ = fetch_model(f"s3://{settings.bucket}/m", replace(settings, cache_dir=str(tmp_path)))
    assert {path.name for path in folder.rglob("*") if path.is_file()} == {"weights", "model_index.json"}


def test_no_model_in_s3(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="nothing at"):
        fetch_model(f"s3://{settings.bucket}/nothing", replace(settings, cache_dir=str(tmp_path)))


class _Scripted(BaseHTTPRequestHandler):
    """An S3 that answers with the next of ``script``'s statuses, for what no emulator does."""

    script: ClassVar[list[tuple[int, str]]] = []
    seen: ClassVar[list[str]] = []

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.seen.append(self.command)
        status, code = self.script.pop(0)
        body = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode() if code else b""
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"e"')
        self.send_header("Last-Modified", "Fri, 02 Jan 2026 03:04:05 GMT")
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        """Silent."""


@pytest.fixture
def scripted(settings: Settings) -> Iterator[TaskStore]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Scripted)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    _Scripted.seen.clear()
    yield TaskStore(replace(settings, aws_endpoint_url=f"http://127.0.0.1:{server.server_port}"))
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_conflict_of_simultaneous_creates_is_tried_again(scripted: TaskStore, clock: Clock) -> None:
    conflict = (409, "ConditionalRequestConflict")
    _Scripted.script[:] = [conflict, (404, "NoSuchKey"), (200, "")]
    assert scripted.create(record("a", clock)).etag == '"e"'
    assert _Scripted.seen == ["PUT", "GET", "PUT"]


def test_a_conflict_of_simultaneous_changes_is_tried_again(scripted: TaskStore, clock: Clock) -> None:
    _Scripted.script[:] = [(200, ""), (409, "ConditionalRequestConflict"), (200, "")]
    stored = scripted.create(record("a", clock))
    assert scripted.change(stored, record("a", clock, "owl")).etag == '"e"'


def test_slow_down_is_tried_again(scripted: TaskStore, clock: Clock) -> None:
    _Scripted.script[:] = [(503, "SlowDown"), (500, "InternalError"), (200, "")]
    scripted.create(record("a", clock))
    assert _Scripted.seen == ["PUT", "PUT", "PUT"]


@pytest.mark.parametrize(("code", "status"), [("AccessDenied", 403), ("NoSuchBucket", 404)])
def test_what_is_refused_is_no_missing_task(scripted: TaskStore, code: str, status: int) -> None:
    """Every role may list the bucket, so a missing key is a 404 of its own."""
    _Scripted.script[:] = [(status, code)]
    with pytest.raises(ServiceFault):
        scripted.read("a")


def test_bad_credentials_are_no_missing_task(scripted: TaskStore) -> None:
    _Scripted.script[:] = [(403, "InvalidAccessKeyId")]
    with pytest.raises(ServiceFault):
        scripted.read("a")
