"""The one environment, over simulators that misbehave on request."""

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from difftop.types import EnvSpec, ObsSpec
from envs import EnvConfig
from envs.base import SimulatedEnv
from envs.errors import EnvError
from envs.suites import Outcome, TaskInfo


class Counter:
    """Vectors and picture show the control steps taken; each step's reward is its number."""

    action_dim, control_dt_s = 2, 0.5

    def __init__(self, limit=10, ends_at=None, reward_at=None, state_at=None, raises_at=None, pixels=False):
        self.ends_at, self.reward_at, self.state_at, self.raises_at = ends_at, reward_at, state_at, raises_at
        self.episode_steps = limit
        vectors = {"count": ObsSpec("vector", (1,)), "fault": ObsSpec("vector", (1,))}
        self.obs = {"pixels": ObsSpec("image", (3, 4, 4))} if pixels else vectors
        self.count, self.actions, self.closed, self.looks = 0, [], 0, 0

    def reset(self, seed):
        self.count, self.seed = 0, seed

    def step(self, action):
        self.count += 1
        self.actions.append(action)
        if self.count == self.raises_at:
            raise ValueError("joint 3 broke")
        return Outcome(float("nan") if self.count == self.reward_at else self.count, terminated=self.count == self.ends_at)

    def observe(self):
        self.looks += 1
        if "pixels" in self.obs:
            return {"pixels": self.render(4, 4).transpose(2, 0, 1)}
        return {"count": np.array([self.count]), "fault": np.array([1e300 if self.count == self.state_at else 0.0])}

    def render(self, height, width):
        return np.full((height, width, 3), self.count, np.uint8)

    def close(self):
        self.closed += 1


class Scripted:
    """Observations and outcomes from lists."""

    action_dim, control_dt_s, episode_steps = 1, 0.1, 3

    def __init__(self, observations, outcomes=()):
        self.obs = {"x": ObsSpec("vector", (2,)), "eye_image": ObsSpec("image", (3, 4, 4))}
        self._observations, self._outcomes = iter(observations), iter(outcomes)

    def reset(self, seed):
        pass

    def step(self, action):
        return next(self._outcomes)

    def observe(self):
        return next(self._observations)

    def render(self, height, width):
        return np.zeros((height, width, 3), np.uint8)

    def close(self):
        pass


def make(simulator, repeat=1, **options):
    obs = "pixels" if "pixels" in simulator.obs else "state"
    config = EnvConfig("fake/count", **({"obs": obs, "video_size": 8} | options))
    return SimulatedEnv(simulator, config, TaskInfo(simulator.episode_steps, repeat))


def scripted(observations, outcomes=(), **options):
    return SimulatedEnv(Scripted(observations, outcomes), EnvConfig("test/scripted", obs="low_dim", **options))


def seen(x=(0.0, 1.0), image=None):
    return {"x": np.array(x), "eye_image": np.full((3, 4, 4), 7, np.uint8) if image is None else image}


def test_reward_is_the_sum_over_the_repeat_and_the_last_repeat_stops_at_the_limit():
    simulator = Counter(limit=10)
    env = make(simulator, repeat=4)
    env.reset(seed=0)
    outcomes = [env.step(np.zeros(2))[1:4] for _ in range(3)]
    assert outcomes == [(1 + 2 + 3 + 4, False, False), (5 + 6 + 7 + 8, False, False), (9 + 10, False, True)]
    assert simulator.looks == 4  # once a step, and at the reset


def test_the_repeat_of_the_configuration_goes_before_the_task_s_and_episode_steps_are_actions():
    env = make(Counter(limit=10), repeat=4, action_repeat=3)
    spec = env.difftop_spec
    assert (spec.action_repeat, spec.episode_steps, spec.control_dt_s) == (3, 4, 1.5)
    env = make(Counter(limit=10), repeat=4, episode_steps=5)  # longer than the task's own limit
    assert env.difftop_spec.episode_steps == 5
    env.reset(seed=0)
    outcomes = [env.step(np.zeros(2))[1:4] for _ in range(5)]
    assert [truncated for *_, truncated in outcomes] == [False] * 4 + [True]
    assert sum(reward for reward, *_ in outcomes) == sum(range(21))


