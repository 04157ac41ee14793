"""How people begin, most of them wrongly. Each ends with the right status, in few words, and without a traceback."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ..support import on_one_core

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.beginnings
DEAD = "http://127.0.0.1:9"
MOST_LINES = 3
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
BUCKET = {"BUCKET": "my-bucket"}
QUEUE = {"QUEUE_URL": f"{DEAD}/123456789012/tasks"}
OWN = {**BUCKET, **QUEUE, **KEYS}
DEAD_AWS = {**OWN, "AWS_ENDPOINT_URL": DEAD}
PROXIES = {name: DEAD for word in ("http_proxy", "https_proxy", "all_proxy") for name in (word, word.upper())}
OTHERS = {
    "AWS_PROFILE": "nope",
    "AWS_ENDPOINT_URL": DEAD,
    "AWS_REGION": "mars-1",
    "AWS_ACCESS_KEY_ID": "half",
    **BUCKET,
}
TINY = ("fox", "--steps", "2", "--out", "{tmp}/pictures")
EVENT = str(Path(__file__).parents[1] / "events" / "sqs.json")
UNSET = "unset: BUCKET; for example BUCKET=my-bucket"
NO_KEYS = "no AWS credentials: set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"

Beginning = tuple[list[str], dict[str, str], int, str]


def begin(*words: str | dict[str, str], status: int = 2, says: str = "") -> Beginning:
    """A command line, and among its words the variables that are set."""
    environ = {name: value for one in words if isinstance(one, dict) for name, value in one.items()}
    return [one for one in words if isinstance(one, str)], environ, status, says


BEGINNINGS = [
    begin("darkroom", status=0),
    begin("darkroom", "--help", status=0),
    begin("darkroom", "nonsense", says="No such command 'nonsense'; see darkroom --help"),
    begin("darkroom", "invoke", says="give a prompt or --event FILE, one of them"),
    begin("darkroom", "invoke", "fox", "--event", EVENT, says="give a prompt or --event FILE"),
    begin("darkroom", "invoke", "fox", "--steps", "many", says="--steps"),
    begin("darkroom", "invoke", "fox", "--stepz", "2", says="--stepz"),
    begin("darkroom", "invoke", "fox", "--image", "{tmp}/none.png", says="none.png"),
    begin("darkroom", "invoke", "--event", "{tmp}/none.json", says="none.json"),
    begin("darkroom", "invoke", "--event", "{tmp}/words.txt", says="words.txt holds no SQS event"),
    begin("darkroom", "invoke", "fox", "--out", "{tmp}/words.txt", status=1, says="{tmp}/words.txt: File exists"),
    begin("darkroom", "invoke", "fox", "--out", "/dev/null/a", status=1, says="/dev/null/a: Not a directory"),
    begin("darkroom", "invoke", "fox", "--out", "/proc/a", status=1, says="/proc/a: "),
    begin("darkroom", "invoke", "fox", {"LEASE": "soon"}, says="LEASE='soon': must be a whole number from 5 to 3600"),
    begin(
        "darkroom",
        "invoke",
        "fox",
        "--aws",
        KEYS,
        says="unset: BUCKET, QUEUE_URL; for example BUCKET=my-bucket QUEUE_URL=https://sqs.",
    ),
    begin("darkroom", "invoke", "fox", "--endpoint", DEAD, KEYS, says="unset: BUCKET, QUEUE_URL; for example"),
    begin("darkroom", "invoke", "fox", "--aws", BUCKET, QUEUE, says=NO_KEYS),
    begin(
        "darkroom",
        "invoke",
        "fox",
        "--model",
        "{tmp}/none",
        status=1,
        says="cannot load {tmp}/none: there is no such folder",
    ),
    begin(
        "darkroom", "invoke", "fox", "--model", "{tmp}", status=1, says="cannot load {tmp}: it has no model_index.json"
    ),
    begin("darkroom", "invoke", *TINY, PROXIES, status=0),
    begin(
        "darkroom",
        "invoke",
        *TINY,
        OTHERS,
        status=0,
        says="leaves aside AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, AWS_PROFILE, AWS_REGION, BUCKET; --aws uses them",
    ),
    begin("darkroom", "serve", "--port", "{taken}", status=1, says="{taken}"),
    begin(
        "darkroom",
        "serve",
        "--model",
        "{tmp}/none",
        "--port",
        "0",
        status=1,
        says="cannot load {tmp}/none: there is no such folder",
    ),
    begin("darkroom", "serve", "--aws", KEYS, says="unset: BUCKET, QUEUE_URL"),
    begin("darkroom", "submit", says="prompt"),
    begin("darkroom", "submit", "fox", says=UNSET),
    begin("darkroom", "submit", "fox", BUCKET, says=NO_KEYS),
    begin("darkroom", "submit", "fox", BUCKET, KEYS, says="unset: QUEUE_URL; for example QUEUE_URL=https://sqs."),
    begin("darkroom", "submit", "fox", "--steps", "999", "--width", "3", OWN, says="num_inference_steps: "),
    begin("darkroom", "submit", "fox", "--api", "ftp://here", says="'ftp://here' is no http(s) URL of a service"),
    begin("darkroom", "submit", "fox", DEAD_AWS, status=1, says=f"nothing answers at {DEAD}"),
    begin("darkroom", "status", "mine", says=UNSET),
    begin("darkroom", "status", "mine", BUCKET, says=NO_KEYS),
    begin("darkroom", "status", "mine", BUCKET, {"AWS_ACCESS_KEY_ID": "half"}, says="Missing SecretAccessKey"),
    begin("darkroom", "status", "mine", BUCKET, {"AWS_PROFILE": "nope"}, says="AWS_PROFILE='nope'"),
    begin("darkroom", "status", "mine", BUCKET, KEYS, {"AWS_ENDPOINT_URL": "nonsense"}, says="AWS_ENDPOINT_URL"),
    begin("darkroom", "status", "mine", DEAD_AWS, status=1, says=f"nothing answers at {DEAD}"),
    begin(
        "darkroom",
        "download",
        "mine",
        "--out",
        "/dev/null/a",
        DEAD_AWS,
        status=1,
        says="/dev/null/a: Not a directory",
    ),
    begin("darkroom", "list", "--status", "nonsense", says="--status must be one of pending, "),
    begin("darkroom", "redrive", says="give --task ID or --all"),
    begin("darkroom", "redrive", "--all", "--since", "lately", DEAD_AWS, says="'lately' is neither a date"),
    begin("darkroom", "redrive", "--all", says="unset: BUCKET, QUEUE_URL"),
    begin("darkroom", "doctor", DEAD_AWS, status=1, says=f"nothing answers at {DEAD}"),
    begin("darkroom", "plan", "--rate", "60", says="give --step-seconds or --from FILE"),
    begin(
        "darkroom", "plan", "--rate", "60", "--step-seconds", "1", "--prices", "{tmp}/words.txt", says="{tmp}/words.txt"
    ),
    begin(
        "darkroom", "card", "--model", "some/model", "--write", says="needs a model in a folder, and some/model is none"
    ),
    begin("darkroom", "card", "--model", "./none", status=1, says="cannot load ./none: there is no such folder"),
    begin("darkroom", "schema", status=0),
    begin("darkroom", "worker", says="unset: BUCKET, QUEUE_URL"),
    begin("handler", says="unset: BUCKET, QUEUE_URL"),
    begin("handler", "--help", status=0),
    begin("handler", OWN, {"STEP_LIMIT": "never"}, says="STEP_LIMIT='never'"),
]


@pytest.fixture(scope="module")
def taken() -> Iterator[str]:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        yield str(one.getsockname()[1])


@pytest.mark.parametrize(
    ("words", "environ", "status", "says"),
    BEGINNINGS,
    ids=[" ".join([*words[:3], *environ])[:60] for words, environ, _, _ in BEGINNINGS],
)
def test_a_beginning(
    tmp_path: Path, taken: str, words: list[str], environ: dict[str, str], status: int, says: str
) -> None:
    (tmp_path / "words.txt").write_text("these are words")
    program, *arguments = [word.format(tmp=tmp_path, taken=taken) for word in words]
    module = "handler.cli.main" if program == "darkroom" else "handler"
    base = {
        "PATH": os.environ["PATH"],
        "TERM": "dumb",
        "COLUMNS": "34",
        "MAX_BATCH": "2",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    command = [sys.executable, "-m", module, *arguments]
    with on_one_core():
        done = subprocess.run(
            command, env=base | environ, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )
    assert done.returncode == status, done.stderr
    lines = [line for line in done.stderr.splitlines() if not is_logged(line)]
    assert len(lines) <= MOST_LINES, done.stderr
    assert says.format(tmp=tmp_path, taken=taken) in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert not re.search(r"\x1b", done.stdout + done.stderr), "no colours where there is no terminal"


def is_logged(line: str) -> bool:
    """A JSON line of a worker's log."""
    try:
        return "level" in json.loads(line)
    except ValueError:
        return False
