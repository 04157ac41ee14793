"""What is in the image, and what is not."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .container import Image

pytestmark = pytest.mark.image

ROOT = Path(__file__).parent.parent.parent
MOST_BYTES = 1_200_000_000
SITE = "opt/venv/lib/python3.11/site-packages"


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")  # beside the tests' own Python, which need not be on the path
    linted = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, check=False, timeout=60)
    assert (linted.returncode, linted.stdout) == (0, "")


def test_its_size_by_layer(image: Image) -> None:
    for made, size in image.layers.items():
        print(f"{size / 1e6:8.1f} MB  {made[:80]}")
    assert sum(image.layers.values()) < MOST_BYTES


def test_what_it_says_of_itself(image: Image) -> None:
    assert image.command == ["python", "-m", "handler"]
    assert image.config["User"] == "10001:10001"
    assert image.config["Healthcheck"]["Test"] == ["CMD", "python", "-m", "handler.work.liveness"]
    assert "HF_HUB_OFFLINE=1" in image.config["Env"]


@pytest.mark.parametrize("name", ["gcc", "cc", "c++", "ld", "make", "pip", "pip3", "git"])
def test_what_builds_is_not_in_it(image: Image, name: str) -> None:
    """The base image may have a pip of its own; ours has none."""
    folders = ["opt/venv/bin"] if name.startswith("pip") else ["usr/bin", "usr/local/bin", "opt/venv/bin"]
    assert [folder for folder in folders if (image.root / folder / name).exists()] == []


def test_no_tests_and_no_caches_are_in_it(image: Image) -> None:
    assert not (image.root / "opt/tools").exists()
    assert not (image.root / "src").exists() or list((image.root / "src").iterdir()) == []
    for folder in ("root", "tmp", "var/cache", "run/secrets"):
        assert [path for path in (image.root / folder).rglob("*") if path.is_file() and "pip" in path.parts] == []
    found = [path for path in (image.root / "opt").rglob("*") if path.name in {"test", "tests"} and path.is_dir()]
    assert found == []
    assert list((image.root / "opt").rglob("*.a")) == []


def test_all_of_it_is_compiled_whatever_the_files_times(image: Image) -> None:
    folders = (image.root / "opt/venv/lib", image.root / "opt/darkroom")
    sources = [path for folder in folders for path in folder.rglob("*.py")]
    compiled = {path: path.parent / "__pycache__" / f"{path.stem}.cpython-311.pyc" for path in sources}
    assert [path for path, bytecode in compiled.items() if not bytecode.exists()] == []
    assert len(sources) > 5000
    # PEP 552: 1 is "by hash, not checked"; 0 would be "by time and size".
    flags = {int.from_bytes(bytecode.read_bytes()[4:8], "little") for bytecode in compiled.values()}
    assert flags == {1}


def test_every_client_that_the_handlers_make_has_its_description(image: Image) -> None:
    sources = [path.read_text() for path in (ROOT / "handler").rglob("*.py")]
    wanted = {name for text in sources for name in re.findall(r"client\(\s*\"([a-z0-9-]+)\"", text)}
    assert "sqs" in wanted
    assert [name for name in wanted if not (image.root / SITE / "botocore/data" / name).is_dir()] == []


def test_the_container_is_nobody_and_can_write_to_tmp_alone(image: Image) -> None:
    code = """
import json, os
flags = {path: bool(os.statvfs(path).f_flag & os.ST_RDONLY) for path in ("/", "/opt/darkroom", "/tmp")}
open("/tmp/written", "w")
print(json.dumps([os.getuid(), os.getgid(), os.getgroups(), flags]))
"""
    uid, gid, groups, read_only = json.loads(image.output("python", "-c", code))
    assert (uid, gid, groups) == (10001, 10001, [])
    assert read_only == {"/": True, "/opt/darkroom": True, "/tmp": False}


def test_the_hub_is_never_asked(image: Image) -> None:
    code = "from huggingface_hub import constants; print(constants.HF_HUB_OFFLINE)"
    assert image.output("python", "-c", code).strip() == "True"


def test_the_light_handlers_know_the_model_before_any_worker_has_run(image: Image) -> None:
    code = """
import json, sys
from handler.contract.health import baked_card
from handler.settings import Settings
print(json.dumps([baked_card(Settings.load()), [name for name in ("torch", "diffusers") if name in sys.modules]]))
"""
    card, heavy = json.loads(image.output("python", "-c", code))
    assert (card["id"], card["pipeline"], heavy) == ("built-in", "StableDiffusionPipeline", [])


def test_an_image_of_another_model_serves_that_model(image_of_a_folder: Image) -> None:
    code = """
import json
from handler.engine.loading import load_pipeline
from handler.contract.health import baked_card
from handler.settings import Settings
settings = Settings.load()
card = load_pipeline(settings)[1]
print(json.dumps([settings.model_id, card.id, card.revision, baked_card(settings)["id"]]))
"""
    name, loaded, revision, baked = json.loads(image_of_a_folder.output("python", "-c", code))
    assert name.startswith("model-")
    assert (loaded, revision, baked) == (name, "v1", name)


def test_a_worker_begins_with_what_the_build_has_proven(image_of_a_folder: Image) -> None:
    """The build ran on the machine that this runs on; on another it would be proven anew."""
    code = """
from handler.settings import Settings
from handler.work.serving import load_engine
load_engine(Settings.load())
"""
    lines = image_of_a_folder.output("python", "-c", code).splitlines()
    told = [json.loads(line) for line in lines if line.startswith('{"')]
    assert [line["proven_before"] for line in told if "proven_before" in line] == [True]


def test_nothing_is_proven_by_the_build_unless_it_is_told_to(image: Image) -> None:
    assert list((image.root / "opt/darkroom/handler/baked").iterdir()) == []


def test_the_image_without_a_model_of_its_own_has_no_name_for_one(image: Image) -> None:
    assert "MODEL_ID=" in image.config["Env"]
