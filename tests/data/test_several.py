"""Several data sets as one: every episode is what it was, and shares are kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from difftop.data.demonstrations import DemonstrationError
from difftop.data.robomimic import open_robomimic
from difftop.data.several import together
from difftop.run.offline import Batches, split
from tests.data.test_robomimic import spoil, write_file

KEYS = ["object", "agentview_image"]


def test_every_episode_is_what_it_was(tmp_path: Path) -> None:
    parts = [open_robomimic(write_file(tmp_path / f"{name}.hdf5"), obs_keys=KEYS, limit=n) for name, n in (("a", 2), ("b", 3))]
    made = together(parts)
    assert made.names == ("a.hdf5: demo_0", "a.hdf5: demo_1", "b.hdf5: demo_0", "b.hdf5: demo_1", "b.hdf5: demo_2")
    for one, other in zip([e for part in parts for e in part.episodes(images=True)], made.episodes(images=True), strict=True):
        assert torch.equal(one.actions, other.actions) and all(torch.equal(one.obs[key], other.obs[key]) for key in KEYS)
    windows = made.windows(2, 2)
    batch = windows.gather(torch.tensor([len(windows) - 1, 0]))
    assert torch.equal(batch.obs["agentview_image"][1], next(parts[0].episodes(images=True)).obs["agentview_image"][:2])
    assert windows.weights is None


def test_shares_of_the_batches(tmp_path: Path) -> None:
    parts = [
        open_robomimic(write_file(tmp_path / f"{name}.hdf5"), obs_keys=KEYS[:1], limit=n) for name, n in (("a", 1), ("b", 4))
    ]
    training, held_out = split(together(parts, [3.0, 1.0]), 0.2, 0)
    assert held_out is not None and len(training) == 4
    batches = Batches(training.windows(1, 1, pad_before=0), 16, seed=0)
    part = training.part
    assert part is not None
    drawn = torch.cat([batches.windows.episode[_indices(batches, k)] for k in range(200)])
    share = (part[drawn] == 0).double().mean()
    assert abs(share - 0.75) < 0.03
    assert torch.equal(batches.batch(3).actions, Batches(training.windows(1, 1), 16, seed=0).batch(3).actions)


def _indices(batches: Batches, k: int) -> torch.Tensor:
    batches.batch(k)
    place = k % batches.per_epoch
    return batches._order[place * batches.batch_size : (place + 1) * batches.batch_size]


def test_others_are_refused(tmp_path: Path) -> None:
    a, b = (write_file(tmp_path / f"{name}.hdf5") for name in "ab")
    spoil(lambda file: [file[f"data/{name}/obs"].move("object", "things") for name in file["data"]])(b)
    with pytest.raises(DemonstrationError, match=r"b\.hdf5: it has other observations or actions than .*a\.hdf5 \(object None"):
        together([open_robomimic(path) for path in (a, b)])
