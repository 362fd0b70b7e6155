import itertools

import numpy as np
import pytest

import envs
from envs import EnvConfig
from envs.demos import Disturbed
from envs.toy import PointMassSimulator, optimal_return
from envs.toy.point_mass import CONTROL_STEPS

POINT_MASS, REACH = EnvConfig("toy/point-mass"), EnvConfig("toy/reach", obs="low_dim")


def play(state, actions, action_repeat=1):
    simulator = PointMassSimulator(POINT_MASS)
    simulator._position, simulator._velocity = state[:2].copy(), state[2:].copy()
    return sum(simulator.step(action).reward for action in np.repeat(actions, action_repeat, axis=0))


def test_state_is_position_and_velocity():
    env = envs.make_env(POINT_MASS)
    obs, _ = env.reset(seed=2)
    assert obs["state"][2:].tolist() == [0, 0]
    after = env.step(np.ones(2))[0]["state"]
    assert after == pytest.approx([*(obs["state"][:2] + 0.25 * 0.4), 0.4, 0.4], abs=1e-6)


def test_time_limit_truncates():
    env = envs.make_env(POINT_MASS)
    env.reset(seed=0)
    ends = [env.step(np.zeros(2))[2:4] for _ in range(CONTROL_STEPS)]
    assert ends == [(False, False)] * (CONTROL_STEPS - 1) + [(False, True)]


def test_optimum_is_what_the_simulator_pays_for_its_actions():
    state = np.array([0.9, -0.4, 0.2, 0.1])
    value, actions = optimal_return(state)
    assert np.isclose(play(state, actions), value, atol=1e-12)
    assert np.abs(actions).max() == 1  # the bound is active, so that clipping is part of the problem


def test_optimum_against_brute_force():
    state = np.array([0.9, 0.2, -0.3, 0.4])
    grid = np.linspace(-1, 1, 21)
    value, actions = optimal_return(state, control_steps=3)
    # the axes don't interact: the best plan of one is found with the other's actions at rest
    best = []
    for axis in range(2):
        plans = np.zeros((len(grid) ** 3, 3, 2))
        plans[:, :, axis] = list(itertools.product(grid, repeat=3))
        best.append(max(play(state, plan) for plan in plans))
    rest = play(state, np.zeros((3, 2)))
    brute = best[0] + best[1] - rest
    # half a grid cell off in 3 actions of each axis costs at most 2 * |e|_H^2 with |e|^2 <= 3 * 0.05^2 and H < 0.2
    assert 0 <= value - brute <= 2 * 3 * 0.05**2 * 0.2
    assert value >= play(state, np.clip(actions + 0.01, -1, 1))


@pytest.mark.parametrize("action_repeat", [1, 4])
def test_optimum_satisfies_the_optimality_conditions(action_repeat):
    """Concave and box-bounded: a plan is the optimum if and only if no partial derivative points into the box."""
    rng = np.random.default_rng(0)
    state = rng.uniform(-1, 1, 4)
    _, actions = optimal_return(state, action_repeat, control_steps=24)
    for index in np.ndindex(*actions.shape):
        step = np.zeros_like(actions)
        step[index] = 1e-4
        slope = (play(state, actions + step, action_repeat) - play(state, actions - step, action_repeat)) / 2e-4
        if actions[index] < 1:
            assert slope < 1e-8
        if actions[index] > -1:
            assert slope > -1e-8


def test_random_actions_are_far_from_the_optimum():
    rng = np.random.default_rng(0)
    states = [np.array([*rng.uniform(-1, 1, 2), 0, 0]) for _ in range(8)]
    best = np.mean([optimal_return(state)[0] for state in states])
    random = np.mean([play(state, rng.uniform(-1, 1, (CONTROL_STEPS, 2))) for state in states])
    assert best > random + 3


def test_pixels_show_the_position():
    simulator = PointMassSimulator(POINT_MASS)
    simulator._position = np.array([0.75, 0.75])
    image = simulator.render(84, 84)
    rows, columns = np.nonzero(image[:, :, 1])
    assert abs(rows.mean() - 83 / 4) < 0.6 and abs(columns.mean() - 83 * 3 / 4) < 0.6  # up is +y


def test_an_episode_of_reach_is_a_function_of_its_seed():
    first, second = envs.make_env(REACH), envs.make_env(REACH)
    first.reset(seed=9)
    first.step(np.ones(2))
    actions = np.random.default_rng(0).uniform(-1, 1, (40, 2))
    for env in (first, second):
        env.reset(seed=5)
    for t, action in enumerate(actions):
        a, b = first.step(action), second.step(action)
        assert all((a[0][key] == b[0][key]).all() for key in a[0])
        assert a[1:] == b[1:] and a[3] == (t == 39) and not a[2]


@pytest.mark.parametrize("reward", ["dense", "sparse"])
def test_dynamics_reward_and_success_of_reach_are_those_of_the_docstring(reward):
    env = envs.make_env(EnvConfig("toy/reach", obs="low_dim", reward=reward))
    obs, _ = env.reset(seed=3)
    action = np.array([0.5, -1.0])
    after, paid, _, _, info = env.step(action)
    moved = obs["hand_pos"] + 0.1 * action
    assert after["hand_pos"] == pytest.approx(moved, abs=1e-6) and (after["target_pos"] == obs["target_pos"]).all()
    distance = np.linalg.norm(moved - obs["target_pos"])
    assert info["success"] == float(distance < 0.1)
    assert paid == pytest.approx(-distance if reward == "dense" else info["success"], abs=1e-6)


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_the_expert_solves_reach_and_a_still_hand_does_not(noise):
    env = envs.make_env(REACH)
    rng = np.random.default_rng(0)
    expert = Disturbed(envs.make_expert(REACH, env.simulator, rng), rng, noise, "executed")
    for seed in range(10):
        obs, _ = env.reset(seed=seed)
        first = np.linalg.norm(obs["hand_pos"] - obs["target_pos"])
        solved = []
        for _ in range(40):
            obs, _, _, _, info = env.step(expert.act(obs)[0])
            solved.append(info["success"])
        assert max(solved) == 1.0
        env.reset(seed=seed)
        assert env.step(np.zeros(2))[4]["success"] == float(first < 0.1)


def test_pixels_of_reach_show_hand_and_target():
    env = envs.make_env(EnvConfig("toy/reach", obs="pixels", image_size=64))
    image = env.reset(seed=1)[0]["pixels"][-3:]
    assert (image[1] == 255).any() and ((image[0] == 255) & (image[1] == 0)).any()
    assert envs.make_env(REACH).reset(seed=1)[0]["hand_pos"] == pytest.approx(env.simulator.hand, abs=1e-6)
