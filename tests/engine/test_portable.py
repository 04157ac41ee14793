"""Compiled code that somebody else made is loaded only where it is vouched for."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from handler.engine import portable
from handler.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

LOADED = "compiled code could not be loaded"
"""What the log says of a file that was given to torch, which cannot read those of these tests."""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """With a file of compiled code beside a model from S3, whose digest it names."""
    folder = tmp_path / "cache/0123456789abcdef"
    folder.mkdir(parents=True)
    (folder / portable.FILE).write_bytes(b"code")
    digest = portable.digest(folder / portable.FILE)
    return Settings(model_id="s3://bucket/model", cache_dir=str(tmp_path / "cache"), compiled_sha256=digest)


def said(settings: Settings, caplog: pytest.LogCaptureFixture) -> list[str]:
    caplog.clear()
    portable.take(settings)
    return [line.getMessage() for line in caplog.records if line.name == "darkroom"]


def test_it_is_loaded_where_its_digest_is_named(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    assert said(settings, caplog) == [LOADED]
    assert said(replace(settings, compiled_sha256=settings.compiled_sha256.upper()), caplog) == [], "once a process"


def test_without_a_digest_nothing_beside_weights_is_loaded(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    assert said(replace(settings, compiled_sha256=""), caplog) == []


def test_another_file_is_not_loaded(settings: Settings, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    (tmp_path / "cache/0123456789abcdef" / portable.FILE).write_bytes(b"other code")
    (line,) = said(settings, caplog)
    assert line.startswith("no compiled code is loaded")
    (record,) = caplog.records
    assert vars(record)["wanted"] == settings.compiled_sha256
    assert vars(record)["found"] == [portable.digest(tmp_path / "cache/0123456789abcdef" / portable.FILE)]


def test_what_the_build_of_the_image_made_is_loaded_before_all_else(
    settings: Settings, caplog: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    baked = tmp_path / "baked"
    baked.mkdir()
    (baked / portable.FILE).write_bytes(b"the image's own")
    monkeypatch.setattr(portable, "BAKED", baked)
    assert said(replace(settings, compiled_sha256=""), caplog) == [LOADED]
    assert vars(caplog.records[-1])["file"] == str(baked / portable.FILE)
