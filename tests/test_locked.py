"""What the image installs is named file by file, and is what ``pyproject.toml`` asks for."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SHIPPED = [
    *PROJECT["dependencies"],
    *(line for name in ("engine", "lambda", "cli") for line in PROJECT["optional-dependencies"][name]),
]
LINES = re.compile(r"^([a-z0-9-]+==[^\n]*?) \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", re.MULTILINE)
LOCKED, LIGHT = (LINES.findall((ROOT / "infra" / name).read_text()) for name in ("locked.txt", "locked-light.txt"))
"""Name, version and marker; the hashes of its files."""


def test_every_package_has_hashes() -> None:
    lines = [line for line in (ROOT / "infra/locked.txt").read_text().splitlines() if line and line[0] not in " #"]
    assert len(lines) == len(LOCKED) > 40


@pytest.mark.parametrize("asked", [line for line in SHIPPED if not line.startswith("torch")])
def test_what_is_asked_for_is_locked(asked: str) -> None:
    """Fails after a change of ``pyproject.toml`` without a ``make lock``."""
    requirement = Requirement(asked)
    found = [one for one in map(Requirement, (line for line, _ in LOCKED)) if one.name == requirement.name]
    assert [version.version for one in found for version in one.specifier] != [], f"{asked}: make lock"
    assert all(requirement.specifier.contains(version.version) for one in found for version in one.specifier)


def test_the_light_image_is_a_part_of_the_other() -> None:
    names = {Requirement(line).name for line, _ in LIGHT}
    assert set(LIGHT) <= set(LOCKED)
    assert {Requirement(line).name for line in PROJECT["dependencies"]} <= names
    assert not names & {Requirement(line).name for line in PROJECT["optional-dependencies"]["engine"]}