def test_termination_stops_the_repeat_and_is_not_a_truncation():
    env = make(Counter(ends_at=3), repeat=4)
    env.reset(seed=0)
    obs, reward, terminated, truncated, _ = env.step(np.zeros(2))
    assert (obs["state"][0], reward, terminated, truncated) == (3, 1 + 2 + 3, True, False)
    env = make(Counter(limit=3, ends_at=3))
    env.reset(seed=0)
    assert [env.step(np.zeros(2))[2:4] for _ in range(3)][-1] == (True, False)  # at the time limit too


def test_state_joins_the_vectors_in_the_simulator_s_order():
    env = make(Counter(state_at=0))
    assert env.difftop_spec == EnvSpec("fake/count", {"state": ObsSpec("vector", (2,))}, 2, 10, 0.5, gives=frozenset({"reward"}))
    env = make(Counter(), obs="low_dim")
    assert env.difftop_spec.shapes == {"count": (1,), "fault": (1,)}
    env = make(Counter())
    env.reset(seed=0)
    obs = env.step(np.zeros(2))[0]
    assert list(obs) == ["state"] and obs["state"].tolist() == [1, 0] and obs["state"].dtype == np.float32
    assert env.observation_space.contains(obs)


def test_pixels_stack_frames_newest_last_and_start_with_copies_of_the_first():
    env = make(Counter(pixels=True), frame_stack=3)
    assert env.difftop_spec.shapes == {"pixels": (9, 4, 4)} and env.difftop_spec.frame_stack == 3
    obs = env.reset(seed=0)[0]["pixels"]
    rows = [obs[:, 0, 0].tolist()]
    for _ in range(4):
        obs = env.step(np.zeros(2))[0]["pixels"]
        rows.append(obs[:, 0, 0].tolist())
        obs[:] = 99  # what the caller does with an observation changes none that follow
    assert rows == [
        [0] * 9,
        [0] * 6 + [1] * 3,
        [0] * 3 + [1] * 3 + [2] * 3,
        [1] * 3 + [2] * 3 + [3] * 3,
        [2] * 3 + [3] * 3 + [4] * 3,
    ]
    assert obs.dtype == np.uint8
    assert env.reset(seed=0)[0]["pixels"].max() == 0


def test_video_frames_have_their_own_size():
    env = make(Counter(pixels=True))
    env.reset(seed=0)
    assert env.render().shape == (8, 8, 3)
    assert env.metadata["render_fps"] == 2
    assert make(Counter(), repeat=4).metadata["render_fps"] == 0.5


def test_the_simulator_gets_the_seed_and_unseeded_episodes_follow_from_the_last_one():
    first, second = make(Counter()), make(Counter())
    first.reset(seed=5)
    assert first.simulator.seed == 5
    first.reset()
    first.reset(seed=7)
    second.reset(seed=7)
    assert first.simulator.seed == second.simulator.seed == 7
    drawn = [(env.reset(), env.simulator.seed)[1] for env in (first, second)]
    assert drawn[0] == drawn[1] != 7


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ([0.0, np.nan], r"nan.* not inside \[-1, 1\]"),
        ([np.inf, 0.0], r"inf.* not inside \[-1, 1\]"),
        ([0.0, 1.00001], r"1\.00001.* not inside \[-1, 1\]"),
        ([0.0], r"shape \(1,\); it must be \(2,\)"),
    ],
)
def test_bad_action_is_an_error_before_the_simulator_sees_it(action, message):
    simulator = Counter()
    env = make(simulator)
    env.reset(seed=4)
    with pytest.raises(EnvError, match=r"fake/count, step 1 .*seed 4.*" + message):
        env.step(np.array(action))
    assert simulator.actions == []
    env.step(np.zeros(2))  # the episode goes on


