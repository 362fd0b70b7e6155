"""Depth images in files: written and read bit for bit, whole millimetres, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from difftop.data.demonstrations import DemonstrationError
from difftop.data.files import open_demonstrations, survey
from difftop.data.robomimic import Recording, write_demonstrations
from difftop.datasets.convert import convert_command
from difftop.types import ObsSpec
from tests.datasets.files import zarr_array, zarr_folder

LENGTHS = (18, 5)
KEYS = ["wall_depth", "wall_image", "hand"]
ARGS = {"env_name": "Lift", "type": 1, "env_version": "1.5.1", "env_kwargs": {}}


def depths(k: int, steps: int) -> np.ndarray:
    """From a millimetre to the far plane."""
    return (10 ** np.random.default_rng(k).uniform(-3, 2, (steps, 4, 6, 1))).astype(np.float32)


def write_file(path: Path, dtype: type = np.float32, scale: float = 1.0) -> Path:
    episodes = [
        Recording(
            obs={
                "wall_depth": (scale * depths(k, steps)).astype(dtype),
                "wall_image": np.random.default_rng(k).integers(0, 256, (steps, 4, 6, 3), dtype=np.uint8),
                "hand": np.ones((steps, 2), np.float32),
            },
            actions=np.zeros((steps, 7)),
            rewards=np.arange(steps) == steps - 1,
        )
        for k, steps in enumerate(LENGTHS)
    ]
    write_demonstrations(path, episodes, ARGS)
    return path


def same(path: Path) -> None:
    made = open_demonstrations(path, obs_keys=KEYS)
    assert made.shapes == {"hand": (2,), "wall_depth": (1, 4, 6), "wall_image": (3, 4, 6)}
    assert ObsSpec.of((1, 4, 6), "wall_depth").kind == "depth" and ObsSpec.of((3, 4, 6), "wall_depth").kind == "image"
    for k, episode in enumerate(made.episodes(images=True)):
        assert episode.obs["wall_depth"].dtype == torch.float32 and episode.obs["wall_image"].dtype == torch.uint8
        assert episode.obs["wall_depth"].numpy().tobytes() == depths(k, LENGTHS[k]).tobytes()  # one channel: axes don't matter
    batch = made.windows(3, 2).gather(torch.tensor([15, 14]))
    assert np.array_equal(batch.obs["wall_depth"][1, :, 0].numpy(), depths(0, 18)[14:17, ..., 0])


def test_depths_are_kept_bit_for_bit_and_converted_so(tmp_path: Path) -> None:
    path = write_file(tmp_path / "made.hdf5")
    same(path)
    with h5py.File(path) as file:
        assert file["data/demo_0/obs/wall_depth"].dtype == np.float32
    convert_command([f"dataset={path}", f"out={tmp_path / 'other.h5'}"], lambda *_: pytest.fail("no playback"))
    same(tmp_path / "other.h5")
    convert_command([f"dataset={tmp_path / 'other.h5'}", f"out={tmp_path / 'back.hdf5'}"], lambda *_: pytest.fail("no playback"))
    same(tmp_path / "back.hdf5")
    column = survey(path).columns["wall_depth"]
    assert (column.kind, column.dtype, column.shape) == ("depth", "float32", (4, 6, 1))


@pytest.mark.parametrize("dtype", [np.uint16, np.int16])
def test_whole_numbers_of_16_bits_are_millimetres(tmp_path: Path, dtype: type) -> None:
    path = tmp_path / "depths.h5"
    stored = np.random.default_rng(0).integers(0, 2**15, (6, 4, 6, 1)).astype(dtype)
    with h5py.File(path, "w") as file:
        file["traj_0/actions"], file["traj_0/obs/agent/qpos"] = np.zeros((5, 7), np.float32), np.ones((6, 9), np.float32)
        file["traj_0/obs/sensor_data/eye/depth"] = stored
    episodes = [{"episode_id": 0, "elapsed_steps": 5, "success": True}]
    info = {"env_id": "PickCube-v1", "env_kwargs": {"obs_mode": "rgb+depth"}}
    path.with_suffix(".json").write_text(json.dumps({"env_info": info, "episodes": episodes}))
    made = open_demonstrations(path, obs_keys=["eye_depth", "agent/qpos"])
    (episode,) = made.episodes(images=True)
    assert episode.obs["eye_depth"].dtype == torch.float32 and made.shapes["eye_depth"] == (1, 4, 6)
    np.testing.assert_allclose(episode.obs["eye_depth"][:, 0].numpy(), stored[:-1, ..., 0] / 1000, rtol=1e-6)


def test_depths_of_a_zarr(tmp_path: Path) -> None:
    zarr_folder(tmp_path / "some.zarr", lengths=(4, 3))
    rows = depths(0, 7)
    zarr_array(tmp_path / "some.zarr" / "data" / "wall_depth", rows)
    made = open_demonstrations(tmp_path / "some.zarr", obs_keys=["wall_depth", "img_image"])
    seen = torch.cat([episode.obs["wall_depth"] for episode in made.episodes(images=True)])
    assert made.shapes["wall_depth"] == (1, 4, 6) and seen.numpy().tobytes() == rows.tobytes()


@pytest.mark.parametrize(
    ("dtype", "scale", "message"),
    [
        (np.uint8, 1.0, r"demo_0/obs/wall_depth has depths of uint8; they must be floats, m, or integers of 16 bits, mm"),
        (np.float32, -1.0, r"demo_0/obs/wall_depth has depths from -\d+\.?\d* to -0\.0\d+; they must be finite, and 0 where"),
    ],
)
def test_what_are_no_depths_is_refused_in_one_sentence(tmp_path: Path, dtype: type, scale: float, message: str) -> None:
    path = write_file(tmp_path / "bad.hdf5", dtype, scale)
    with pytest.raises(DemonstrationError, match=message):
        open_demonstrations(path, obs_keys=KEYS)
    open_demonstrations(path, obs_keys=KEYS[1:])  # who doesn't look at them doesn't mind


def test_what_is_not_finite_is_found_when_it_is_read(tmp_path: Path) -> None:
    path = write_file(tmp_path / "bad.hdf5")
    with h5py.File(path, "r+") as file:
        file["data/demo_1/obs/wall_depth"][3, 1, 2] = np.nan
    made = open_demonstrations(path, obs_keys=KEYS)
    with pytest.raises(DemonstrationError, match=r"demo_1/obs/wall_depth has depths from .*; they must be finite"):
        list(made.episodes(images=True))


def test_lerobot_has_no_place_for_depths(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    path = write_file(tmp_path / "made.hdf5")
    with pytest.raises(DemonstrationError, match=r"wall_depth of demo_0 is float32, and images of LeRobot data sets are uint8"):
        convert_command([f"dataset={path}", f"out={tmp_path / 'folder'}"], lambda *_: pytest.fail("no playback"))
