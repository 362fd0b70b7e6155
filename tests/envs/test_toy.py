import itertools

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import envs
from envs.toy import CONTROL_STEPS, PointMassSimulator, optimal_return


def play(state, actions, action_repeat=1):
    simulator = PointMassSimulator()
    simulator._position, simulator._velocity = state[:2].copy(), state[2:].copy()
    return sum(simulator.step(action).reward for action in np.repeat(actions, action_repeat, axis=0))


@pytest.mark.parametrize("obs", ["state", "pixels"])
def test_env_checker(obs):
    envs.register_all()
    check_env(gymnasium.make("toy/point-mass-v0", obs=obs).unwrapped)


def test_time_limit_truncates():
    env = envs.make_env(envs.EnvConfig("toy/point-mass"))
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
    simulator = PointMassSimulator()
    simulator._position = np.array([0.75, 0.75])
    image = simulator.render(84, 84)
    rows, columns = np.nonzero(image[:, :, 1])
    assert abs(rows.mean() - 83 / 4) < 0.6 and abs(columns.mean() - 83 * 3 / 4) < 0.6  # up is +y
