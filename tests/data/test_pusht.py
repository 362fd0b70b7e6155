"""Push-T's published Zarr: recognized by its arrays, in pixels, with its points wherever on the T they are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import difftop
from difftop.data.demonstrations import DemonstrationError
from difftop.data.files import open_demonstrations, recorded_env, survey
from difftop.data.zarr import ZarrReader
from difftop.options import ConfigError
from tests.datasets.files import zarr_array, zarr_folder

LENGTHS = (11, 7, 14)


def pusht_folder(path: Path, noise: float = 0.0) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """As `pusht_cchi_v7_replay.zarr`, and where on the T its points are."""
    rng, rows = np.random.default_rng(0), sum(LENGTHS)
    local = rng.uniform(-60, 120, (9, 2))
    state = np.concatenate([rng.uniform(0, 512, (rows, 4)), rng.uniform(0, 2 * np.pi, (rows, 1))], 1)
    c, s = np.cos(state[:, 4]), np.sin(state[:, 4])
    x, y = local[:, 0], local[:, 1]
    points = np.stack([np.outer(c, x) - np.outer(s, y), np.outer(s, x) + np.outer(c, y)], -1) + state[:, None, 2:4]
    made = {
        "action": rng.uniform(20, 500, (rows, 2)),
        "state": state,
        "keypoint": points + noise * rng.normal(size=points.shape),
        "img": rng.integers(0, 256, (rows, 24, 24, 3)),
        "n_contacts": np.zeros((rows, 1)),
    }
    made = {key: values.astype(np.float32) for key, values in made.items()}
    made["action"][3] = -4, 530  # beyond the board
    for key, values in made.items():
        zarr_array(path / "data" / key, values)
    zarr_array(path / "meta" / "episode_ends", np.cumsum(LENGTHS).astype(np.int64))
    return made, local


def test_it_is_push_t_with_the_file_s_points_and_image_size(tmp_path: Path) -> None:
    _, local = pusht_folder(tmp_path / "pusht.zarr")
    env = recorded_env(tmp_path / "pusht.zarr")
    assert env.name == "push-t" and env.same_version("0.1.8") and env.kwargs["image_size"] == 24
    assert env.kwargs["suite"] == "pusht" and env.kwargs["control_freq"] == 10
    np.testing.assert_allclose(env.kwargs["keypoints"], local, atol=2e-3)


def test_actions_are_of_the_board_and_keys_those_of_the_environment(tmp_path: Path) -> None:
    made, _ = pusht_folder(tmp_path / "pusht.zarr")
    found = open_demonstrations(tmp_path / "pusht.zarr", obs_keys=["agent_pos", "keypoint", "img_image"])
    assert found.action_low is None and found.length.tolist() == list(LENGTHS)
    np.testing.assert_allclose(found.actions.numpy(), (made["action"] / 256 - 1).clip(-1, 1), atol=1e-6)
    assert found.actions[3].tolist() == [-1, 1]
    np.testing.assert_array_equal(found.low_dim["agent_pos"].numpy(), made["state"][:, :2])
    np.testing.assert_array_equal(found.low_dim["keypoint"].numpy(), made["keypoint"].reshape(-1, 18))
    shown = [episode.obs["img_image"].numpy() for episode in found.episodes(images=True)]
    np.testing.assert_array_equal(np.concatenate(shown), made["img"].transpose(0, 3, 1, 2))
    everything = open_demonstrations(tmp_path / "pusht.zarr")
    assert set(everything.shapes) == {"agent_pos", "keypoint", "n_contacts", "state"}
    with pytest.raises(DemonstrationError, match="no observation 'img'"):
        open_demonstrations(tmp_path / "pusht.zarr", obs_keys=["img"])


def test_a_look_and_a_conversion_show_the_same(tmp_path: Path) -> None:
    made, _ = pusht_folder(tmp_path / "pusht.zarr")
    seen = survey(tmp_path / "pusht.zarr")
    assert seen.columns["keypoint"].kind == "vector" and seen.columns["agent_pos"].shape == (2,) and not seen.faults
    episode = next(ZarrReader(tmp_path / "pusht.zarr").episodes(1))
    np.testing.assert_array_equal(episode.obs["agent_pos"], made["state"][11:18, :2])
    assert np.abs(episode.actions).max() <= 1


def test_others_are_not_taken_for_it(tmp_path: Path) -> None:
    pusht_folder(tmp_path / "loose.zarr", noise=5.0)  # points that no T carries
    assert recorded_env(tmp_path / "loose.zarr").name == ""
    zarr_folder(tmp_path / "other.zarr")
    assert recorded_env(tmp_path / "other.zarr").name == ""


def test_it_trains_and_is_evaluated_on_its_own_points(tmp_path: Path) -> None:
    pytest.importorskip("gym_pusht", reason="gym-pusht is not installed; run `make sims`")
    pusht_folder(tmp_path / "pusht.zarr")
    words = ["agent=diffusion", "agent.pad=mask", "agent.widths=[8,16]", "run.grad_steps=2", "run.eval_every=2"]
    words += ["run.batch_size=2", "run.select_episodes=1", "run.eval_episodes=1", "run.video=false", "env.episode_steps=9"]
    words += [f"dataset={tmp_path / 'pusht.zarr'}", f"root={tmp_path}", "threads=1", "device=cpu"]
    end = difftop.train(words)  # the environment is the file's
    assert end.finished and 0 <= end.evaluation["reward_max"] <= 1 and end.evaluation["success"] in (0, 1)
    config = json.loads((end.folder / "config.json").read_text())
    assert config["env"]["name"] == "pusht/push-t"
    spec = difftop.load_policy(end.folder, device="cpu").spec
    assert spec.shapes == {"agent_pos": (2,), "keypoint": (18,)} and spec.action_low == ()
    with pytest.raises(ConfigError, match=r"agent\.pad=hold"):
        difftop.train([word for word in words if "pad" not in word] + ["name=hold"])