def test_action_within_rounding_of_the_box_is_clipped():
    simulator = Counter()
    env = make(simulator)
    env.reset(seed=0)
    env.step(np.array([1 + 5e-7, -1 - 5e-7]))
    assert simulator.actions[0].tolist() == [1.0, -1.0]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"reward_at": 3}, "the reward is nan"),
        ({"state_at": 3}, "observation state is inf at index 1, 1 of 2 entries"),
        ({"raises_at": 3}, "the simulator raised ValueError: joint 3 broke"),
    ],
)
def test_fault_in_mid_episode_names_environment_step_and_what(fault, message):
    env = make(Counter(**fault))
    env.reset(seed=4)
    env.step(np.zeros(2))
    env.step(np.zeros(2))
    with pytest.raises(EnvError, match=rf"^fake/count, step 3 in the episode of seed 4: {message}") as caught:
        env.step(np.zeros(2))
    assert isinstance(caught.value.__cause__, ValueError) == ("raises_at" in fault)
    with pytest.raises(EnvError, match="call reset"):
        env.step(np.zeros(2))
    env.reset(seed=4)
    env.step(np.zeros(2))


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        (seen(x=(np.nan, 0)), "step 1 in the episode of seed 4: observation x is nan at index 0"),
        (seen(x=(0, 0, 0)), r"observation x has shape \(3,\); the task's is \(2,\)"),
        ({"x": np.zeros(2)}, "the simulator raised KeyError: 'eye_image'"),
        (seen(image=np.zeros((3, 4, 4))), "observation eye_image is an image of float64; it must be uint8"),
    ],
)
def test_an_observation_that_breaks_the_promise_is_named_and_ends_the_episode(observation, message):
    env = scripted([seen(), observation], [Outcome(0.0)])
    env.reset(seed=4)
    with pytest.raises(EnvError, match=message):
        env.step(np.zeros(1))
    with pytest.raises(EnvError, match="call reset"):
        env.step(np.zeros(1))


def test_observations_by_key_become_what_the_spec_promises():
    env = scripted([seen(), seen()], [Outcome(1.0, success=True, contact_force_n=2.5)])
    obs, _ = env.reset(seed=0)
    assert obs["x"].dtype == np.float32 and obs["eye_image"].dtype == np.uint8 and (obs["eye_image"] == 7).all()
    _, reward, terminated, truncated, info = env.step(np.zeros(1))
    assert (reward, terminated, truncated, info) == (1.0, False, False, {"success": 1.0, "contact_force_n": 2.5})


def test_of_a_repeat_success_is_that_of_any_step_and_force_the_largest():
    nan = float("nan")
    outcomes = [
        Outcome(1, success=False, contact_force_n=2),
        Outcome(1, success=True, contact_force_n=nan),
        Outcome(1, success=False),
    ]
    env = scripted([seen(), seen()], outcomes, action_repeat=3)
    env.reset(seed=0)
    assert env.step(np.zeros(1))[1:] == (3.0, False, True, {"success": 1.0, "contact_force_n": 2.0})
    env = scripted([seen(), seen()], [Outcome(1)])
    env.reset(seed=0)
    assert env.step(np.zeros(1))[4] == {}  # nothing is said where nothing is known


def test_success_ends_nothing_the_time_limit_truncates_and_a_simulator_may():
    env = scripted([seen()] * 4, [Outcome(0.0, success=True), Outcome(0.0), Outcome(0.0)])
    env.reset(seed=0)
    assert [env.step(np.zeros(1))[2:4] for _ in range(3)] == [(False, False), (False, False), (False, True)]
    env = scripted([seen()] * 2, [Outcome(0.0, truncated=True)])
    env.reset(seed=0)
    assert env.step(np.zeros(1))[2:4] == (False, True)


def test_step_needs_a_running_episode():
    env = make(Counter(limit=1))
    with pytest.raises(EnvError, match="call reset"):
        env.step(np.zeros(2))
    env.reset(seed=0)
    assert env.step(np.zeros(2))[3]
    with pytest.raises(EnvError, match="call reset"):
        env.step(np.zeros(2))


def test_close_frees_once():
    simulator = Counter()
    env = make(simulator)
    env.close()
    env.close()
    assert simulator.closed == 1
    with pytest.raises(EnvError, match="closed"):
        env.reset()


def test_render_mode():
    config = EnvConfig("fake/count")
    assert SimulatedEnv(Counter(), config, render_mode=None).render() is None
    with pytest.raises(EnvError, match="render_mode='human'"):
        SimulatedEnv(Counter(), config, render_mode="human")


def test_gymnasium_s_checker_passes_on_points_too():
    class Cloud(Counter):
        def __init__(self):
            super().__init__()
            self.obs = {"pointcloud": ObsSpec("points", (5, 3))}

        def observe(self):
            return {"pointcloud": np.full((5, 3), self.count)}

    check_env(SimulatedEnv(Cloud(), EnvConfig("fake/cloud", obs="pointcloud")), skip_render_check=True, skip_close_check=True)
