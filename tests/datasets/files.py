"""Small data sets of every format."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from difftop.data.exchange import RawEpisode


def zarr_array(folder: Path, values: np.ndarray, chunk: int = 8, codec: dict[str, Any] | None = None) -> None:
    """As Zarr version 2 stores it, in chunks of so many rows."""
    folder.mkdir(parents=True)
    chunks = [min(chunk, len(values)), *values.shape[1:]]
    about = {"zarr_format": 2, "shape": values.shape, "chunks": chunks, "dtype": values.dtype.str, "compressor": codec}
    (folder / ".zarray").write_text(json.dumps({**about, "fill_value": 0, "order": "C", "filters": None}))
    for number in range(-(-len(values) // chunks[0])):
        rows = values[number * chunks[0] : (number + 1) * chunks[0]]
        padded = np.zeros((chunks[0], *values.shape[1:]), values.dtype)
        padded[: len(rows)] = rows
        data = padded.tobytes()
        if codec and codec["id"] == "zlib":
            data = zlib.compress(data)
        elif codec:
            import numcodecs

            data = bytes(numcodecs.get_codec(codec).encode(data))
        (folder / ".".join(["0" if i else str(number) for i in range(values.ndim)])).write_bytes(data)


def zarr_folder(path: Path, lengths: tuple[int, ...] = (11, 7, 14), codec: dict[str, Any] | None = None) -> dict[str, np.ndarray]:
    """As Diffusion Policy's Push-T: actions in pixels, images as floats from 0 to 255."""
    rng, rows = np.random.default_rng(0), sum(lengths)
    made = {
        "action": rng.uniform(20, 480, (rows, 2)).astype(np.float32),
        "state": rng.normal(size=(rows, 5)).astype(np.float32),
        "img": rng.integers(0, 256, (rows, 12, 16, 3)).astype(np.float32),
    }
    for key, values in made.items():
        zarr_array(path / "data" / key, values, codec=codec)
    zarr_array(path / "meta" / "episode_ends", np.cumsum(lengths).astype(np.int64))
    (path / ".zgroup").write_text('{"zarr_format": 2}')
    return made


def raw_robosuite(path: Path, count: int = 4) -> Path:
    """As robosuite's collection script writes it; its scenes are none."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env"], data.attrs["repository_version"] = "Lift", "1.4.0"
        data.attrs["env_info"] = json.dumps({"env_name": "Lift", "robots": "Panda", "control_freq": 20})
        for k in range(1, count + 1):
            demo = data.create_group(f"demo_{k}")
            demo.attrs["model_file"] = "<mujoco/>"
            actions = rng.uniform(-1, 1, (20, 7))
            actions[:15, :6], actions[:, 6] = 0, 1  # mostly idle, the hand closed
            demo["actions"], demo["states"] = actions, rng.normal(size=(20, 32))
    return path


def episodes(lengths: tuple[int, ...] = (9, 20, 5)) -> list[RawEpisode]:
    """Of three kinds of observations, with images."""
    rng = np.random.default_rng(0)

    def one(k: int, steps: int) -> RawEpisode:
        obs = {
            "state": rng.normal(size=(steps, 4)),
            "agent/qpos": rng.normal(size=(steps, 3)).astype(np.float32),
            "top_image": rng.integers(0, 256, (steps, 16, 24, 3), dtype=np.uint8),
        }
        actions = rng.uniform(-1, 1, (steps, 2)).astype(np.float32)
        return RawEpisode(f"e{k}", actions, obs, rewards=np.zeros(steps), success=k != 1, task="stack")

    return [one(k, steps) for k, steps in enumerate(lengths)]
