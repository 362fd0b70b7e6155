"""Windows against a plain loop over episodes and starts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from difftop.data.demonstrations import Demonstrations, EnvInfo
from difftop.data.windows import overlapping, window_starts


def demonstrations(lengths: list[int]) -> Demonstrations:
    """Row r has action (r, -r) / 1000 and observation (r, r + 0.5)."""
    length = torch.tensor(lengths)
    rows = torch.arange(sum(lengths), dtype=torch.float32)
    return Demonstrations(
        path=Path("made.hdf5"),
        env=EnvInfo("made", {}, None, {}),
        names=tuple(f"demo_{i}" for i in range(len(lengths))),
        first=length.cumsum(0) - length,
        length=length,
        source=torch.arange(len(lengths)),
        actions=torch.stack([rows, -rows], 1) / 1000,
        low_dim={"position": torch.stack([rows, rows + 0.5], 1), "time": rows[:, None]},
    )


@pytest.mark.parametrize(("length", "count"), [(15, 0), (16, 0), (17, 1), (40, 24)])
def test_letos_windows_are_whole(length: int, count: int) -> None:
    episode, start = window_starts(torch.tensor([length]), 12 + 6 - 1)
    assert len(start) == count == max(0, length - 16)
    assert start.tolist() == list(range(count)) and episode.tolist() == [0] * count


@pytest.mark.parametrize(("before", "after"), [(0, 0), (1, 2), (5, 5), (0, 5)])
def test_against_a_loop(before: int, after: int) -> None:
    lengths, window, horizon = [9, 3, 7, 6], 4, 3
    span = window + horizon - 1
    made = demonstrations(lengths)
    windows = made.windows(window, horizon, pad_before=before, pad_after=after)
    expected = []
    for e, length in enumerate(lengths):
        for start in range(-before, length - span + after + 1):
            steps = [min(max(start + i, 0), length - 1) for i in range(span)]
            expected.append((sum(lengths[:e]), steps, [start + i in range(length) for i in range(span)]))
    assert len(windows) == len(expected)
    batch = windows.gather(torch.arange(len(windows)))
    for w, (first, steps, mask) in enumerate(expected):
        rows = torch.tensor(steps) + first
        assert torch.equal(batch.actions[w], made.actions[rows])
        assert batch.mask[w].tolist() == mask
        for key in ("position", "time"):
            assert torch.equal(batch.obs[key][w], made.low_dim[key][rows[:window]])
    assert batch.obs["position"].shape == (len(expected), window, 2)


def test_targets_overlap() -> None:
    actions = torch.rand(5, 17, 7)
    target = overlapping(actions, 6)
    assert target.shape == (5, 12, 6, 7)
    for b, i, j in [(0, 0, 0), (4, 11, 5), (2, 7, 3)]:
        assert torch.equal(target[b, i, j], actions[b, i + j])
        assert torch.equal(target.flatten(2)[b, i, 7 * j : 7 * j + 7], actions[b, i + j])
    assert torch.equal(overlapping(torch.arange(4).view(1, 4), 2), torch.tensor([[[0, 1], [1, 2], [2, 3]]]))


def test_a_subset_has_its_own_windows() -> None:
    made = demonstrations([9, 3, 7])
    batch = (only := made.only([2, 0])).windows(3, 2).gather(torch.arange(10))
    assert only.names == ("demo_2", "demo_0") and len(only.windows(3, 2)) == 4 + 6
    assert batch.obs["time"][:, 0, 0].tolist() == [12, 13, 14, 15, 0, 1, 2, 3, 4, 5]
    assert only.rows("time")[:, 0].tolist() == [*range(12, 19), *range(9)]


def test_what_has_no_window_is_refused() -> None:
    with pytest.raises(ValueError, match="no window of 17 steps fits the 2 demonstrations, the longest has 16"):
        demonstrations([16, 3]).windows(12, 6)
    with pytest.raises(ValueError, match="padding from 0 to"):
        demonstrations([16]).windows(3, 2, pad_after=4)
