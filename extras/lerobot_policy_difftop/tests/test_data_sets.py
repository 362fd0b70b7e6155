"""Data sets that one of the two writes are read by the other, to the bit; skipped where lerobot isn't installed."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before lerobot: a data set that is here is never looked for elsewhere
pytest.importorskip("lerobot")
pytest.importorskip("datasets")
sys.path[:0] = [str(Path(__file__).parents[3])]


def lerobots(root: Path) -> Any:
    """LeRobot's own reader."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    return LeRobotDataset("difftop/test", root=root)


def test_lerobot_reads_what_is_converted_here(tmp_path: Path) -> None:
    from difftop.command import main
    from tests.datasets.files import zarr_folder

    lengths = (11, 7, 14)
    made = zarr_folder(tmp_path / "pusht.zarr", lengths)
    assert main(["mode=convert", f"dataset={tmp_path / 'pusht.zarr'}", f"out={tmp_path / 'set'}"]) == 0
    found = lerobots(tmp_path / "set")
    assert (found.meta.total_episodes, len(found)) == (len(lengths), sum(lengths))
    begins = np.cumsum((0, *lengths))
    for k in range(len(found)):
        frame = found[k]
        episode = int(frame["episode_index"])
        assert begins[episode] <= k < begins[episode + 1] and int(frame["frame_index"]) == k - begins[episode]
        for feature, rows in (("action", made["action"]), ("observation.state", made["state"])):
            value = frame[feature].numpy()
            assert value.dtype == rows.dtype and value.tobytes() == rows[k].tobytes()
        (camera,) = found.meta.camera_keys
        shown = np.moveaxis(frame[camera].numpy(), 0, -1)
        np.testing.assert_array_equal((shown * 255).round(), made["img"][k])
    stats = found.meta.stats
    for feature, rows in (("action", made["action"]), ("observation.state", made["state"])):
        np.testing.assert_allclose(stats[feature]["mean"], rows.mean(0, np.float64), rtol=1e-5)
        np.testing.assert_allclose(stats[feature]["max"], rows.max(0))


def test_what_lerobot_writes_is_read_here(tmp_path: Path) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    from difftop.data.files import open_demonstrations, survey
    from difftop.data.lerobot import LeRobotReader

    rng, lengths = np.random.default_rng(0), (12, 20, 9)
    made = {
        "observation.state": rng.normal(size=(sum(lengths), 5)).astype(np.float32),
        "observation.images.top": rng.integers(0, 256, (sum(lengths), 12, 16, 3), dtype=np.uint8),
        "action": rng.uniform(-300, 300, (sum(lengths), 2)).astype(np.float32),
    }
    features: dict[str, Any] = {
        name: {"dtype": "float32" if rows.ndim == 2 else "image", "shape": rows.shape[1:], "names": None}
        for name, rows in made.items()
    }
    features["observation.images.top"]["names"] = ["height", "width", "channels"]
    features["next.success"] = {"dtype": "bool", "shape": (1,), "names": None}
    writer = LeRobotDataset.create("difftop/test", fps=10, root=tmp_path / "set", features=features, use_videos=False)
    ends = np.cumsum(lengths) - 1
    for k in range(sum(lengths)):
        frame = {name: rows[k] for name, rows in made.items()}
        writer.add_frame({**frame, "next.success": np.array([k in ends[:2]]), "task": "push"})
        if k in ends:
            writer.save_episode()
    writer.finalize()

    reader = LeRobotReader(tmp_path / "set")
    assert reader.count == len(lengths) and reader.rate_hz == 10
    read = list(reader.episodes())
    assert [episode.success for episode in read] == [True, True, False] and {episode.task for episode in read} == {"push"}
    for name, rows in (
        ("observation.state", [e.obs["state"] for e in read]),
        ("observation.images.top", [e.obs["top_image"] for e in read]),
        ("action", [e.actions for e in read]),
    ):
        found = np.concatenate(rows)
        assert found.dtype == made[name].dtype and found.tobytes() == made[name].tobytes(), name
    looked = survey(tmp_path / "set")
    assert not looked.faults and looked.lengths.tolist() == list(lengths)
    used = open_demonstrations(tmp_path / "set", obs_keys=["state", "top_image"], successful_only=False)
    assert len(used) == len(lengths) and used.action_low is not None


