"""Demonstrations by the tasks' experts."""

import multiprocessing
from dataclasses import replace

import h5py
import numpy as np
import pytest

import envs.demos
from difftop.data.robomimic import open_robomimic
from difftop.options import ConfigError
from envs import EnvConfig, list_envs, make_expert, make_simulator, recorded_as
from envs.demos import Disturbed, demonstrations_file, record
from envs.errors import EnvError
from envs.suites import Outcome
from envs.toy import reach

REACH = EnvConfig("toy/reach", obs="low_dim")


def test_recorded_demonstrations_play_back(tmp_path):
    path = record(REACH, 6, seed=2, folder=tmp_path)
    assert path == demonstrations_file(REACH, 6, 2, tmp_path) and path.exists()
    demonstrations = open_robomimic(path)
    assert len(demonstrations) == 6 and demonstrations.shapes == {"hand_pos": (2,), "target_pos": (2,)}
    assert demonstrations.env.name == "reach" and demonstrations.env.version == recorded_as(REACH)["env_version"]
    for episode in demonstrations.episodes():
        hand, target = episode.obs["hand_pos"].numpy(), episode.obs["target_pos"].numpy()
        actions = episode.actions.numpy()
        assert hand[1:] == pytest.approx(hand[:-1] + 0.1 * actions[:-1], abs=1e-6)
        distance = np.linalg.norm(hand + 0.1 * actions - target, axis=1)
        first = int(np.argmax(distance < 0.1))
        assert distance[first] < 0.1 and len(hand) == min(first + 6, 40)  # it goes on for 5 actions after success


def test_a_file_that_is_there_is_not_made_again(tmp_path, monkeypatch):
    path = record(REACH, 2, seed=0, folder=tmp_path)
    before = path.read_bytes()
    monkeypatch.setattr(envs.demos, "make_env", lambda *_: pytest.fail("made again"))
    assert record(REACH, 2, seed=0, folder=tmp_path) == path and path.read_bytes() == before
    assert demonstrations_file(REACH, 2, 1, tmp_path) != path != demonstrations_file(REACH, 3, 0, tmp_path)


def test_of_two_processes_that_want_the_same_file_one_makes_it(tmp_path):
    context = multiprocessing.get_context("spawn")
    with context.Pool(2) as pool:
        calls = [pool.apply_async(record, (REACH, 400), {"seed": 0, "folder": tmp_path}) for _ in range(2)]
        paths = {call.get(timeout=120) for call in calls}
    assert paths == {demonstrations_file(REACH, 400, 0, tmp_path)} and len(open_robomimic(*paths)) == 400
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["expert-400-seed0.hdf5"]


def test_same_seed_same_file(tmp_path):
    first, second = (record(REACH, 3, seed=4, folder=tmp_path / name) for name in "ab")
    a, b = open_robomimic(first), open_robomimic(second)
    assert (a.actions == b.actions).all() and (a.low_dim["hand_pos"] == b.low_dim["hand_pos"]).all()


def test_failed_episodes_are_left_out_and_an_expert_that_fails_too_often_is_an_error(tmp_path, monkeypatch):
    played = []
    original = reach.ReachSimulator.step

    def fails_in_every_second_episode(self, action):
        outcome = original(self, action)
        return outcome if len(played) % 2 == 0 else outcome._replace(success=False)

    reset = reach.ReachSimulator.reset
    monkeypatch.setattr(reach.ReachSimulator, "reset", lambda self, seed: (played.append(seed), reset(self, seed))[1])
    monkeypatch.setattr(reach.ReachSimulator, "step", fails_in_every_second_episode)
    assert len(open_robomimic(record(REACH, 3, seed=0, folder=tmp_path))) == 3 and len(played) == 6
    monkeypatch.setattr(reach.ReachSimulator, "step", lambda self, a: (original(self, a), Outcome(0.0, success=False))[1])
    with pytest.raises(EnvError, match="solved 0 of 8 episodes, 2 are wanted"):
        record(REACH, 2, seed=1, folder=tmp_path)
    assert not demonstrations_file(REACH, 2, 1, tmp_path).exists() and not list(tmp_path.rglob("*.part"))


