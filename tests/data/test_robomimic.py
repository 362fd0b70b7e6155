"""RoboMimic files of three generations, what is wrong with broken ones, and writing."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from difftop.data import hdf5
from difftop.data.demonstrations import DemonstrationError, EnvInfo
from difftop.data.hdf5 import BlockCache
from difftop.data.robomimic import Recording, open_robomimic, write_demonstrations

FLAT = {"type": "OSC_POSE", "input_max": 1, "kp": 150, "control_delta": True}
BY_PART = {"type": "BASIC", "body_parts": {"right": {**FLAT, "input_ref_frame": "world", "gripper": {"type": "GRIP"}}}}
ENV_ARGS: dict[str, dict[str, Any]] = {
    "v0.1": {"env_name": "Lift", "type": 1, "env_kwargs": {"controller_configs": FLAT}},
    "v141": {"env_name": "Lift", "type": 1, "env_kwargs": {"controller_configs": FLAT}, "env_version": "1.4.1"},
    "v15": {"env_name": "Lift", "type": 1, "env_kwargs": {"controller_configs": BY_PART}, "env_version": "1.5.1"},
    "env_type": {"env_name": "Lift", "env_type": 1, "env_kwargs": {"controller_configs": FLAT}},
}
LENGTHS = {0: 19, 1: 5, 2: 17, 10: 40, 11: 6}


def values(k: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(k).uniform(-1, 1, shape)


def images(k: int, steps: int) -> np.ndarray:
    return np.random.default_rng(k).integers(0, 256, (steps, 4, 6, 3), dtype=np.uint8)


def write_file(path: Path, env_args: dict[str, Any] = ENV_ARGS["v141"]) -> Path:
    """As robomimic writes it, in the order demo_0, demo_1, demo_10, demo_11, demo_2 of HDF5."""
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        for k, steps in LENGTHS.items():
            demo = data.create_group(f"demo_{k}")
            demo.attrs["num_samples"], demo.attrs["model_file"] = steps, "<mujoco/>"
            demo["actions"], demo["states"] = values(k, (steps, 7)), values(k, (steps, 32))
            demo["rewards"], demo["dones"] = np.zeros(steps), np.arange(steps) == steps - 1
            for obs in ("obs", "next_obs"):
                demo[f"{obs}/robot0_eef_pos"] = values(k + 100, (steps, 3))
                demo[f"{obs}/object"] = values(k + 200, (steps, 10))
            demo["obs/agentview_image"] = images(k, steps)
        data.attrs["total"], data.attrs["env_args"] = sum(LENGTHS.values()), json.dumps(env_args)
        file["mask/train"] = np.array([b"demo_10", b"demo_2", b"demo_0"])
        file["mask/valid"] = np.array([b"demo_1", b"demo_11"])
    return path


@pytest.mark.parametrize("generation", ENV_ARGS)
def test_generations(tmp_path: Path, generation: str) -> None:
    made = open_robomimic(write_file(tmp_path / "f.hdf5", ENV_ARGS[generation]))
    assert made.names == ("demo_0", "demo_1", "demo_2", "demo_10", "demo_11")
    assert made.length.tolist() == [19, 5, 17, 40, 6]
    assert made.shapes == {"object": (10,), "robot0_eef_pos": (3,)}
    for k, episode in zip(LENGTHS, made.episodes(), strict=True):
        np.testing.assert_array_equal(episode.actions.numpy(), values(k, (LENGTHS[k], 7)).astype(np.float32))
        np.testing.assert_array_equal(episode.obs["object"].numpy(), values(k + 200, (LENGTHS[k], 10)).astype(np.float32))
    assert (made.env.name, made.env.version) == ("Lift", ENV_ARGS[generation].get("env_version"))
    assert made.env.kwargs == ENV_ARGS[generation]["env_kwargs"]
    assert len(made.windows(12, 6)) == sum(max(0, t - 16) for t in LENGTHS.values())


def test_filters_and_choices(tmp_path: Path) -> None:
    path = write_file(tmp_path / "f.hdf5")
    assert open_robomimic(path, filter_key="train").names == ("demo_0", "demo_2", "demo_10")
    assert open_robomimic(path, filter_key="train", limit=2).names == ("demo_0", "demo_2")
    assert list(open_robomimic(path, obs_keys=["robot0_eef_pos", "object"]).low_dim) == ["robot0_eef_pos", "object"]
    with pytest.raises(DemonstrationError, match="no filter key 'better'; it has train, valid"):
        open_robomimic(path, filter_key="better")


def test_images_are_read_from_disk_with_bounded_memory(tmp_path: Path) -> None:
    block = 16 * 4 * 6 * 3
    made = open_robomimic(write_file(tmp_path / "f.hdf5"), obs_keys=["object", "agentview_image"], cache_bytes=3 * block)
    lazy = made.images["agentview_image"]
    assert made.shapes["agentview_image"] == (3, 4, 6) and lazy.cache.used_bytes == 0
    windows = made.only([3, 0]).windows(12, 6)
    index = torch.randperm(len(windows), generator=torch.Generator().manual_seed(0))
    for chunk in index.split(5):
        batch = windows.gather(chunk)
        assert batch.obs["agentview_image"].dtype == torch.uint8
        assert lazy.cache.used_bytes == sum(b.nbytes for b in lazy.cache._blocks.values()) <= 3 * block
        for w, number in enumerate(chunk.tolist()):
            episode, start = ([10, 0][windows.episode[number]], int(windows.start[number]))
            expected = images(episode, LENGTHS[episode])[start : start + 12].transpose(0, 3, 1, 2)
            np.testing.assert_array_equal(batch.obs["agentview_image"][w].numpy(), expected)
    whole = list(made.episodes(images=True))[1].obs["agentview_image"]
    np.testing.assert_array_equal(whole.numpy(), images(1, 5).transpose(0, 3, 1, 2))
    sent = pickle.loads(pickle.dumps(lazy))
    assert sent.cache.used_bytes == 0 and torch.equal(sent.gather(torch.tensor([1]), torch.arange(5)[None])[0], whole)


def test_a_cache_smaller_than_a_block_still_reads(tmp_path: Path) -> None:
    cache = BlockCache(write_file(tmp_path / "f.hdf5"), 1)
    assert cache.block("data/demo_0/obs/agentview_image", 1).shape == (3, 3, 4, 6) and cache.used_bytes == 0
    cache.path.unlink()
    with pytest.raises(DemonstrationError, match="damaged or gone"):
        BlockCache(cache.path, 1).block("data/demo_0/obs/agentview_image", 0)


def spoil(change: Callable[[Any], None]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            change(file)

    return apply


def replaced(file: Any, name: str, new: Any) -> None:
    del file[name]
    file[name] = new


def put(name: str, index: tuple[int, ...], value: float) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        file[name][index] = value

    return change


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "no file": (lambda path: path.unlink(), "no such file"),
    "no HDF5": (lambda path: path.write_text("demo"), "not a whole HDF5 file"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-4000]), "not a whole HDF5 file"),
    "no data": (spoil(lambda f: f.move("data", "demos")), "group data is missing"),
    "no env_args": (spoil(lambda f: f["data"].attrs.pop("env_args")), "env_args of data is missing"),
    "env_args no JSON": (spoil(lambda f: f["data"].attrs.modify("env_args", "Lift")), "no JSON"),
    "no env_name": (spoil(lambda f: f["data"].attrs.modify("env_args", '{"type": 1}')), "lacks 'env_name'"),
    "no type": (spoil(lambda f: f["data"].attrs.modify("env_args", '{"env_name": "L", "env_kwargs": {}}')), "lacks 'env_type'"),
    "odd name": (spoil(lambda f: f.move("data/demo_2", "data/episode_2")), "data has 'episode_2'"),
    "demo lost": (spoil(lambda f: f["data"].__delitem__("demo_11")), "have 81 samples but its attribute total is 87"),
    "mask": (spoil(lambda f: replaced(f, "mask/train", np.array([b"demo_7"]))), "names 'demo_7', which is not in data"),
    "no num_samples": (spoil(lambda f: (f["data"].attrs.pop("total"), f["data/demo_2"].attrs.pop("num_samples"))), "num_samples"),
    "no obs": (spoil(lambda f: f.move("data/demo_2/obs", "data/demo_2/o")), "demo_2 has no observations"),
    "no actions": (spoil(lambda f: f.move("data/demo_2/actions", "data/demo_2/a")), "/data/demo_2/actions is missing"),
    "no kwargs": (
        spoil(lambda f: f["data"].attrs.modify("env_args", '{"env_name": "L", "type": 1, "env_kwargs": null}')),
        "env_kwargs None; they must be a JSON object",
    ),
    "no key": (spoil(lambda f: f.move("data/demo_2/obs/object", "data/demo_2/obs/o")), "demo_2 has no observation 'object'"),
    "num_samples": (
        spoil(lambda f: replaced(f, "data/demo_2/actions", np.zeros((16, 7)))),
        "demo_2 has 16 actions but num_samples is 17",
    ),
    "obs rows": (
        spoil(lambda f: replaced(f, "data/demo_2/obs/object", np.zeros((18, 10)))),
        "obs/object has 18 rows for 17 actions; it must have one per action",
    ),
    "obs shape": (spoil(lambda f: replaced(f, "data/demo_2/obs/object", np.zeros((17, 14)))), r"shape \[14\], .* are \[10\]"),
    "action shape": (spoil(lambda f: replaced(f, "data/demo_2/actions", np.zeros((17, 6)))), r"actions of \[6, 7\] entries"),
    "NaN": (spoil(put("data/demo_2/obs/object", (3, 1), np.nan)), "obs/object has NaN or infinity at step 3 of 17"),
    "box": (spoil(put("data/demo_2/actions", (4, 2), -1.2)), r"actions step 4 is .* 1 steps leave \[-1, 1\]"),
    "text": (spoil(lambda f: replaced(f, "data/demo_2/obs/object", np.array([b"x"] * 170).reshape(17, 10))), "must hold numbers"),
}


def test_groups_among_observations_are_refused(tmp_path: Path) -> None:
    path = write_file(tmp_path / "f.hdf5")
    spoil(lambda f: f["data/demo_0/obs"].create_group("more"))(path)
    with pytest.raises(DemonstrationError, match="obs/more is a group; it must be a dataset"):
        open_robomimic(path)


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_refused_in_one_sentence(tmp_path: Path, name: str) -> None:
    path = write_file(tmp_path / "f.hdf5")
    change, message = BROKEN[name]
    change(path)
    with pytest.raises(DemonstrationError, match=message) as caught:
        open_robomimic(path, filter_key="train", obs_keys=["object"])
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_simulator_version() -> None:
    assert EnvInfo("Lift", {}, "1.5.1", {}).same_version("1.5.2")
    assert not EnvInfo("Lift", {}, "1.4.1", {}).same_version("1.5.2") and not EnvInfo("Lift", {}, None, {}).same_version("1.5.2")


def recordings() -> list[Recording]:
    return [
        Recording(
            obs={"object": values(k, (steps, 4)).astype(np.float32), "agentview_image": images(k, steps)},
            actions=values(k + 50, (steps, 7)).astype(np.float32),
            rewards=np.arange(steps, dtype=np.float32),
            states=values(k, (steps, 9)),
            attributes={"model_file": "<mujoco/>"},
        )
        for k, steps in enumerate([18, 20, 4, 17, 3, 3, 3, 3, 3, 3, 5])
    ]


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "made.hdf5"
    write_demonstrations(path, iter(recordings()), ENV_ARGS["v15"], {"train": [10, 2, 0], "valid": [1]})
    made = open_robomimic(path, obs_keys=["object", "agentview_image"])
    assert made.names == tuple(f"demo_{k}" for k in range(11)) and made.env.raw == ENV_ARGS["v15"]
    for episode, recording in zip(made.episodes(images=True), recordings(), strict=True):
        np.testing.assert_array_equal(episode.actions.numpy(), recording.actions)
        np.testing.assert_array_equal(episode.obs["object"].numpy(), recording.obs["object"])
        np.testing.assert_array_equal(
            episode.obs["agentview_image"].numpy().transpose(0, 2, 3, 1), recording.obs["agentview_image"]
        )
    assert open_robomimic(path, filter_key="train").names == ("demo_0", "demo_2", "demo_10")
    with h5py.File(path) as file:
        assert file["data"].attrs["total"] == 82 and file["data/demo_10"].attrs["model_file"] == "<mujoco/>"
        assert file["data/demo_10/dones"][()].tolist() == [0, 0, 0, 0, 1] and file["data/demo_10/actions"].dtype == np.float64
        np.testing.assert_array_equal(file["data/demo_1/states"], values(1, (20, 9)))
    assert [p.name for p in tmp_path.iterdir()] == ["made.hdf5"]


@pytest.mark.parametrize(
    ("episode", "message"),
    [
        (Recording({"object": np.zeros((3, 2))}, np.full((3, 7), 1.5), np.zeros(3)), "demo_1/actions step 0"),
        (Recording({"object": np.zeros((4, 2))}, np.zeros((3, 7)), np.zeros(3)), "demo_1/obs/object has 4 rows for 3 actions"),
        (Recording({"object": np.full((3, 2), np.inf)}, np.zeros((3, 7)), np.zeros(3)), "demo_1/obs/object has NaN"),
        (Recording({}, np.zeros((0, 7)), np.zeros(0)), "at least one step"),
    ],
)
def test_nothing_is_written_of_bad_episodes(tmp_path: Path, episode: Recording, message: str) -> None:
    path = tmp_path / "made.hdf5"
    path.write_text("the old file")
    with pytest.raises(DemonstrationError, match=message):
        write_demonstrations(path, [recordings()[0], episode], ENV_ARGS["v15"])
    assert path.read_text() == "the old file" and [p.name for p in tmp_path.iterdir()] == ["made.hdf5"]
    with pytest.raises(DemonstrationError, match="lacks env_version"):
        write_demonstrations(path, recordings(), ENV_ARGS["v0.1"])
    with pytest.raises(DemonstrationError, match="no episode"):
        write_demonstrations(path, [], ENV_ARGS["v15"])
    with pytest.raises(DemonstrationError, match="beyond 0"):
        write_demonstrations(path, recordings()[:1], ENV_ARGS["v15"], {"train": [1]})


def test_a_disk_without_room_is_refused_before_hdf5_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two episodes: what is there goes, and the error is the disk's."""
    free = iter([10**9, 2 * 10**6])
    monkeypatch.setattr(hdf5.shutil, "disk_usage", lambda path: SimpleNamespace(free=next(free)))
    episode = Recording({"image": np.zeros((200, 84, 84, 3), np.uint8)}, np.zeros((200, 7)), np.zeros(200))
    with pytest.raises(OSError, match="No space left"):
        write_demonstrations(tmp_path / "demos.hdf5", [episode, episode], ENV_ARGS["v141"])
    assert list(tmp_path.iterdir()) == []
