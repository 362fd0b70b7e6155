"""`mode=convert`: round trips are bit-equal, and a conversion that was stopped goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from difftop.command import main
from difftop.data.demonstrations import DemonstrationError
from difftop.data.exchange import RawEpisode
from difftop.data.files import open_demonstrations
from difftop.data.read_hdf5 import RobomimicReader
from difftop.datasets import convert
from tests.data.test_maniskill import write_file as write_maniskill
from tests.data.test_robomimic import write_file
from tests.datasets.files import zarr_folder

IMAGE = "agentview_image"


def converted(source: Path, out: Path, *more: str) -> Path:
    assert main(["mode=convert", f"dataset={source}", f"out={out}", *more]) == 0
    return out


def read(path: Path) -> list[RawEpisode]:
    from difftop.data.files import FORMATS, format_of

    name = next(name for name, known in FORMATS.items() if known is format_of(path))
    return list(convert.READERS[name](path).episodes())


def assert_equal(ours: list[RawEpisode], others: list[RawEpisode], *, images: bool = True) -> None:
    assert len(ours) == len(others)
    for one, other in zip(ours, others, strict=True):
        np.testing.assert_array_equal(one.actions, other.actions)
        assert one.obs.keys() == other.obs.keys()
        for key, rows in one.obs.items():
            if images or rows.ndim < 4:
                np.testing.assert_array_equal(rows, other.obs[key], err_msg=key)


def test_robomimic_to_lerobot_and_back_is_bit_equal(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    path = write_file(tmp_path / "people.hdf5")
    folder = converted(path, tmp_path / "set")
    back = converted(folder, tmp_path / "back.hdf5")
    assert_equal(read(path), read(folder))
    assert_equal(read(path), read(back))
    with h5py.File(back) as file, h5py.File(path) as first:
        assert (
            json.loads(file["data"].attrs["env_args"])["env_kwargs"] == json.loads(first["data"].attrs["env_args"])["env_kwargs"]
        )
        assert [name.decode() for name in file["mask/valid"][()]] == ["demo_1", "demo_4"]  # demo_11 is the fifth
    made, direct = open_demonstrations(folder, filter_key="valid"), open_demonstrations(path, filter_key="valid")
    assert torch.equal(made.actions, direct.actions) and made.shapes == direct.shapes and made.env.name == "Lift"
    keys = ["object", IMAGE]
    a, b = (open_demonstrations(p, obs_keys=keys).windows(3, 2).gather(torch.tensor([0, 30, 7])) for p in (folder, path))
    assert all(torch.equal(a.obs[key], b.obs[key]) for key in keys) and torch.equal(a.actions, b.actions)


def test_videos_are_close(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    pytest.importorskip("av")
    path = write_file(tmp_path / "people.hdf5")
    with h5py.File(path, "r+") as file:
        for number, demo in enumerate(file["data"].values()):
            steps = len(demo["actions"])
            del demo[f"obs/{IMAGE}"]
            ramp = (np.arange(steps) * 4 + 20 * number)[:, None, None, None] + np.zeros((1, 32, 48, 3))
            demo[f"obs/{IMAGE}"] = ramp.astype(np.uint8)
    folder = converted(path, tmp_path / "set", "video=true")
    assert list((folder / "videos").rglob("*.mp4"))
    assert_equal(read(path), read(folder), images=False)
    for one, other in zip(read(path), read(folder), strict=True):
        assert np.abs(one.obs[IMAGE].astype(int) - other.obs[IMAGE]).max() <= 3  # the right frame: neighbours differ by 4
    made = open_demonstrations(folder, obs_keys=[IMAGE], cache_bytes=1)
    image = made.images[IMAGE].gather(torch.tensor([3]), torch.tensor([[33, 34, 0]]))
    assert image.shape == (1, 3, 3, 32, 48) and int(image[0, 1].float().mean() - image[0, 0].float().mean()) in (3, 4)


def test_maniskill_to_robomimic_keeps_what_follows_an_action(tmp_path: Path) -> None:
    path = write_maniskill(tmp_path / "trajectory.h5", nested=True)
    out = converted(path, tmp_path / "out.hdf5")
    with h5py.File(out) as file, h5py.File(path) as first:
        np.testing.assert_array_equal(file["data/demo_0/next_obs/agent/qpos"][()], first["traj_0/obs/agent/qpos"][1:])
    back = converted(out, tmp_path / "back.h5")
    with h5py.File(back) as file, h5py.File(path) as first:
        np.testing.assert_array_equal(file["traj_2/actions"][()], first["traj_10/actions"][()])
    assert json.loads(back.with_suffix(".json").read_text())["env_info"]["env_id"] == "PickCube-v1"


@pytest.mark.parametrize("codec", [None, {"id": "zlib", "level": 1}, {"id": "blosc", "cname": "zstd", "clevel": 5, "shuffle": 2}])
def test_zarr_is_read_and_converted(tmp_path: Path, codec: dict[str, Any] | None) -> None:
    if codec and codec["id"] == "blosc":
        pytest.importorskip("numcodecs")
    made = zarr_folder(tmp_path / "pusht.zarr", codec=codec)
    demonstrations = open_demonstrations(tmp_path / "pusht.zarr", obs_keys=["state", "img_image"])
    assert demonstrations.length.tolist() == [11, 7, 14] and demonstrations.actions.abs().max() <= 1
    assert demonstrations.action_low is not None and demonstrations.action_high is not None
    low, high = made["action"].min(0), made["action"].max(0)
    np.testing.assert_allclose(demonstrations.actions.numpy(), 2 * (made["action"] - low) / (high - low) - 1, atol=1e-5)
    np.testing.assert_array_equal(demonstrations.low_dim["state"].numpy(), made["state"])
    image = list(demonstrations.episodes(images=True))[1].obs["img_image"]
    assert image.dtype == torch.uint8
    np.testing.assert_array_equal(image.numpy(), made["img"][11:18].transpose(0, 3, 1, 2))
    if codec is None:
        pytest.importorskip("pyarrow")
        folder = converted(tmp_path / "pusht.zarr", tmp_path / "set")
        assert_equal(read(tmp_path / "pusht.zarr"), read(folder))


def test_a_stopped_conversion_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    path, out = write_file(tmp_path / "people.hdf5"), tmp_path / "out.h5"
    started: list[int] = []

    class Stopping(RobomimicReader):
        def episodes(self, start: int = 0) -> Iterator[RawEpisode]:
            started.append(start)
            for number, episode in enumerate(super().episodes(start), start):
                if number == 3 and len(started) == 1:
                    raise DemonstrationError("stopped")
                yield episode

    monkeypatch.setitem(convert.READERS, "robomimic", Stopping)  # type: ignore[arg-type]
    assert main(["mode=convert", f"dataset={path}", f"out={out}"]) == 2
    assert not out.exists() and (tmp_path / "out.h5.parts").is_dir()
    other = write_file(tmp_path / "other.hdf5")
    assert main(["mode=convert", f"dataset={other}", f"out={out}"]) == 2
    assert "another conversion to" in capsys.readouterr().err
    converted(path, out)
    assert started == [0, 3]
    assert_equal(read(path), read(out))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other.hdf5", "out.h5", "out.json", "people.hdf5"]


def test_mistakes_are_one_sentence(tmp_path: Path, capsys: Any) -> None:
    path = write_file(tmp_path / "people.hdf5")
    zarr_folder(tmp_path / "pusht.zarr")
    for words, message in (
        (["out=x.hdf5"], "needs dataset=PATH and out=PATH"),
        ([f"dataset={path}", "out=x.npz"], "out=x.npz: must end in .hdf5"),
        ([f"dataset={path}", f"out={path}"], "is there already"),
        ([f"dataset={tmp_path / 'pusht.zarr'}", f"out={tmp_path / 'x.hdf5'}"], r"leave [-1, 1]"),
    ):
        assert main(["mode=convert", *words]) == 2
        said = capsys.readouterr().err
        assert message in said and said.count("\n") == 1, said
