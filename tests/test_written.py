"""Texts are whole or not there."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from difftop.written import write_whole


def test_a_text_replaces_another(tmp_path: Path) -> None:
    for text in ("one\n", "two\n"):
        write_whole(tmp_path / "a.json", text)
        assert (tmp_path / "a.json").read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_full_disk_leaves_the_old_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_whole(tmp_path / "a.json", "one")

    def full(self: Path, text: str) -> int:
        self.write_bytes(text[: len(text) // 2].encode())
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "a.json", "another")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.json", "one")]
