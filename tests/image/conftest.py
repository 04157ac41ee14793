"""The image, built once for all of its tests, and AWS's own runtime emulator."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from handler.settings import BUILT_IN_MODEL

from .container import Image, buildah, inspect

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent.parent
BASE, NAME = "localhost/base:bookworm", "localhost/darkroom:test"
SAM_CLI = "aws-sam-cli==1.170.0"
"""Its wheel carries AWS's runtime interface emulator; nothing of it is installed."""


def build(script: str, *arguments: str, **environ: str) -> None:
    subprocess.run([ROOT / "infra" / script, *arguments], env={**os.environ, **environ}, check=True, timeout=900)


@pytest.fixture(scope="session")
def image() -> Iterator[Image]:
    """Built with buildah on a base image out of Debian packages, which is made where it is missing."""
    assert os.geteuid() == 0, "containers are made of mounts, which only root may do"
    if not buildah("images", "--quiet", "--filter", f"reference={BASE}"):
        build("image-base.sh", BASE)
    with built(NAME) as image:
        yield image


@pytest.fixture(scope="session")
def image_of_a_folder(image: Image) -> Iterator[Image]:
    """After the built-in one, out of the same cache: with the model in a folder of the checkout, proven."""
    with tempfile.TemporaryDirectory(prefix="model-", dir=ROOT) as folder:
        shutil.copytree(BUILT_IN_MODEL, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("model_card.json"))
        with built(NAME + "-folder", MODEL_ID=Path(folder).name, MODEL_REVISION="v1", PROVE="1") as made:
            yield made


@pytest.fixture(scope="session")
def light(image: Image) -> Iterator[Image]:
    """What answers callers, out of the same cache."""
    with built(NAME + "-light", TARGET="light") as made:
        yield made


@contextmanager
def built(name: str, **environ: str) -> Iterator[Image]:
    build("image.sh", ENGINE="buildah", BASE=BASE, NAME=name, **environ)
    config, layers = inspect(name)
    container = buildah("from", "--pull-never", name)
    try:
        yield Image(Path(buildah("mount", container)), config, layers)
    finally:
        buildah("rm", container)


@pytest.fixture(scope="session")
def emulator() -> Path:
    """AWS's runtime interface emulator, fetched once into ``build/``."""
    machine = {"x86_64": "x86_64", "aarch64": "arm64"}[platform.machine()]
    found = ROOT / "build" / f"aws-lambda-rie-{machine}"
    if not found.exists():
        found.parent.mkdir(exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(found.parent)]
        subprocess.run([*pip, SAM_CLI], check=True, timeout=300)
        (wheel,) = found.parent.glob("aws_sam_cli-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            found.write_bytes(archive.read(f"samcli/local/rapid/{found.name}"))
        found.chmod(0o755)
    return found
