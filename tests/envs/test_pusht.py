"""Push-T against gym-pusht itself, its keypoints against the simulator's corners, and its expert."""

import json

import numpy as np
import pytest

pytest.importorskip("gym_pusht", reason="gym-pusht is not installed; run `make sims`")

import envs
from difftop.options import ConfigError
from envs import EnvConfig, EnvError
from envs.pusht.simulator import CORNERS, KEYPOINTS, placed


def made(obs, **options):
    return envs.make_env(EnvConfig("pusht/push-t", obs=obs, **options))


def test_it_is_gym_pusht_with_places_from_minus_one_to_one():
    import gymnasium

    theirs = gymnasium.make("gym_pusht/PushT-v0", disable_env_checker=True)
    env, rng = made("state"), np.random.default_rng(0)
    seen, _ = theirs.reset(seed=7)
    obs, _ = env.reset(seed=7)
    np.testing.assert_array_equal(obs["state"], seen.astype(np.float32))
    for _ in range(40):
        action = rng.uniform(-0.9, 0.9, 2).astype(np.float32)
        seen, reward, _, _, info = theirs.step((action.astype(np.float64) + 1) * 256)
        obs, got, terminated, truncated, told = env.step(action)
        np.testing.assert_array_equal(obs["state"], seen.astype(np.float32))
        assert got == reward and told["success"] == info["is_success"] and not terminated and not truncated
    assert env.simulator.coverage == info["coverage"] and env.difftop_spec.control_dt_s == 0.1


def test_keypoints_are_corners_and_centre_of_the_simulated_t():
    env = made("low_dim")
    obs, _ = env.reset(seed=2)
    points, board = obs["keypoint"].reshape(9, 2), env.simulator.env
    corners = board.get_keypoints(board._block_shapes)
    for corner in points[:8]:
        assert np.linalg.norm(corners - corner, axis=1).min() < 1e-3
    np.testing.assert_allclose(points[8], board.block.local_to_world(board.block.center_of_gravity), atol=1e-3)
    np.testing.assert_allclose(obs["agent_pos"], board.agent.position)


def test_keypoints_and_image_size_are_those_of_the_file():
    told = {"keypoints": [[0.0, 0.0], [10.0, 20.0]], "image_size": 32}
    env = made("low_dim", made_with=json.dumps(told))
    obs, _ = env.reset(seed=1)
    np.testing.assert_allclose(obs["keypoint"].reshape(2, 2), placed(env.simulator.states()[4:], np.array(told["keypoints"])))
    shown = made("image", made_with=json.dumps(told))
    assert shown.reset(seed=1)[0]["img_image"].shape == (3, 32, 32)
    for bad in ("[[", json.dumps({"keypoints": [1, 2]})):
        with pytest.raises(EnvError, match=r"env\.made_with"):
            made("low_dim", made_with=bad)
    with pytest.raises(ConfigError, match=r"env\.control=joints is not offered"):
        made("low_dim", control="joints")


def test_images_show_the_board():
    env = made("image", image_size=96)
    assert list(env.difftop_spec.obs) == ["agent_pos", "img_image"]
    image = env.reset(seed=4)[0]["img_image"]
    state = env.simulator.states()
    column, row = (state[:2] * 96 / 512).astype(int)
    assert image[2, row, column] > image[0, row, column] + 50  # the disc is blue
    moved = env.step(np.array([0.9, 0.9], np.float32))[0]["img_image"]
    assert (moved != image).any() and env.render().shape == (256, 256, 3)
    assert made("pixels").reset(seed=4)[0]["pixels"].shape == (9, 84, 84)


def test_an_episode_is_a_function_of_its_seed_also_where_bodies_touch():
    first = made("low_dim")
    first.reset(seed=5)
    expert = envs.make_expert(EnvConfig("pusht/push-t"), first.simulator, np.random.default_rng(0))
    actions, seen = [], []
    for _ in range(40):
        actions.append(expert.act({}).astype(np.float32))
        seen.append(first.step(actions[-1])[0]["keypoint"])
    assert np.ptp(seen, axis=0).max() > 5  # the T was pushed
    for env in (first, made("low_dim")):
        env.reset(seed=5)
        np.testing.assert_array_equal([env.step(action)[0]["keypoint"] for action in actions], seen)


def test_the_expert_puts_it_into_its_place_and_stays():
    env = made("low_dim", reward="dense")
    expert = envs.make_expert(EnvConfig("pusht/push-t"), env.simulator, np.random.default_rng(0))
    for seed in (2, 3):
        obs, _ = env.reset(seed=seed)
        expert.reset()
        solved = 0
        for _ in range(env.difftop_spec.episode_steps):
            action = expert.act(obs)
            assert np.abs(action).max() <= 1
            obs, reward, _, _, info = env.step(action.astype(np.float32))
            solved = solved + 1 if info["success"] else 0
            if solved == 5:
                break
        assert solved == 5 and reward == 1.0


def test_demonstrations_say_what_they_were_recorded_in():
    said = envs.recorded_as(EnvConfig("pusht/push-t", obs="image", image_size=96))
    assert said["env_name"] == "push-t" and said["env_version"].startswith("0.1")
    assert said["env_kwargs"] == {"suite": "pusht", "obs": "image", "control_mode": "position", "image_size": 96}


def test_default_keypoints_are_as_many_as_the_published():
    assert KEYPOINTS.shape == (9, 2) and (KEYPOINTS[:8] == CORNERS).all()
