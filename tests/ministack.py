"""MiniStack as a test server: an AWS emulator that verifies presigned URLs, in its own environment and process."""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

if TYPE_CHECKING:
    from collections.abc import Iterator

READY_WITHIN = 60.0
CERTIFICATE = "ministack-tls/server.crt"


@contextmanager
def ministack(python: str, *, auth: bool = True) -> Iterator[str]:
    """Starts it on a free port of 127.0.0.1; yields its URL. Root credentials are test/test."""
    with ministack_server(python, auth=auth) as (url, _):
        yield url


@contextmanager
def ministack_server(python: str, *, auth: bool = True, tls: bool = False) -> Iterator[tuple[str, str]]:
    """The same with TLS, where asked for; yields the URL and the file of the certificate that it made itself."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url, name = f"{'https' if tls else 'http'}://127.0.0.1:{port}", f"test-{uuid4()}"
    with tempfile.TemporaryDirectory(prefix="ministack-") as folder:
        inherited = {key: os.environ[key] for key in ("PATH", "HOME", "LANG") if key in os.environ}
        environ = inherited | {
            "GATEWAY_PORT": str(port),
            "BIND_HOST": "127.0.0.1",
            "AUTH": "true" if auth else "false",
            "USE_SSL": "1" if tls else "0",
            "IOT_MTLS_ENABLED": "0",
            "SFTP_ENABLED": "0",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "LOG_LEVEL": "WARNING",
            "MINISTACK_VERSION": name,
            "TMPDIR": folder,
        }
        log = Path(folder, "log")
        with log.open("wb") as sink:
            command = [str(Path(python).absolute()), "-m", "ministack"]
            child = subprocess.Popen(command, env=environ, cwd=folder, stdout=sink, stderr=sink)
        try:
            deadline = time.monotonic() + READY_WITHIN
            while not _ready(url, name):
                if child.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"MiniStack did not start: {log.read_text()[-2000:]}")
                time.sleep(0.05)
            yield url, str(Path(folder, CERTIFICATE)) if tls else ""
        finally:
            child.terminate()
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def _ready(url: str, name: str) -> bool:
    """Whether it is our own child, and no other server on the port, that answers."""
    try:
        # Before its certificate is known: the random name in the answer tells who it is.
        anyone = ssl._create_unverified_context()
        with urllib.request.urlopen(f"{url}/_ministack/health", timeout=2, context=anyone) as reply:
            seen = json.load(reply)
    except (OSError, ValueError):
        return False
    return bool(seen.get("version") == name and seen["ready_scripts"]["status"] == "completed")
