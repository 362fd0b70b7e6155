"""Rows of LeRobot's files."""

from __future__ import annotations

import numpy as np

from difftop.data.lerobot import _rows_by_episode


def test_rows_are_those_of_their_episode_wherever_they_are() -> None:
    episode = np.random.default_rng(0).integers(3, 9, 200)[:, None]
    found = _rows_by_episode(episode)
    assert list(found) == sorted(set(episode[:, 0].tolist()))
    for number, rows in found.items():
        np.testing.assert_array_equal(rows, np.flatnonzero(episode == number))
    assert _rows_by_episode(np.zeros((0, 1), np.int64)) == {}
