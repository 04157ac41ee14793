"""The light image: the doors answer from it, and it holds nothing of the engine."""

from __future__ import annotations

import gzip
import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from ..support import http_event
from .test_image import SITE
from .test_lambda import served

if TYPE_CHECKING:
    from .container import Image

pytestmark = pytest.mark.image
MOST_ZIPPED = 60_000_000
DOORS = ("status", "submit", "deadletter", "doctor")


def test_its_size(light: Image, image: Image) -> None:
    """Of what it has beside its base, packed."""
    tar = subprocess.run(["tar", "-C", light.root, "-c", "opt"], stdout=subprocess.PIPE, check=True, timeout=120)
    zipped = len(gzip.compress(tar.stdout, 6))
    whole = sum(light.layers.values())
    print(f"light: {zipped / 1e6:.1f} MB packed, {len(tar.stdout) / 1e6:.1f} MB unpacked, {whole / 1e6:.1f} MB in all")
    assert zipped <= MOST_ZIPPED
    assert whole < sum(image.layers.values()) / 4


@pytest.mark.parametrize("name", ["torch", "diffusers", "transformers", "numpy", "PIL"])
def test_nothing_of_the_engine_is_in_it(light: Image, image: Image, name: str) -> None:
    assert (image.root / SITE / name).exists(), "or this test looks in the wrong place"
    assert not (light.root / SITE / name).exists()
    assert not (light.root / "opt/darkroom/handler/engine").exists()


@pytest.mark.parametrize("door", DOORS)
def test_every_door_starts_in_it(light: Image, door: str) -> None:
    done = light.run("python", "-c", f"import handler.{door}; print('here')")
    with done as child:
        output, _ = child.communicate(timeout=60)
    assert output.splitlines()[-1:] == ["here"]


def test_callers_are_answered(light: Image, environ: dict[str, str]) -> None:
    answers: dict[str, Any] = {}
    for door, method, path, body in (
        ("status", "GET", "/models", None),
        ("status", "GET", "/results/nobody", None),
        ("submit", "POST", "/generate", '{"prompt": "a red apple"}'),
        ("submit", "POST", "/generate", '{"prompt": "a red apple", "width": 100}'),
    ):
        with served(light, environ, f"handler.{door}.handle") as (api, _):
            api.send(http_event(method, path, body=body), 30)
            answers[f"{method} {path} {body}"] = json.loads(api.answer(30))
    codes = [answer["statusCode"] for answer in answers.values()]
    assert codes == [200, 404, 202, 422], "the built-in model's card is there: it refuses what the model does not take"
