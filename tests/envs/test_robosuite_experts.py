import itertools
import math
from contextlib import closing
from importlib.util import find_spec

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from envs import EnvConfig
from envs import robosuite as tasks
from envs.demos import Disturbed
from envs.errors import EnvError
from envs.robosuite import experts

needs_robosuite = pytest.mark.skipif(find_spec("robosuite") is None, reason="robosuite is not installed; run `make sims`")
CONFIG = EnvConfig("robosuite/Lift", obs="low_dim", reward="sparse")


def disturbed(name, simulator, noise):
    rng = np.random.default_rng(0)
    return Disturbed(tasks.expert(name, simulator, rng), rng, noise, "executed")


def play(simulator, expert, seed, steps=300):
    """Actions, whether the task was solved, and the largest force on the hand."""
    simulator.reset(seed)
    expert.reset()
    actions, force = [], 0.0
    for _ in range(steps):
        actions.append(expert.act(simulator.observe())[0])
        step = simulator.step(actions[-1])
        force = max(force, step.contact_force_n)
        if step.success:
            break
    return np.array(actions), step.success, force


def test_rotation_vectors_are_scipys():
    rng = np.random.default_rng(0)
    for vector in rng.normal(size=(50, 3)):
        vector *= rng.uniform(0, math.pi - 1e-3) / np.linalg.norm(vector)
        np.testing.assert_allclose(experts.rotation_vector(Rotation.from_rotvec(vector).as_matrix()), vector, atol=1e-6)
    np.testing.assert_array_equal(experts.rotation_vector(np.eye(3)), np.zeros(3))
    half_turn = experts.rotation_vector(np.diag([-1.0, -1.0, 1.0]))
    np.testing.assert_allclose(half_turn, [0, 0, math.pi])


def test_a_hand_that_points_down_is_a_rotation():
    for yaw in np.linspace(-3, 3, 7):
        rotation = experts.pointing_down(yaw)
        np.testing.assert_allclose(rotation.T @ rotation, np.eye(3), atol=1e-12)
        assert np.linalg.det(rotation) == pytest.approx(1)
        np.testing.assert_allclose(rotation[:, 2], [0, 0, -1])
        assert math.atan2(rotation[1, 0], rotation[0, 0]) == pytest.approx(yaw)


def test_the_nearest_yaw_is_the_same_direction_and_nearest():
    for yaw, to in itertools.product(np.linspace(-7, 7, 15), np.linspace(-3, 3, 7)):
        found = experts.nearest_yaw(yaw, to, math.pi / 2)
        assert math.sin(4 * found) == pytest.approx(math.sin(4 * yaw), abs=1e-9)
        assert abs(found - to) <= math.pi / 4 + 1e-9


def test_the_nut_is_turned_by_a_way_that_fits_and_is_shortest():
    for hand, handle in itertools.product(np.linspace(-0.3, 0.3, 3), np.linspace(-3.1, 3.1, 25)):
        grasp, placed = experts._square_yaws(hand + math.pi / 2, handle)
        assert abs(math.cos(grasp - handle)) < 1e-9  # the fingers open across the handle
        final = handle + placed - grasp
        assert abs(math.sin(2 * final)) < 1e-9 and math.cos(final) < 0.5  # square to the peg, not out of reach
        assert abs(placed - hand - math.pi / 2) < math.pi + 1e-9
        assert abs(placed - grasp) <= math.pi + 1e-9


@needs_robosuite
def test_lift_is_solved_and_noise_is_in_the_executed_actions():
    with closing(tasks.load("Lift", CONFIG)) as simulator:
        clean, solved, _ = play(simulator, disturbed("Lift", simulator, 0.0), 0)
        noisy, solved_too, _ = play(simulator, disturbed("Lift", simulator, 0.1), 0)
        again, _, _ = play(simulator, disturbed("Lift", simulator, 0.1), 0)
    assert solved and solved_too and len(clean) < 60
    assert np.abs(noisy).max() <= 1 and set(np.unique(noisy[:, 6])) == {-1.0, 1.0}
    np.testing.assert_array_equal(noisy, again)
    assert 0.02 < np.std(noisy[:20, 3:6] - clean[:20, 3:6]) < 0.3


@needs_robosuite
def test_episodes_of_an_expert_differ():
    with closing(tasks.load("Lift", CONFIG)) as simulator:
        expert = disturbed("Lift", simulator, 0.0)
        first, _, _ = play(simulator, expert, 0, steps=12)
        second, _, _ = play(simulator, expert, 0, steps=12)
    assert np.abs(first - second).max() > 0.01


@needs_robosuite
def test_below_the_height_limit_the_fingers_press():
    limit = tasks.TASKS["LiftPlate"].height_limit_m
    forces = {}
    with closing(tasks.load("LiftPlate", CONFIG)) as simulator:
        simulator.reset(0)
        assert simulator.env.sim.model.geom_size[simulator.env.sim.model.geom_name2id("cube_g0")][2] == 0.008
        for height in (limit, limit - 0.01):
            expert = disturbed("LiftPlate", simulator, 0.0)
            expert.expert._write = lambda arm, rng, height=height: experts._lift(arm, rng, lambda: height)
            _, solved, forces[height] = play(simulator, expert, 1)
            assert solved
    above, below = forces.values()
    assert above < 15 < 50 < below


@needs_robosuite
def test_a_task_without_a_script_has_no_expert():
    with pytest.raises(EnvError, match="no scripted expert; there are experts of Lift, LiftPlate"):
        tasks.expert("Stack", None, np.random.default_rng(0))


@needs_robosuite
@pytest.mark.slow
@pytest.mark.parametrize("name", experts.SCRIPTS)
def test_experts_solve_nine_of_ten(name):
    with closing(tasks.load(name, CONFIG)) as simulator:
        expert = disturbed(name, simulator, 0.1)
        assert sum(play(simulator, expert, seed)[1] for seed in range(10)) >= 9


def test_every_task_with_a_script_gives_an_expert_and_no_other():
    assert set(experts.SCRIPTS) == {name for name, info in tasks.TASKS.items() if "expert" in info.gives}
