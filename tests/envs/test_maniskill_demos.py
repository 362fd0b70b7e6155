"""ManiSkill: demonstrations that its motion planner makes, and files of them."""

import dataclasses
import json

import h5py
import numpy as np
import pytest

from difftop.data.demonstrations import DemonstrationError
from difftop.data.maniskill import open_maniskill
from envs import maniskill
from envs.base import SimulatedEnv
from envs.errors import EnvError
from envs.maniskill import demos
from tests.envs.maniskill_suite import IMAGE, PICK, POINTS, shapes, simulated

pytestmark = pytest.mark.slow  # importing the suite and compiling its first image takes twenty seconds


@simulated
@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [PICK, IMAGE, POINTS, dataclasses.replace(IMAGE, depth=True)],
    ids=["low_dim", "image", "pointcloud", "depth"],
)
def test_the_file_and_the_simulator_agree_to_the_bit(made, planned, config):
    report = planned(config)
    assert report.episodes == 2 and report.attempts >= report.planned >= report.converted >= 2 and report.seconds > 0
    described = json.loads(report.path.with_suffix(".json").read_text())
    recorded = open_maniskill(report.path).env
    simulator = made(dataclasses.replace(config, made_with=json.dumps({"env_kwargs": dict(recorded.kwargs)})))
    assert shapes(simulator) == shapes(made(config))
    demonstrations = open_maniskill(report.path, obs_keys=list(simulator.obs), successful_only=True)
    assert demonstrations.shapes == shapes(simulator) and len(demonstrations) == 2
    assert recorded.same_version(maniskill.version())
    env = SimulatedEnv(simulator, config)
    for episode, told in zip(demonstrations.episodes(images=True), described["episodes"], strict=True):
        obs, _ = env.reset(seed=told["episode_seed"])
        info = {"success": 0.0}
        for t, action in enumerate(episode.actions.numpy()):
            for key in simulator.obs:
                assert np.array_equal(obs[key], episode.obs[key][t].numpy()), (key, t)
            obs, _, _, _, info = env.step(action)
        assert info["success"] == 1


@simulated
@pytest.mark.slow
def test_a_file_that_is_there_is_kept_if_the_same_arguments_made_it(planned, monkeypatch):
    report = planned(PICK)
    before = report.path.read_bytes()
    monkeypatch.setattr(demos, "_plan", lambda *_: pytest.fail("planned again"))
    again = maniskill.make_demonstrations("PickCube-v1", 2, report.path, 1, PICK)
    assert again == dataclasses.replace(report, seconds=0.0) and report.path.read_bytes() == before
    with pytest.raises(EnvError, match="not made by the same arguments; delete it"):
        maniskill.make_demonstrations("PickCube-v1", 2, report.path, 7, PICK)


@simulated
@pytest.mark.slow
def test_the_planner_solves_most_episodes_and_raw_files_are_told_what_to_do(tmp_path):
    seeds = [0, 1, 2]
    assert demos._plan("PushCube-v1", seeds, str(tmp_path), 32) == len(seeds)
    with pytest.raises(DemonstrationError, match=r"no observations, only .*replay_trajectory"):
        open_maniskill(tmp_path / "planned.h5")
    path = demos._convert(tmp_path, "state", "pd_ee_delta_pos", len(seeds))  # as ManiSkill's own tools leave it
    official = open_maniskill(path)
    assert len(official) == 3 and official.shapes == {"state": (35,)} and official.actions.shape[1] == 4
    assert official.env.same_version(maniskill.version())


REFUSED = {
    "no planner": ("RollBall-v1", 1, PICK, "no motion planner for it, only for PickCube-v1, "),
    "none": ("PickCube-v1", 0, PICK, "episodes=0 must be at least 1"),
    "control": ("PickCube-v1", 1, dataclasses.replace(PICK, control="pd_joint_vel"), "'pd_joint_vel' can't be converted to"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_requests(tmp_path, name):
    task, episodes, config, message = REFUSED[name]
    with pytest.raises(EnvError, match=message):
        maniskill.make_demonstrations(task, episodes, tmp_path / "a.h5", 0, config)
    assert not list(tmp_path.iterdir())


@simulated
def test_a_planner_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(demos, "_plan", lambda *_: 0)
    with pytest.raises(EnvError, match="26 attempts gave only 0 of 1 episodes"):
        maniskill.make_demonstrations("PickCube-v1", 1, tmp_path / "a.h5", 0, PICK)
    assert not list(tmp_path.iterdir())


def test_a_process_that_fails_or_hangs_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "broken.py").write_text("raise ValueError('two\\nlines')\n")
    (tmp_path / "slow.py").write_text("import time; time.sleep(30)\n")
    with pytest.raises(EnvError, match=r"broken failed with exit code 1 \(lines\)"):
        demos._run(["broken"], str(tmp_path), 1)
    monkeypatch.setattr(demos, "_START_S", 0.5)
    monkeypatch.setattr(demos, "_EPISODE_S", 0.0)
    with pytest.raises(EnvError, match="slow was still at work after 0 s"):
        demos._run(["slow"], str(tmp_path), 1)


def test_episodes_are_appended_with_new_numbers_and_without_what_no_policy_uses(tmp_path):
    def write(path, numbers):
        with h5py.File(path, "w") as file:
            for k in numbers:
                group = file.create_group(f"traj_{k}")
                group["actions"] = np.full((3, 7), k / 10, np.float32)
                group["obs/agent/qpos"] = np.full((4, 9), k, np.float32)
                group["obs/sensor_data/cam/rgb"] = np.full((4, 8, 8, 3), k, np.uint8)
                group["obs/sensor_data/cam/depth"] = np.full((4, 8, 8, 1), 1000 * k, np.int16)
                group["obs/sensor_param/cam/intrinsic_cv"] = np.ones((4, 3, 3), np.float32)
        return [{"episode_id": k, "elapsed_steps": 3, "success": True, "episode_seed": 100 + k} for k in numbers]

    described = []
    with h5py.File(tmp_path / "all.h5", "w") as file:
        for batch, numbers in enumerate(([0, 2], [1, 3])):
            path = tmp_path / f"{batch}.h5"
            demos._append(file, described, path, write(path, numbers), 3)
        assert "sensor_param" not in file["traj_0/obs"]
    assert [(e["episode_id"], e["episode_seed"]) for e in described] == [(0, 100), (1, 102), (2, 101)]
    (tmp_path / "all.json").write_text(json.dumps({"env_info": {"env_id": "PickCube-v1"}, "episodes": described}))
    read = open_maniskill(tmp_path / "all.h5", obs_keys=["cam_image", "cam_depth", "agent/qpos"])
    assert [float(e.obs["agent/qpos"][0, 0]) for e in read.episodes()] == [0, 2, 1]
    assert [int(e.obs["cam_image"][2].max()) for e in read.episodes(images=True)] == [0, 2, 1]
    assert [float(e.obs["cam_depth"][2].max()) for e in read.episodes(images=True)] == [0, 2, 1]  # m
