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


def test_files_elsewhere_count_too(tmp_path: Path) -> None:
    file = tmp_path / "config"
    named = {"HOME": str(tmp_path), "AWS_CONFIG_FILE": str(file), "AWS_ACCESS_KEY_ID": "x"}
    assert not Settings.load(named).shared_files
    file.touch()
    assert Settings.load(named).shared_files
    assert Settings.load({"AWS_SHARED_CREDENTIALS_FILE": str(file)}).shared_credentials
    assert not Settings.load({**named, "AWS_CONFIG_FILE": "/dev/null"}).shared_files


@pytest.mark.parametrize(
    "name", ["PUBLIC_ENDPOINT_URL", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL_SQS"]
)
@pytest.mark.parametrize("bad", ["s3.example.com", "ftp://s3.example.com", "https://", "https://[::1", "http://a/?b"])
def test_an_endpoint_is_a_url(name: str, bad: str) -> None:
    with pytest.raises(SettingsError) as refused:
        Settings.load({name: bad})
    assert refused.value.message.startswith(f"{name}={bad!r}: must be a URL, http:// or https:// and a host")


def test_switches_of_aws_are_true_or_false() -> None:
    """1 would be false to boto3."""
    assert Settings.load({"AWS_USE_FIPS_ENDPOINT": "True"}).aws_use_fips_endpoint
    with pytest.raises(SettingsError, match="AWS_USE_FIPS_ENDPOINT='1': must be true or false"):
        Settings.load({"AWS_USE_FIPS_ENDPOINT": "1"})


def test_another_aws_is_none_where_it_is_ignored() -> None:
    named = {"AWS_ENDPOINT_URL": "http://a", "AWS_ENDPOINT_URL_SQS": "http://b"}
    assert Settings.load(named).other_aws == named
    assert Settings.load({**named, "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true"}).other_aws == {}


def test_every_setting_says_what_it_is() -> None:
    assert all(spec.metadata["text"] for spec in variables())
