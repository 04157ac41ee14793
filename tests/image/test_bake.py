"""A model of one's own in the image: what ``bake.py`` writes is what a handler then loads, by the same name."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import boto3
import pytest

from handler.cli.local.aws import CREDENTIALS
from handler.contract.health import baked_card
from handler.engine.loading import load_pipeline
from handler.settings import BUILT_IN_MODEL, Settings

pytestmark = pytest.mark.image

ROOT = Path(__file__).parent.parent.parent


def bake(folder: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """As the Dockerfile does, with folders of the test's."""
    (folder / "context").mkdir(exist_ok=True)
    names = [str(folder / name) for name in ("context", "weights", "cache")]
    variables = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HOME": str(folder), **environ}
    command = [sys.executable, str(ROOT / "infra/bake.py"), *names]
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=False, timeout=120)


def test_without_a_model_there_is_nothing_to_bake(tmp_path: Path) -> None:
    assert bake(tmp_path).returncode == 0
    assert list((tmp_path / "weights").iterdir()) == []


def test_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(BUILT_IN_MODEL, tmp_path / "context/models/mine")
    done = bake(tmp_path, MODEL_ID="models/mine", MODEL_REVISION="v1")
    assert done.returncode == 0, done.stderr
    monkeypatch.chdir(tmp_path / "weights")
    settings = Settings(model_id="models/mine")
    card = baked_card(settings)
    assert card is not None
    assert (card["id"], card["revision"], card["dtype"]) == ("models/mine", "v1", "auto")
    assert card["defaults"] == json.loads((BUILT_IN_MODEL / "model_card.json").read_text())["defaults"]
    _, loaded = load_pipeline(settings)
    assert (loaded.id, loaded.revision) == ("models/mine", "v1")


def test_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Settings, endpoint: str) -> None:
    s3 = boto3.client("s3", endpoint_url=endpoint)
    for path in BUILT_IN_MODEL.rglob("*"):
        if path.is_file():
            s3.put_object(
                Bucket=settings.bucket, Key=f"models/one/{path.relative_to(BUILT_IN_MODEL)}", Body=path.read_bytes()
            )
    name = f"s3://{settings.bucket}/models/one"
    done = bake(tmp_path, MODEL_ID=name, AWS_ENDPOINT_URL=settings.aws_endpoint_url, **CREDENTIALS)
    assert done.returncode == 0, done.stderr
    monkeypatch.chdir(tmp_path / "weights")
    # Where no S3 answers: the image needs none.
    _, loaded = load_pipeline(
        Settings(model_id=name, aws_endpoint_url="http://127.0.0.1:9", cache_dir=str(tmp_path / "none"))
    )
    assert loaded.id == name
    assert loaded.revision
    assert loaded.revision == json.loads((tmp_path / "weights" / name / "model_card.json").read_text())["revision"]


@pytest.mark.parametrize("name", ["/etc", "../mine", "a/../../b"])
def test_a_folder_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    done = bake(tmp_path, MODEL_ID=name)
    assert done.returncode == 1
    assert "must lie inside the checkout" in done.stderr
