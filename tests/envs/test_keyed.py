"""Environments with observations by key, on the toy task and on a simulator that misbehaves."""

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from difftop.types import TaskSpec
from envs.demos import Disturbed
from envs.errors import EnvError
from envs.keyed import KeyedEnv, TaskStep
from envs.tasks import TaskConfig, make_expert, make_simulator, make_task, task_spec

REACH = TaskConfig(name="toy/reach")


class Scripted:
    """Observations and outcomes from lists."""

    def __init__(self, observations, outcomes=None):
        self.spec = TaskSpec("test/scripted", {"x": (2,), "eye_image": (3, 4, 4)}, 1, 3, 0.1)
        self._observations, self._outcomes = iter(observations), iter(outcomes or [])

    def reset(self, seed):
        return next(self._observations)

    def step(self, action):
        return next(self._observations), next(self._outcomes)

    def render(self, height, width):
        return np.zeros((height, width, 3), np.uint8)

    def close(self):
        pass


def seen(x=(0.0, 1.0), image=None):
    return {"x": np.array(x), "eye_image": np.full((3, 4, 4), 7) if image is None else image}


def test_gymnasium_s_checker_passes():
    check_env(make_task(REACH), skip_render_check=True)


def test_an_episode_is_a_function_of_its_seed():
    first, second = make_task(REACH), make_task(REACH)
    first.reset(seed=9)
    first.step(np.ones(2))
    actions = np.random.default_rng(0).uniform(-1, 1, (40, 2))
    for env in (first, second):
        env.reset(seed=5)
    for t, action in enumerate(actions):
        a, b = first.step(action), second.step(action)
        assert all((a[0][key] == b[0][key]).all() for key in a[0])
        assert a[1:] == b[1:] and a[3] == (t == 39) and not a[2]


def test_dynamics_and_success_are_those_of_the_docstring():
    env = make_task(REACH)
    obs, _ = env.reset(seed=3)
    action = np.array([0.5, -1.0])
    after, reward, _, _, info = env.step(action)
    moved = obs["hand_pos"] + 0.1 * action
    assert after["hand_pos"] == pytest.approx(moved, abs=1e-6) and (after["target_pos"] == obs["target_pos"]).all()
    distance = np.linalg.norm(moved - obs["target_pos"])
    assert reward == pytest.approx(-distance, abs=1e-6) and info["success"] == float(distance < 0.1)


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_the_expert_solves_it_and_a_still_hand_does_not(noise):
    env = make_task(REACH)
    rng = np.random.default_rng(0)
    expert = Disturbed(make_expert(REACH, env._simulator, rng), rng, noise, "executed")
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


def test_observations_become_what_the_spec_promises():
    env = KeyedEnv(Scripted([seen(), seen()], [TaskStep(1.0, True, contact_force_n=2.5)]))
    obs, _ = env.reset(seed=0)
    assert obs["x"].dtype == np.float32 and obs["eye_image"].dtype == np.uint8 and (obs["eye_image"] == 7).all()
    _, reward, terminated, truncated, info = env.step(np.zeros(1))
    assert (reward, terminated, truncated, info) == (1.0, False, False, {"success": 1.0, "contact_force_n": 2.5})


@pytest.mark.parametrize(
    ("observations", "outcomes", "action", "message"),
    [
        (
            [seen(), seen(x=(np.nan, 0))],
            [TaskStep(0.0, False)],
            [0.0],
            "step 1 in the episode of seed 4: observation x is not finite",
        ),
        ([seen(), seen(x=(0, 0, 0))], [TaskStep(0.0, False)], [0.0], r"x has shape \(3,\); the task's is \(2,\)"),
        ([seen(), {"x": np.zeros(2)}], [TaskStep(0.0, False)], [0.0], "the simulator raised KeyError: 'eye_image'"),
        ([seen(), seen()], [TaskStep(np.inf, False)], [0.0], "the reward is inf"),
        ([seen(), seen()], [TaskStep(0.0, False)], [1.5], r"the action \[1.5\] is not in \[-1, 1\]\^1"),
        ([seen(), seen()], [TaskStep(0.0, False)], [np.nan], "the action .*clip it"),
        ([seen(), seen()], [TaskStep(0.0, False)], [0.0, 0.0], "the action"),
    ],
)
def test_what_goes_wrong_is_named_and_ends_the_episode(observations, outcomes, action, message):
    env = KeyedEnv(Scripted(observations, outcomes))
    env.reset(seed=4)
    with pytest.raises(EnvError, match=message):
        env.step(np.array(action))
    with pytest.raises(EnvError, match="call reset"):
        env.step(np.zeros(1))


def test_time_limit_truncates_and_a_broken_simulator_terminates():
    env = KeyedEnv(Scripted([seen()] * 4, [TaskStep(0.0, True), TaskStep(0.0, False), TaskStep(0.0, False)]))
    env.reset(seed=0)
    assert [env.step(np.zeros(1))[2:4] for _ in range(3)] == [(False, False), (False, False), (False, True)]
    env = KeyedEnv(Scripted([seen()] * 2, [TaskStep(0.0, False, over=True)]))
    env.reset(seed=0)
    assert env.step(np.zeros(1))[2:4] == (True, False)


def test_closed_environment_says_so():
    env = make_task(REACH)
    env.close()
    env.close()
    with pytest.raises(EnvError, match="closed"):
        env.reset(seed=0)


def test_spec_without_an_environment_and_its_options():
    assert task_spec(REACH).episode_steps == 40
    assert task_spec(TaskConfig(name="toy/reach", episode_steps=7)).episode_steps == 7
    with pytest.raises(EnvError, match=r"env.obs=image is not offered"):
        make_simulator(TaskConfig(name="toy/reach", obs="image"))
