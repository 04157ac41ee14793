"""Files are written whole or not at all."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from handler.cli.output import can_be_written, save


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Path.write_bytes

    def full(self: Path, body: bytes) -> int:
        honest(self, body[:2])
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    (tmp_path / "card.json").write_text("before")
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        save(tmp_path / "card.json", b"after")
    assert caught.value.filename == str(tmp_path / "card.json")
    assert [path.name for path in tmp_path.iterdir()] == ["card.json"]
    assert (tmp_path / "card.json").read_text() == "before"


def test_a_file_is_replaced_at_once(tmp_path: Path) -> None:
    file = tmp_path / "new" / "card.json"
    assert save(file, b"one") == file
    assert save(file, b"two").read_bytes() == b"two"
    assert [path.name for path in file.parent.iterdir()] == ["card.json"]


def test_a_folder_is_made_and_tried(tmp_path: Path) -> None:
    can_be_written(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        can_be_written(tmp_path / "file" / "b")
