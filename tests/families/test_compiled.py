"""What one worker has compiled another one takes: the whole way, with torch's compiler, which needs a C++ compiler."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from handler.settings import BUILT_IN_MODEL

pytestmark = pytest.mark.families

WORKER = """
import sys
from dataclasses import replace
from handler.engine.starting import start
from handler.settings import Settings
start(Settings.load()).close()
from torch._dynamo.utils import counters
print(dict(counters["inductor"]))
"""


def run(folder: Path, *command: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """On a machine of its own: nothing that torch or we have kept is there."""
    folder.mkdir()
    own = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "TMPDIR": str(folder), "CACHE_DIR": str(folder / "cache")}
    return subprocess.run(
        [sys.executable, *command],
        env={**own, "COMPILE": "1", "MAX_BATCH": "1", "DTYPE": "float32", **environ},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )


def test_what_one_has_compiled_another_takes(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(BUILT_IN_MODEL, model)
    told = run(tmp_path / "one", "-m", "handler.cli.main", "prove", "--out", str(model), MODEL_ID=str(model))
    *_, proofs, compiled, digest = told.stdout.splitlines()
    assert Path(proofs).parent == model / "proofs"
    assert Path(compiled) == model / "compiled.bin"
    name, _, digest = digest.partition("=")
    assert name == "COMPILED_SHA256"
    other = run(tmp_path / "other", "-c", WORKER, MODEL_ID=str(model), COMPILED_SHA256=digest)
    lines = [json.loads(line) for line in (other.stdout + other.stderr).splitlines() if line.startswith('{"')]
    (loaded,) = [line for line in lines if line["message"] == "compiled code is loaded"]
    assert loaded["parts"] > 0
    assert [line["proven_before"] for line in lines if "proven_before" in line] == [True]
    assert "fxgraph_cache_hit" in other.stdout.splitlines()[-1]
    assert "fxgraph_cache_miss" not in other.stdout.splitlines()[-1]
