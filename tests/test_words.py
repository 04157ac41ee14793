"""Words are promises: what the documents and the Makefile say is held against the code."""

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
DOCUMENTS = {
    name: (ROOT / name).read_text() for name in ("README.md", "handler/README.md", "infra/README.md", "tests/README.md")
}
ALL = "\n".join(DOCUMENTS.values())
MOST_LINES = 200
"""Of the first page: what is more belongs beside what it describes."""


def section(name: str, heading: str) -> str:
    """What a document says under a heading of the second level."""
    return re.split(r"^## ", DOCUMENTS[name].partition(f"\n## {heading}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]


def table(heading: str) -> list[list[str]]:
    """The cells of the first table under a heading of handler/README.md, without its first two lines."""
    lines = [line for line in section("handler/README.md", heading).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


def kept() -> set[str]:
    """The repository's files, by their paths; where there is no git, those of the folder."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    return set(listed.stdout.split()) or {
        str(one.relative_to(ROOT)) for one in ROOT.rglob("*") if one.is_file() and "__pycache__" not in one.parts
    }


def anchors(document: str) -> set[str]:
    """What a link may name behind its ``#``, as GitHub makes it of headings."""
    headings = re.findall(r"^#+ (.+)$", document, re.MULTILINE)
    return {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_first_page_is_short() -> None:
    assert len(DOCUMENTS["README.md"].splitlines()) <= MOST_LINES


def test_the_first_page_deploys_as_the_whole_text_does() -> None:
    """Whose commands are run on an emulator: tests/infra/test_readme.py."""
    (block,) = re.findall(r"```sh\n(.*?)```", section("README.md", "Deploy"), re.DOTALL)
    assert set(block.splitlines()) <= set(DOCUMENTS["infra/README.md"].splitlines())


def test_the_map_is_of_the_package_as_it_is() -> None:
    """Each line names a file or folder, and all doors, wings and what they share are there."""
    drawn = section("handler/README.md", "The map").split("```")[1].splitlines()
    assert drawn[1] == "handler/"
    lines = [re.fullmatch(r"  (\S+) {2,}\S.*", line) for line in drawn[2:]]
    assert None not in lines
    names = [line[1] for line in lines if line]
    there = kept()
    for name in names:
        assert f"handler/{name}" in there or any(one.startswith(f"handler/{name}") for one in there), name
    first = {re.sub(r"/.*", "/", one.removeprefix("handler/")) for one in there if one.startswith("handler/")}
    assert first - set(names) == {"__init__.py", "py.typed", "README.md"}
    assert len(names) == len(set(names))


def test_the_life_of_a_task_is_drawn_as_in_the_code() -> None:
    from handler.task import moves

    (drawing,) = re.findall(r"```\n(\(none\).*?)```", section("handler/README.md", "The record"), re.DOTALL)
    lines = [line.strip() for line in (moves.__doc__ or "").splitlines()]
    assert [line.strip() for line in drawing.splitlines() if line.strip() not in lines] == []


def recipes() -> list[str]:
    """The steps of all recipes."""
    return re.split(r"\n(?=\d+\. |#|\n)", section("tests/README.md", "Recipes"))


def test_the_recipes_name_files_that_exist_and_what_is_in_them() -> None:
    there = kept()
    for step in recipes():
        quoted = re.findall(r"`([^`]+)`", step)
        words = [word for text in quoted for word in text.split()]
        places = [word for word in words if word.startswith(("handler/", "infra/", "tests/"))]
        assert [one for one in places if one not in there and not any(f.startswith(f"{one}/") for f in there)] == []
        paths = [word for word in places if word in there]
        if re.match(r"\d+\. ", step):
            assert paths, step
            texts = "".join((ROOT / path).read_text() for path in paths)
            names = [word for word in quoted if re.fullmatch(r"[A-Za-z_]\w+", word)]
            assert [name for name in names if not re.search(rf"\b{name}\b", texts)] == []
    assert len([step for step in recipes() if step.startswith("1. ")]) == 4


def test_every_setting_is_in_the_table_with_its_default_and_text() -> None:
    written = {row[0].strip("`"): row[1:] for row in table("Settings")}
    for spec in variables():
        name, default = spec.name.upper(), spec.default
        off = "`false`" if spec.metadata["one_of"] else "`0`"
        shown = off if default is False else f"`{default:g}`" if isinstance(default, float) else f"`{default}`"
        assert written.pop(name) == [shown if default != "" else "", spec.metadata["text"]]
    assert written == {}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_file_and_heading_that_a_document_links_is_there(name: str) -> None:
    there = kept()
    for place, heading in re.findall(r"\]\((?!https?://)([^)#]*)#?([^)]*)\)", DOCUMENTS[name]):
        path = str((ROOT / name).parent.joinpath(place).resolve().relative_to(ROOT)) if place else name
        assert path in there or any(one.startswith(f"{path}/") for one in there), place
        assert not heading or heading in anchors((ROOT / path).read_text()), f"{path}#{heading}"


def test_every_error_code_is_in_the_table() -> None:
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


def test_every_command_of_the_documents_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:^|`|&& )make ([a-z-]+)", ALL, re.MULTILINE)) <= targets
    commands = subprocess.run(
        [ROOT / ".venv/bin/darkroom" if (ROOT / ".venv").exists() else "darkroom", "--help"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for command in set(re.findall(r"^(?:\.venv/bin/)?darkroom ([a-z]+)", ALL, re.MULTILINE)):
        assert re.search(rf"\b{command}\b", commands)


def test_ci_runs_what_the_documents_show() -> None:
    for line in (ROOT / ".ci/run").read_text().splitlines():
        if line.startswith("make "):
            assert line in ALL


def test_every_field_of_a_request_is_in_the_table() -> None:
    assert {row[0].strip("`") for row in table("Request")} == set(GenerationRequest.model_fields)


@pytest.mark.parametrize("body", re.findall(r"--message-body '(\{.*?\})'", ALL) + re.findall(r"-d '(\{.*?\})'", ALL))
def test_every_request_of_the_documents_is_valid(body: str) -> None:
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
