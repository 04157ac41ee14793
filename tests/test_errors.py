"""What callers read is ours: a library's text, which may hold paths, hosts and keys, gets into no message or record."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from handler import errors

PACKAGE = Path(errors.__file__).parent
OURS = {
    name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, errors.DarkroomError)
}
SAFE = {"strerror", "errno"}
"""Of a library's fault; its type's name may be told, too."""
FOR_THE_OPERATOR = {
    "engine/loading.py": "the reason why a model cannot be loaded: LazyEngine logs it, and reports an id in its place",
    "engine/warmup.py": "the reason why a model draws nothing, likewise",
    "engine/attention.py": "a setting that cannot be followed, likewise",
    "aws/preflight.py": "what AWS answers to an operator's questions",
    "aws/tracing.py": "the cause in a trace",
    "aws/credentials.py": "what is wrong with the credentials of the environment, before a command begins",
    "aws/s3.py": "a profile, credentials or an endpoint that cannot be used, at start",
    "aws/queue.py": "the same",
    "aws/endpoints.py": "the same",
    "engine/sizes.py": "a number is read off a pipeline's own check, and nothing else of it",
    "work/liveness.py": "why the health check of a container fails",
    "api/pricing.py": "a price file of the command line's user",
    "contract/request.py": "where the caller's own body is no JSON",
}
"""Modules that put a library's text into words which no caller of the API sees, but for the last: there the words are
on what the caller sent."""


def told(source: str) -> list[int]:
    """The lines on which the text of a fault that was caught, and is not ours, goes anywhere but into the log."""
    lines = []
    for handler in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ExceptHandler)):
        caught = {node.id for node in ast.walk(handler.type) if isinstance(node, ast.Name)} if handler.type else set()
        if handler.name is None or (caught and caught <= OURS):
            continue
        kept = {id(part) for node in ast.walk(handler) if _may_hold(node, handler.name) for part in ast.walk(node)}
        spelled = [node for node in ast.walk(handler) if _spells(node, handler.name) and id(node) not in kept]
        lines += [getattr(node, "lineno", 0) for node in spelled]
    return sorted(set(lines))


def _may_hold(node: ast.AST, fault: str) -> bool:
    """Calls of the logger, comparisons, the type's name, and attributes that are safe."""
    match node:
        case ast.Call(func=ast.Attribute(value=ast.Name(id="logger"))) | ast.Compare():
            return True
        case ast.FormattedValue(value=ast.Attribute(value=ast.Call(func=ast.Name(id="type")), attr="__name__")):
            return True
        case ast.FormattedValue(value=ast.Attribute(value=ast.Name(id=name), attr=attr)):
            return name == fault and attr in SAFE
    return False


def _spells(node: ast.AST, fault: str) -> bool:
    match node:
        case ast.FormattedValue() | ast.Call(func=ast.Name(id="str" | "repr")):
            return any(isinstance(part, ast.Name) and part.id == fault for part in ast.walk(node))
        case ast.Attribute(value=ast.Name(id=name), attr="args"):
            return name == fault
    return False


@pytest.mark.parametrize(
    "says",
    [
        "raise Internal(f'broke: {fault}')",
        "raise Internal('broke: ' + str(fault))",
        "raise Internal(fault.args[0])",
        "end(Internal(f'{type(fault).__name__}: {fault!r}'))",
    ],
)
def test_the_test_finds_what_it_looks_for(says: str) -> None:
    assert told(f"try:\n    draw()\nexcept (OSError, ValueError) as fault:\n    {says}\n") == [4]


@pytest.mark.parametrize(
    "says",
    [
        "logger.error('broke', fault=str(fault), text=f'{fault}')",
        "raise Internal(f'broke: {type(fault).__name__}') from fault",
        "raise WorkerBroken(f'the disk: {fault.strerror}') from fault",
        "found = 'NoSuchKey' in str(fault)",
    ],
)
def test_the_test_leaves_the_log_alone(says: str) -> None:
    assert told(f"try:\n    draw()\nexcept OSError as fault:\n    {says}\n") == []


def test_no_message_holds_a_librarys_text() -> None:
    rooms = ("api", "aws", "care", "contract", "engine", "task", "work")
    found = {
        str(path.relative_to(PACKAGE)): lines
        for room in rooms
        for path in sorted((PACKAGE / room).glob("*.py"))
        if (lines := told(path.read_text()))
    }
    assert {name: lines for name, lines in found.items() if name not in FOR_THE_OPERATOR} == {}
    assert set(FOR_THE_OPERATOR) <= set(found), "an exception that is needed no longer"
