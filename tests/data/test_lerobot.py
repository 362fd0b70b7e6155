"""Rows of LeRobot's files."""

from __future__ import annotations

import threading
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from difftop.data import lerobot_tables
from difftop.data.demonstrations import DemonstrationError
from difftop.data.exchange import RawEpisode
from difftop.data.lerobot_tables import rows_by_episode


def test_rows_are_those_of_their_episode_wherever_they_are() -> None:
    episode = np.random.default_rng(0).integers(3, 9, 200)[:, None]
    found = rows_by_episode(episode)
    assert list(found) == sorted(set(episode[:, 0].tolist()))
    for number, rows in found.items():
        np.testing.assert_array_equal(rows, np.flatnonzero(episode == number))
    assert rows_by_episode(np.zeros((0, 1), np.int64)) == {}


@pytest.mark.parametrize("batch", [3, 2**13])
def test_columns_are_those_that_were_written_however_many_rows_are_read_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    pytest.importorskip("pyarrow")
    from difftop.data import lerobot
    from difftop.data.lerobot_write import LeRobotWriter

    monkeypatch.setattr(lerobot_tables, "_BATCH_ROWS", batch)
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


def test_a_reader_that_is_left_early_or_meets_a_damaged_file_ends_its_threads(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    from difftop.data import lerobot
    from difftop.data.lerobot_write import LeRobotWriter

    writer = LeRobotWriter(tmp_path / "set", 10.0)
    for k in range(8):
        writer.add(RawEpisode(str(k), np.full((4, 2), k / 8, np.float32), {"state": np.zeros((4, 3), np.float32)}))
    writer.finish(None, {})
    reader = lerobot.LeRobotReader(tmp_path / "set")
    episodes = reader.in_order(["action"], range(8))
    assert [float(rows["action"][0, 0]) for _, rows in islice(episodes, 3)] == [0, 1 / 8, 2 / 8]
    episodes.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("parquet")]

    damaged = tmp_path / "set" / "data" / "chunk-000" / "file-005.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-30])
    seen = []
    with pytest.raises(DemonstrationError, match=r"file-005\.parquet: it doesn.t match its checksum"):
        seen.extend(number for number, _ in lerobot.LeRobotReader(tmp_path / "set").in_order(["action"], range(8)))
    assert seen == [0, 1, 2, 3, 4]  # episodes before it are whole
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("parquet")]


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
