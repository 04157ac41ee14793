"""A host that is about to go says so by a stop file or through EC2's metadata; running tasks are saved then."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

from handler.aws.interruptions import InterruptionNotices
from handler.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def metadata(*, interrupted: bool) -> Iterator[str]:
    """EC2's metadata service, version 2: nothing without the token."""

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            asked = self.path == "/latest/api/token" and self.headers.get("X-aws-ec2-metadata-token-ttl-seconds")
            self._answer(200 if asked else 400, b"secret")

        def do_GET(self) -> None:
            if self.path.startswith("/latest") and self.headers.get("X-aws-ec2-metadata-token") != "secret":
                self._answer(401, b"")
            elif self.path == "/v4/task-1/task":
                status = "STOPPED" if interrupted else "RUNNING"
                self._answer(200, b'{"DesiredStatus": "%s"}' % status.encode())
            elif self.path == "/latest/meta-data/spot/instance-action" and interrupted:
                self._answer(200, b'{"action": "terminate", "time": "2026-01-02T03:04:05Z"}')
            else:
                self._answer(404, b"")

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_spot_notice_is_told_once() -> None:
    told = threading.Semaphore(0)
    with metadata(interrupted=True) as url:
        settings = Settings(spot_notices=True, aws_ec2_metadata_service_endpoint=url + "/")
        InterruptionNotices(settings, told.release, every=0.05).start()
        assert told.acquire(timeout=10)
        assert not told.acquire(timeout=0.3)


def test_no_notice_is_no_notice() -> None:
    with metadata(interrupted=False) as url:
        settings = Settings(spot_notices=True, aws_ec2_metadata_service_endpoint=url)
        assert InterruptionNotices(settings, lambda: None).notice() is None
        assert InterruptionNotices(Settings(aws_ec2_metadata_service_endpoint=url), lambda: None).notice() is None
    assert InterruptionNotices(settings, lambda: None).notice() is None  # nobody answers


def test_a_stop_file(tmp_path: Path) -> None:
    file, told = tmp_path / "stop", threading.Event()
    notices = InterruptionNotices(Settings(stop_file=str(file)), told.set, every=0.05)
    assert notices.notice() is None
    notices.start()
    file.touch()
    assert told.wait(10)
    assert notices.notice() == f"the stop file {file}"


def test_ecs_tells_through_its_metadata() -> None:
    for interrupted in (False, True):
        with metadata(interrupted=interrupted) as url:
            notices = InterruptionNotices(Settings(ecs_container_metadata_uri_v4=f"{url}/v4/task-1"), lambda: None)
            assert bool(notices.notice()) == interrupted
    assert notices.notice() is None  # nobody answers any more: SIGTERM will say so