def moving_pictures(steps: int) -> np.ndarray[Any, Any]:
    """Smooth colours that move, which video codecs keep well, `[T, H, W, 3]` bytes."""
    t, y, x = np.meshgrid(np.arange(steps), np.arange(64), np.arange(96), indexing="ij")
    waves = [np.sin(0.1 * x + 0.5 * t), np.cos(0.08 * y - 0.3 * t), np.sin(0.05 * (x + y) + 0.2 * t)]
    return (127.5 + 100 * np.stack(waves, -1)).astype(np.uint8)


def test_videos_that_lerobot_writes_are_read_here_as_lerobot_reads_them(tmp_path: Path) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    from difftop.data.files import open_demonstrations
    from difftop.data.lerobot import LeRobotReader

    lengths = (12, 20, 9)
    shown, rng = moving_pictures(sum(lengths)), np.random.default_rng(0)
    features: dict[str, Any] = {
        "observation.state": {"dtype": "float32", "shape": (3,), "names": None},
        "observation.images.top": {"dtype": "video", "shape": (64, 96, 3), "names": ["height", "width", "channels"]},
        "action": {"dtype": "float32", "shape": (2,), "names": None},
    }
    writer = LeRobotDataset.create("difftop/test", fps=10, root=tmp_path / "set", features=features, use_videos=True)
    for k, image in enumerate(shown):
        frame = {"observation.state": rng.normal(size=3).astype(np.float32), "observation.images.top": image}
        writer.add_frame({**frame, "action": rng.uniform(-1, 1, 2).astype(np.float32), "task": "push"})
        if k + 1 in np.cumsum(lengths):
            writer.save_episode()
    writer.finalize()

    theirs = LeRobotDataset("difftop/test", root=tmp_path / "set", video_backend="pyav")
    decoded = [(np.moveaxis(theirs[k]["observation.images.top"].numpy(), 0, -1) * 255).round() for k in range(len(shown))]
    read = list(LeRobotReader(tmp_path / "set").episodes())
    ours = np.concatenate([episode.obs["top_image"] for episode in read])
    assert [len(episode.actions) for episode in read] == list(lengths) and ours.dtype == np.uint8
    assert np.abs(ours.astype(float) - shown).mean() < 3
    np.testing.assert_allclose(ours, np.stack(decoded), atol=1)
    used = open_demonstrations(tmp_path / "set", obs_keys=["state", "top_image"], successful_only=False)
    assert used.shapes["top_image"] == (3, 64, 96)


def test_lerobot_reads_videos_that_are_converted_here(tmp_path: Path) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    from difftop.command import main
    from tests.datasets.files import zarr_array, zarr_folder

    lengths = (11, 7, 14)
    zarr_folder(tmp_path / "pusht.zarr", lengths)
    shown = moving_pictures(sum(lengths))
    shutil.rmtree(tmp_path / "pusht.zarr" / "data" / "img")
    zarr_array(tmp_path / "pusht.zarr" / "data" / "img", shown)
    assert main(["mode=convert", f"dataset={tmp_path / 'pusht.zarr'}", f"out={tmp_path / 'set'}", "video=true"]) == 0
    found = LeRobotDataset("difftop/test", root=tmp_path / "set", video_backend="pyav")
    (camera,) = found.meta.camera_keys
    assert len(found) == len(shown) and found.meta.features[camera]["dtype"] == "video"
    for k, image in enumerate(shown):
        frame = found[k]
        assert np.abs(np.moveaxis(frame[camera].numpy(), 0, -1) * 255 - image).mean() < 4, k
