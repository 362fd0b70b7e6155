"""Rows of LeRobot's files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from difftop.data.exchange import RawEpisode
from difftop.data.lerobot import _rows_by_episode


def test_rows_are_those_of_their_episode_wherever_they_are() -> None:
    episode = np.random.default_rng(0).integers(3, 9, 200)[:, None]
    found = _rows_by_episode(episode)
    assert list(found) == sorted(set(episode[:, 0].tolist()))
    for number, rows in found.items():
        np.testing.assert_array_equal(rows, np.flatnonzero(episode == number))
    assert _rows_by_episode(np.zeros((0, 1), np.int64)) == {}


@pytest.mark.parametrize("batch", [3, 2**13])
def test_columns_are_those_that_were_written_however_many_rows_are_read_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    pytest.importorskip("pyarrow")
    from difftop.data import lerobot
    from difftop.data.lerobot_write import LeRobotWriter

    monkeypatch.setattr(lerobot, "_BATCH_ROWS", batch)
    rng, lengths = np.random.default_rng(0), (500, 7, 300)
    writer = LeRobotWriter(tmp_path / "set", 10.0)
    made = [
        RawEpisode(str(k), rng.normal(size=(n, 3)).astype(np.float32), {"state": rng.normal(size=(n, 40)).astype(np.float32)})
        for k, n in enumerate(lengths)
    ]
    for episode in made:
        writer.add(episode)
    writer.finish(None, {})
    for episode, found in zip(made, lerobot.LeRobotReader(tmp_path / "set").episodes(), strict=True):
        np.testing.assert_array_equal(found.actions, episode.actions)
        np.testing.assert_array_equal(found.obs["state"], episode.obs["state"])
    looked = lerobot.survey(tmp_path / "set")
    for episode, actions in zip(made, looked.actions, strict=True):  # the columns of a later file don't take their place
        np.testing.assert_array_equal(actions, episode.actions)
    first = tmp_path / "set" / "data" / "chunk-000" / "file-000.parquet"
    assert first.stat().st_size < 1.25 * 500 * (43 + 8) * 4  # no dictionary of numbers that don't repeat


@pytest.mark.parametrize("cut", [0, 1, 40])
def test_a_writer_that_was_killed_goes_on_to_the_same_files(tmp_path: Path, cut: int) -> None:
    pytest.importorskip("pyarrow")
    from difftop.data.lerobot_write import LeRobotWriter

    rng = np.random.default_rng(1)
    made = [
        RawEpisode(
            str(k),
            rng.normal(size=(n, 3)).astype(np.float32),
            {"state": rng.normal(size=(n, 4)).astype(np.float32)},
            task=f"t{k % 2}",
        )
        for k, n in enumerate((5, 3, 8, 4))
    ]
    whole, again = LeRobotWriter(tmp_path / "whole", 10.0), LeRobotWriter(tmp_path / "again", 10.0)
    for episode in made:
        whole.add(episode)
    for episode in made[:3]:
        again.add(episode)
    journal = tmp_path / "again" / "meta" / "partial.jsonl"
    lines = journal.read_bytes()
    journal.write_bytes(lines[: len(lines) - cut])  # the third episode's line, cut by the kill
    again = LeRobotWriter(tmp_path / "again", 10.0)
    assert again.count == (2 if cut else 3)
    for episode in made[again.count :]:
        again.add(episode)
    for writer in (whole, again):
        writer.finish(None, {})
    files = sorted(file.relative_to(tmp_path / "whole") for file in (tmp_path / "whole").rglob("*") if file.is_file())
    assert files == sorted(file.relative_to(tmp_path / "again") for file in (tmp_path / "again").rglob("*") if file.is_file())
    for file in files:
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "again" / file).read_bytes(), file
