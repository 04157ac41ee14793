"""Words are promises: what the README and the Makefile say is held against the code."""

from __future__ import annotations

import json
import pkgutil
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from handler.contract.request import GenerationRequest, parse
from handler.errors import CODES, DarkroomError
from handler.settings import variables

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def table(heading: str) -> list[list[str]]:
    """The cells of the first table under a heading, without its first two lines."""
    section = re.split(r"^## ", README.partition(f"\n## {heading}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


def test_every_setting_is_in_the_readme_with_its_default_and_text() -> None:
    written = {row[0].strip("`"): row[1:] for row in table("Settings")}
    for spec in variables():
        name, default = spec.name.upper(), spec.default
        shown = "`0`" if default is False else f"`{default:g}`" if isinstance(default, float) else f"`{default}`"
        assert written.pop(name) == [shown if default != "" else "", spec.metadata["text"]]
    assert written == {}


def test_every_file_that_the_readme_shows_or_links_is_in_the_repository() -> None:
    named = set(re.findall(r"\]\((?!https?://|#)([^)#]+)", README))
    kept = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    there = set(kept.stdout.split()) or {str(one.relative_to(ROOT)) for one in ROOT.rglob("*")}
    assert {one for one in named if one.rstrip("/") not in there and not any(f.startswith(one) for f in there)} == set()


def test_every_error_code_is_in_the_readme() -> None:
    assert {row[0].strip("`") for row in table("Errors")} == set(CODES)


def test_the_tree_of_errors_is_drawn_as_it_is() -> None:
    from handler import errors

    drawn = errors.__doc__ or ""
    classes = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, DarkroomError)]
    for one in classes:
        (line,) = [line for line in drawn.splitlines() if re.search(rf"\b{one.__name__}\b", line)]
        if one.__name__ not in {"DarkroomError", "Finished", "Held", "LostRace"}:
            assert one.code in line
            assert str(one.http_status) in line
            assert ("yes" in line) == one.retryable


def test_every_command_of_the_readme_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z-]+)", README)) <= targets
    commands = subprocess.run(
        [ROOT / ".venv/bin/darkroom" if (ROOT / ".venv").exists() else "darkroom", "--help"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for command in set(re.findall(r"^(?:\.venv/bin/)?darkroom ([a-z]+)", README, re.MULTILINE)):
        assert re.search(rf"\b{command}\b", commands)


def test_ci_runs_what_the_readme_shows() -> None:
    for line in (ROOT / ".ci/run").read_text().splitlines():
        if line.startswith("make "):
            assert line in README


def test_every_field_of_a_request_is_in_the_readme() -> None:
    assert {row[0].strip("`") for row in table("Request")} == set(GenerationRequest.model_fields)


@pytest.mark.parametrize(
    "body", re.findall(r"--message-body '(\{.*?\})'", README) + re.findall(r"-d '(\{.*?\})'", README)
)
def test_every_request_of_the_readme_is_valid(body: str) -> None:
    assert parse(body).accept()


def test_torch_is_pinned_and_every_dependency_earns_its_place() -> None:
    assert "torch==2.13.0" in (ROOT / "infra/constraints.txt").read_text()
    text = (ROOT / "pyproject.toml").read_text()
    project = tomllib.loads(text)["project"]
    for group in [project["dependencies"], *project["optional-dependencies"].values()]:
        for requirement in group:
            (line,) = [line for line in text.splitlines() if f'"{requirement}"' in line]
            assert "#" in line, f"why {requirement}?"


def test_the_recorded_event_is_one() -> None:
    event = json.loads((ROOT / "tests/events/sqs.json").read_text())
    assert {record["eventSource"] for record in event["Records"]} == {"aws:sqs"}


def test_what_docstrings_refer_to_exists() -> None:
    for path in (ROOT / "handler").rglob("*.py"):
        for name in re.findall(r":(?:mod|class|func|meth):`~?(handler[\w.]*)`", path.read_text()):
            pkgutil.resolve_name(name)
