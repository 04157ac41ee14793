"""What each door loads: the light handlers stay light, and heavy rooms are entered only when needed."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import handler

PACKAGE = Path(handler.__file__).parent
HEAVY = ("torch", "diffusers", "transformers", "PIL")
ENVIRON = {
    "PATH": os.environ["PATH"],
    "BUCKET": "bucket",
    "QUEUE_URL": "http://127.0.0.1:9/1/q",
    "AWS_REGION": "us-east-1",
}


def loaded_by(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], env=ENVIRON, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("module", "light"),
    [
        ("status", (*HEAVY, "pydantic", "boto3", "botocore.session", "moto")),
        ("submit", (*HEAVY, "boto3", "moto")),
        ("generate", (*HEAVY, "boto3", "moto")),
        ("worker", (*HEAVY, "boto3", "moto")),
        ("cli", (*HEAVY, "boto3", "moto", "botocore.session")),
        ("openapi", HEAVY),
        ("__main__", HEAVY),
    ],
)
def test_a_room_stays_light(module: str, light: tuple[str, ...]) -> None:
    ready = f"import handler.{module} as room\ngetattr(room, '_warm', lambda: None)()"
    assert not loaded_by(ready) & set(light)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_each_thing_has_its_one_place(path: Path) -> None:
    """torch under engine/, S3 in s3, storage and weights, SQS in taskqueue, the environment in settings."""
    room = path.relative_to(PACKAGE)
    tree = ast.parse(path.read_text())
    imported = {
        name.partition(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom) and node.level == 0
            else []
        )
    }
    if room.parts[0] != "engine":
        assert not imported & {*HEAVY, "safetensors", "accelerate"}
    if room.parts[0] != "local":
        assert not imported & {"moto", "werkzeug"}
        if room.name not in {"s3.py", "storage.py", "weights.py"}:
            assert not imported & {"obstore", "boto3"}
        if room.name not in {"s3.py", "taskqueue.py"}:
            assert "botocore" not in imported
    if room.name != "settings.py":
        assert not any(
            isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv"} for node in ast.walk(tree)
        )
    strings = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    if room.name != "storage.py":
        assert not any(text.startswith(("tasks/", "index/")) for text in strings)
