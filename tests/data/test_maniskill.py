"""ManiSkill files: one observation more than actions, nested keys, and what is wrong with broken ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from difftop.data.demonstrations import DemonstrationError
from difftop.data.maniskill import open_maniskill

LENGTHS = {0: 18, 2: 6, 10: 20}


def values(k: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(k).uniform(-1, 1, shape).astype(np.float32)


def images(k: int) -> np.ndarray:
    return np.random.default_rng(k).integers(0, 256, (LENGTHS[k] + 1, 4, 6, 3), dtype=np.uint8)


def write_file(path: Path, nested: bool = False) -> Path:
    with h5py.File(path, "w") as file:
        for k, steps in LENGTHS.items():
            group = file.create_group(f"traj_{k}")
            group["actions"], group["success"] = values(k, (steps, 7)), np.arange(steps) == steps - 1
            group["env_states/actors/cube"] = values(k, (steps + 1, 13))
            if nested:
                group["obs/agent/qpos"], group["obs/extra/is_grasped"] = values(k, (steps + 1, 9)), np.ones(steps + 1, dtype=bool)
                group["obs/sensor_data/base_camera/rgb"] = images(k)
                group["obs/sensor_param/base_camera/intrinsic_cv"] = np.ones((steps + 1, 3, 3), np.float32)
                group["obs/pointcloud/xyzw"] = values(k, (steps + 1, 24, 4))
            else:
                group["obs"] = values(k + 100, (steps + 1, 42))
    episodes = [
        {"episode_id": k, "elapsed_steps": LENGTHS[k], "success": k != 2, "control_mode": "pd_ee_delta_pose"} for k in (10, 0, 2)
    ]
    info = {"env_id": "PickCube-v1", "max_episode_steps": 100, "env_kwargs": {"obs_mode": "state"}}
    path.with_suffix(".json").write_text(json.dumps({"env_info": info, "episodes": episodes}))
    return path


def test_flat_state(tmp_path: Path) -> None:
    made = open_maniskill(write_file(tmp_path / "trajectory.state.pd_ee_delta_pose.physx_cpu.h5"), successful_only=False)
    assert made.names == ("traj_0", "traj_2", "traj_10") and made.length.tolist() == [18, 6, 20]
    assert made.shapes == {"state": (42,)} and made.env.name == "PickCube-v1" and made.env.version == "3.0"
    for k, episode in zip(LENGTHS, made.episodes(), strict=True):
        np.testing.assert_array_equal(episode.actions.numpy(), values(k, (LENGTHS[k], 7)))
        np.testing.assert_array_equal(episode.obs["state"].numpy(), values(k + 100, (LENGTHS[k] + 1, 42))[:-1])
    assert len(made.windows(12, 6)) == 2 + 4


def test_nested_groups_and_images(tmp_path: Path) -> None:
    path = write_file(tmp_path / "trajectory.h5", nested=True)
    made = open_maniskill(path)
    assert made.notes == ("1 left out, failed episodes (dataset.successful_only=false takes them): traj_2",)
    assert made.shapes == {"agent/qpos": (9,), "extra/is_grasped": (1,)} and not made.images
    assert made.low_dim["extra/is_grasped"].dtype == torch.float32
    keys = ["base_camera_image", "agent/qpos"]
    made = open_maniskill(path, obs_keys=keys)
    assert made.names == ("traj_0", "traj_10") and made.shapes[keys[0]] == (3, 4, 6)
    for k, episode in zip((0, 10), made.episodes(images=True), strict=True):
        np.testing.assert_array_equal(episode.obs[keys[0]].numpy(), images(k)[:-1].transpose(0, 3, 1, 2))
    assert open_maniskill(path, limit=1).names == ("traj_0",)


def edit(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        raw = json.loads(path.with_suffix(".json").read_text())
        change(raw)
        path.with_suffix(".json").write_text(json.dumps(raw))

    return apply


def replaced(name: str, new: np.ndarray | None) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            del file[name]
            if new is not None:
                file[name] = new

    return apply


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "no json": (lambda path: path.with_suffix(".json").unlink(), "needs its .json beside it"),
    "json": (lambda path: path.with_suffix(".json").write_text("{"), "not the JSON"),
    "no env_id": (edit(lambda raw: raw["env_info"].pop("env_id")), "lacks 'env_id'"),
    "no episodes": (edit(lambda raw: raw.pop("episodes")), "lacks 'episodes'"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-3000]), "not a whole HDF5 file"),
    "lost": (replaced("traj_2", None), "traj_2 is in the .json but not in the .h5"),
    "elapsed": (replaced("traj_2/actions", np.zeros((7, 7))), "traj_2 has 7 actions but elapsed_steps is 6"),
    "rows": (
        replaced("traj_2/obs", np.zeros((6, 42))),
        "has 6 rows for 6 actions; it must have one per action and 1 after the last",
    ),
    "raw": (replaced("traj_0/obs", None), "traj_0 has no observations, only .*replay_trajectory"),
    "joints": (replaced("traj_0/actions", np.full((18, 8), 2.1)), r"18 steps leave \[-1, 1\].*pd_ee_delta_pose"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_refused_in_one_sentence(tmp_path: Path, name: str) -> None:
    path = write_file(tmp_path / "trajectory.h5")
    change, message = BROKEN[name]
    change(path)
    with pytest.raises(DemonstrationError, match=message) as caught:
        open_maniskill(path, successful_only=False)
    assert str(caught.value).startswith(str(path.with_suffix(""))) and "\n" not in str(caught.value)


def test_nothing_left(tmp_path: Path) -> None:
    path = write_file(tmp_path / "trajectory.h5")
    edit(lambda raw: [episode.update(success=False) for episode in raw["episodes"]])(path)
    with pytest.raises(DemonstrationError, match=r"no episode is left of 3.*dataset\.successful_only=false"):
        open_maniskill(path)
    assert len(open_maniskill(path, successful_only=False)) == 3
    edit(lambda raw: [(episode.pop("success"), episode.update(info={"success": True})) for episode in raw["episodes"]])(path)
    assert len(open_maniskill(path)) == 3  # as ManiSkill 2 says it
    edit(lambda raw: [episode.pop("info") for episode in raw["episodes"]])(path)
    assert len(open_maniskill(path)) == 3  # says nothing
