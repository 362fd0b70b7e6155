import numpy as np
import pytest

from difftop.types import EnvSpec
from envs.base import ControlStep, SimulatedEnv
from envs.errors import EnvError


class Counter:
    """State and picture show the control steps taken; each step's reward is its number. Misbehaves on request."""

    control_dt_s = 0.5

    def __init__(self, limit=10, ends_at=None, reward_at=None, state_at=None, raises_at=None):
        self.limit, self.ends_at, self.reward_at, self.state_at, self.raises_at = limit, ends_at, reward_at, state_at, raises_at
        self.count, self.actions, self.closed = 0, [], 0

    def reset(self, seed):
        self.count, self.seed = 0, seed

    def step(self, action):
        self.count += 1
        self.actions.append(action)
        if self.count == self.raises_at:
            raise ValueError("joint 3 broke")
        reward = float("nan") if self.count == self.reward_at else self.count
        return ControlStep(reward, self.count == self.ends_at, self.count == self.limit)

    def state(self):
        return np.array([self.count, 1e300 if self.count == self.state_at else 0.0])

    def render(self, height, width):
        return np.full((height, width, 3), self.count, np.uint8)

    def close(self):
        self.closed += 1


def make(simulator, repeat=1, obs="state", stack=1):
    shape = (2,) if obs == "state" else (3 * stack, 4, 4)
    return SimulatedEnv(simulator, EnvSpec("fake/count", obs, shape, 2, repeat, 10, stack), video_size=8)


def test_reward_is_the_sum_over_the_repeat_and_the_last_repeat_stops_at_the_limit():
    env = make(Counter(limit=10), repeat=4)
    env.reset(seed=0)
    outcomes = [env.step(np.zeros(2))[1:4] for _ in range(3)]
    assert outcomes == [(1 + 2 + 3 + 4, False, False), (5 + 6 + 7 + 8, False, False), (9 + 10, False, True)]


def test_termination_stops_the_repeat_and_is_not_a_truncation():
    env = make(Counter(ends_at=3), repeat=4)
    env.reset(seed=0)
    obs, reward, terminated, truncated, _ = env.step(np.zeros(2))
    assert (obs[0], reward, terminated, truncated) == (3, 1 + 2 + 3, True, False)


def test_pixels_stack_frames_newest_last_and_start_with_copies_of_the_first():
    env = make(Counter(), obs="pixels", stack=3)
    obs, _ = env.reset(seed=0)
    seen = [obs[:, 0, 0].tolist()]
    for _ in range(4):
        obs = env.step(np.zeros(2))[0]
        seen.append(obs[:, 0, 0].tolist())
        obs[:] = 99  # what the caller does with an observation changes none that follow
    assert seen == [
        [0] * 9,
        [0] * 6 + [1] * 3,
        [0] * 3 + [1] * 3 + [2] * 3,
        [1] * 3 + [2] * 3 + [3] * 3,
        [2] * 3 + [3] * 3 + [4] * 3,
    ]
    assert obs.dtype == np.uint8
    assert env.reset(seed=0)[0].max() == 0


def test_video_frames_have_their_own_size():
    env = make(Counter(), obs="pixels", stack=3)
    env.reset(seed=0)
    assert env.render().shape == (8, 8, 3)
    assert env.metadata["render_fps"] == 2


def test_episode_seed_depends_on_the_given_seed_only():
    first, second = make(Counter()), make(Counter())
    first.reset(seed=5)
    first.reset()
    first.reset(seed=7)
    second.reset(seed=7)
    assert first._simulator.seed == second._simulator.seed
    first.reset()
    assert first._simulator.seed != second._simulator.seed


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
        ({"state_at": 3}, "the observation is inf at index 1, 1 of 2 entries"),
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
    spec = EnvSpec("fake/count", "state", (2,), 2, 1, 10)
    assert SimulatedEnv(Counter(), spec, render_mode=None).render() is None
    with pytest.raises(EnvError, match="render_mode='human'"):
        SimulatedEnv(Counter(), spec, render_mode="human")
