"""Settings are read once, from what is passed in, and a bad one is named with its limits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from handler.errors import SettingsError
from handler.settings import BUILT_IN_MODEL, Settings, variables

if TYPE_CHECKING:
    from pathlib import Path


def test_defaults() -> None:
    settings = Settings.load({})
    assert settings == Settings()
    assert settings.model_source == str(BUILT_IN_MODEL)
    assert settings.model_name == "built-in"


def test_values_are_read_as_their_kind() -> None:
    settings = Settings.load({"URL_LIFETIME": "60", "INLINE_IMAGES": "1", "BEAT_EVERY": " 0.5 ", "BUCKET": "b"})
    assert (settings.url_lifetime, settings.inline_images, settings.beat_every, settings.bucket) == (60, True, 0.5, "b")


def test_an_empty_variable_is_an_unset_one() -> None:
    assert Settings.load({"URL_LIFETIME": "", "MODEL_ID": " "}) == Settings()


def test_every_bad_variable_is_named() -> None:
    bad = {"URL_LIFETIME": "700000", "INLINE_IMAGES": "maybe", "DTYPE": "int3", "LEASE": "soon", "BEAT_EVERY": "nan"}
    with pytest.raises(SettingsError) as refused:
        Settings.load(bad)
    for part in (
        "URL_LIFETIME='700000': must be a whole number from 1 to 604800",
        "INLINE_IMAGES='maybe': must be 0 or 1",
        "DTYPE='int3': must be one of auto, float32",
        "LEASE='soon': must be a whole number from 5 to 3600",
        "BEAT_EVERY='nan': must be a number from 0.1 to 60",
    ):
        assert part in refused.value.message


def test_signs_of_life_come_often_enough_for_the_lease() -> None:
    with pytest.raises(SettingsError, match="BEAT_EVERY=60: must be at most a third of LEASE=5"):
        Settings.load({"LEASE": "5", "BEAT_EVERY": "60"})


def test_what_is_needed_is_named_when_missing() -> None:
    with pytest.raises(SettingsError, match="unset: BUCKET, QUEUE_URL"):
        Settings().require("bucket", "queue_url", "device")


def test_the_region_comes_from_the_usual_places() -> None:
    assert Settings.load({"AWS_DEFAULT_REGION": "eu-central-1"}).aws_region == "eu-central-1"
    assert Settings.load({"AWS_DEFAULT_REGION": "a", "AWS_REGION": "b"}).aws_region == "b"


@pytest.mark.parametrize(
    ("environ", "files", "shared"),
    [
        ({"AWS_PROFILE": "dev", "AWS_ACCESS_KEY_ID": "x"}, True, True),
        ({"AWS_ACCESS_KEY_ID": "x"}, True, False),
        ({"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "/x"}, True, False),
        ({}, True, True),
        ({}, False, False),
    ],
)
def test_where_credentials_come_from(environ: dict[str, str], files: bool, shared: bool, tmp_path: Path) -> None:
    if files:
        (tmp_path / ".aws").mkdir()
        (tmp_path / ".aws/config").write_text("[default]\n")
    assert Settings.load({"HOME": str(tmp_path), **environ}).shared_credentials is shared


def test_every_setting_says_what_it_is() -> None:
    assert all(spec.metadata["text"] for spec in variables())