def test_expert_noise_is_what_it_says():
    simulator = make_simulator(REACH)
    simulator.reset(0)
    simulator.hand = simulator.target
    experts = [
        Disturbed(make_expert(REACH, simulator, None), np.random.default_rng(0), noise, labels)
        for noise, labels in ((0.0, "executed"), (0.2, "executed"), (0.2, "intended"))
    ]
    quiet, noisy, clean = (np.array([expert.act({}) for _ in range(2000)]) for expert in experts)
    assert (quiet == 0).all()
    executed, label = noisy.transpose(1, 0, 2)
    assert executed.std() == pytest.approx(0.2, rel=0.1) and (label == executed).all()
    executed, label = clean.transpose(1, 0, 2)
    assert executed.std() == pytest.approx(0.2, rel=0.1) and (label == 0).all()


def test_intended_labels_say_how_to_undo_the_noise(tmp_path):
    path = record(REACH, 20, seed=0, folder=tmp_path, noise=0.3, labels="intended")
    errors = []
    for episode in open_robomimic(path).episodes():
        hand, target, actions = episode.obs["hand_pos"].numpy(), episode.obs["target_pos"].numpy(), episode.actions.numpy()
        assert actions == pytest.approx((reach._GAIN * (target - hand)).clip(-1, 1), abs=1e-5)
        inside = np.abs(actions[:-1]) < 0.1  # where no noise is cut off
        errors.append((np.diff(hand, axis=0) / 0.1 - actions[:-1])[inside])
    assert np.concatenate(errors).std() == pytest.approx(0.3, rel=0.2)


def test_what_demonstrations_are_is_in_their_files_name(tmp_path):
    names = {
        demonstrations_file(REACH, 2, 0, tmp_path, *how) for how in [(0.1, "executed"), (0.1, "intended"), (0.3, "executed")]
    }
    assert len(names) == 3 and demonstrations_file(REACH, 2, 0, tmp_path) in names
    images = EnvConfig("metaworld/reach", obs="image")
    changes = [{}, {"cameras": ["corner"]}, {"render_quality": "fast"}, {"episode_steps": 50}, {"image_size": 64}]
    assert len({demonstrations_file(replace(images, **change), 2, 0, tmp_path) for change in changes}) == len(changes)
    planned = EnvConfig("maniskill/PickCube-v1", obs="low_dim")  # its planner adds no noise
    assert demonstrations_file(planned, 2, 0, tmp_path, 0.3) == demonstrations_file(planned, 2, 0, tmp_path)


def test_a_fast_picture_is_told_in_the_file_and_in_its_name(tmp_path):
    images = EnvConfig("toy/reach", obs="pixels", image_size=16, render_quality="fast")
    path = record(images, 1, seed=0, folder=tmp_path)
    assert (
        "fast" in path.name
        and "fast" not in demonstrations_file(replace(images, render_quality="published"), 1, 0, tmp_path).name
    )
    told = open_robomimic(path).env.raw
    assert told["render_quality"] == "fast" and "render_quality" not in told["env_kwargs"]
    assert recorded_as(REACH)["render_quality"] == "published"


def test_rewards_in_files_are_of_success_alone(tmp_path):
    with h5py.File(record(REACH, 2, seed=0, folder=tmp_path)) as file:
        rewards = file["data/demo_0/rewards"][()]
    assert set(rewards.tolist()) == {0.0, 1.0} and (np.diff(rewards) >= 0).all()


def test_a_task_without_an_expert_is_refused_before_anything_is_made(tmp_path):
    for name in ("toy/point-mass", "dmc/walker-walk", "robosuite/Stack", "maniskill/PushT-v1", "gym/Pendulum-v1"):
        with pytest.raises(ConfigError, match=f"env={name}: there is no scripted expert; give demonstrations with dataset=PATH"):
            record(EnvConfig(name, obs="low_dim"), 1, seed=0, folder=tmp_path)
    assert not list(tmp_path.iterdir())
    assert len([name for name in list_envs() if "expert" in envs.gives(name)]) > 60
