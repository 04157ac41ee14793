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
    "EVENT_BUS": "darkroom",
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
        ("cli.main", (*HEAVY, "boto3", "moto", "botocore.session")),
        ("contract.openapi", HEAVY),
        ("__main__", HEAVY),
    ],
)
def test_a_room_stays_light(module: str, light: tuple[str, ...]) -> None:
    ready = f"import handler.{module} as room\ngetattr(getattr(room, 'app', None), '__wrapped__', lambda: None)()"
    assert not loaded_by(ready) & set(light)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_each_thing_has_its_one_place(path: Path) -> None:
    """torch under engine/, AWS under aws/, its stand-ins under cli/local/, the environment in settings."""
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
    if room.parts[:2] != ("cli", "local"):
        assert not imported & {"moto", "werkzeug"}
        if room.parts[0] != "aws":
            assert not imported & {"obstore", "boto3", "botocore"}
    if room.name not in {"settings.py", "process.py"}:
        assert not any(
            isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv"} for node in ast.walk(tree)
        )
    strings = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    if room != Path("aws/store.py"):
        assert not any(text.startswith(("tasks/", "index/")) for text in strings)
    if room != Path("aws/queue.py") and room.parts[:2] != ("cli", "local"):
        assert not {"ReceiptHandle", "VisibilityTimeout"} & set(strings)


def test_every_module_stands_in_a_wing() -> None:
    """Outside the wings there are the doors, and what all of them share."""
    doors = {"generate", "submit", "status", "deadletter", "doctor", "worker", "__main__", "__init__"}
    assert {file.stem for file in PACKAGE.glob("*.py")} == doors | {
        "settings",
        "environment",
        "process",
        "errors",
        "logs",
        "clock",
    }


def test_modules_and_functions_are_short() -> None:
    """At most 250 lines of code a module and 50 a function's body: without docstrings, comments and blank lines."""
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        assert len(code_lines(tree)) <= 250, path
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                long = {line for line in code_lines(node) if line >= node.body[0].lineno}
                assert len(long) <= 50, f"{path}: {node.name}"


def code_lines(tree: ast.AST) -> set[int]:
    """The lines on which a statement, or a part of one, stands."""
    lines: set[int] = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.stmt) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            continue  # an expression that is a constant is a docstring
        inner = [one.lineno for one in ast.iter_child_nodes(node) if isinstance(one, ast.stmt)]
        last = max(node.lineno, min(inner) - 1) if inner else node.end_lineno or node.lineno
        lines.update(range(node.lineno, last + 1))
    return lines
