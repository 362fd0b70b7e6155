"""Gymnasium's own environments, and ones registered here that misbehave."""

import sys
from contextlib import closing

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.registration import register, registry

import envs
from difftop.options import ConfigError
from envs import EnvConfig, EnvError, RenderError
from envs.gym import TASKS, resized
from envs.opengl import choose_backend

needs_opengl = pytest.mark.skipif(choose_backend() == "disabled", reason="no OpenGL: apt-get install -y libegl1 libgl1")


def make(name, **options):
    return envs.make_env(EnvConfig(f"gym/{name}", **options))


def made_or_skipped(name, **options):
    """Skips where packages of one of Gymnasium's extras are missing."""
    try:
        return make(name, **options)
    except EnvError as error:
        if "pip install 'gymnasium[" not in str(error):
            raise
        pytest.skip(str(error))


class Odd(gymnasium.Env):
    """Says of itself what it was made with."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012

    def __init__(self, render_mode=None, action=None, observation=None, ends_at=None, info=None):
        self.render_mode, self._ends_at, self._info = render_mode, ends_at, info or {}
        self.action_space = action or spaces.Box(-1, 1, (1,))
        self.observation_space = observation or spaces.Box(-1, 1, (2,))
        self.actions = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.actions = []
        return self.observation_space.sample(), {}

    def step(self, action):
        self.actions.append(action)
        return self.observation_space.sample(), 1.0, len(self.actions) == self._ends_at, False, self._info

    def render(self):
        image = np.zeros((40, 60, 3), np.uint8)
        image[:20] = 200  # bright above, dark below
        return image


@pytest.fixture
def odd():
    """Registers an environment that is made with the given arguments; its name."""
    added = []

    def add(max_episode_steps=None, entry_point=Odd, **kwargs):
        name = f"OddOne{len(added)}-v0"
        register(id=name, entry_point=entry_point, kwargs=kwargs, max_episode_steps=max_episode_steps)
        added.append(name)
        return name

    yield add
    for name in added:
        del registry[name]


@pytest.mark.parametrize(("name", "size", "actions", "dt"), [("HalfCheetah-v5", 17, 6, 0.05), ("Pendulum-v1", 3, 1, 0.05)])
def test_rewards_and_observations_are_gymnasium_s(name, size, actions, dt):
    env, theirs = make(name), gymnasium.make(name)
    spec = env.difftop_spec
    assert (spec.shapes, spec.action_dim, spec.control_dt_s) == ({"state": (size,)}, actions, pytest.approx(dt))
    assert spec.episode_steps == theirs.spec.max_episode_steps == TASKS[name].episode_steps
    obs, first = env.reset(seed=4)[0], theirs.reset(seed=4)[0]
    assert obs["state"] == pytest.approx(first.astype(np.float32))
    largest = theirs.action_space.high
    for action in np.random.default_rng(0).uniform(-1, 1, (20, actions)).astype(np.float32):
        obs, reward, terminated, truncated, info = env.step(action)
        expected = theirs.step((action * largest).astype(np.float32))
        assert obs["state"] == pytest.approx(expected[0], rel=1e-5, abs=1e-6) and reward == pytest.approx(expected[1], rel=1e-6)
        assert (terminated, truncated) == expected[2:4] and info == {}


def test_bipedal_walker_terminates_when_it_falls():
    with closing(made_or_skipped("BipedalWalker-v3")) as env:
        assert env.difftop_spec.shapes == {"state": (24,)} and env.difftop_spec.episode_steps == 1600
        env.reset(seed=0)
        ends = []
        while not (ends and (ends[-1][0] or ends[-1][1])):
            ends.append(env.step(np.ones(4))[2:4])
        assert ends[-1] == (True, False) and len(ends) < 1600


@pytest.mark.parametrize("name", ["InvertedPendulum-v5", "Hopper-v5"])
def test_terminations_are_terminations_and_the_time_limit_truncates(name):
    env = make(name)
    env.reset(seed=0)
    over = False
    while not over:
        _, _, terminated, truncated, _ = env.step(np.ones(env.action_space.shape))
        over = terminated or truncated
    assert (terminated, truncated) == (True, False)
    env = make("Pendulum-v1", episode_steps=3)
    env.reset(seed=0)
    assert [env.step(np.zeros(1))[2:4] for _ in range(3)] == [(False, False), (False, False), (False, True)]


def test_an_episode_may_be_longer_than_gymnasium_s_time_limit():
    env = make("Pendulum-v1", episode_steps=205)
    env.reset(seed=0)
    assert [env.step(np.zeros(1))[3] for _ in range(205)] == [False] * 204 + [True]


def test_no_time_limit_is_one_of_1000_steps_and_options_overrule(odd):
    name = odd()
    assert envs.env_spec(EnvConfig(f"gym/{name}")).episode_steps == 1000
    assert envs.env_spec(EnvConfig(f"gym/{name}", action_repeat=3)).episode_steps == 334
    assert envs.env_spec(EnvConfig(f"gym/{name}", episode_steps=7)).episode_steps == 7
    assert envs.env_spec(EnvConfig(f"gym/{name}")).control_dt_s == 1 / 20  # of render_fps


def test_actions_are_rescaled_to_uneven_limits_and_shapes(odd):
    box = spaces.Box(np.array([[-2, 0.0]], np.float32), np.array([[4, 0.5]], np.float32))
    env = make(odd(action=box))
    assert env.difftop_spec.action_dim == 2
    env.reset(seed=0)
    for action in ([-1, -1], [1, 1], [0, 0.5]):
        env.step(np.array(action, np.float32))
    played = env.simulator.env.unwrapped.actions
    assert np.array(played).reshape(3, 2).tolist() == [[-2, 0], [4, 0.5], [1, 0.375]]
    assert all(action.shape == (1, 2) and action.dtype == np.float32 for action in played)


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (spaces.Discrete(2), r"its actions are Discrete\(2\); only a Box of real numbers is offered"),
        (spaces.MultiBinary(3), "only a Box of real numbers"),
        (spaces.Box(0, 9, (1,), np.int64), "only a Box of real numbers"),
        (spaces.Box(np.array([-1, -np.inf], np.float32), np.array([1, 2], np.float32)), r"action 1 has limits \[-inf, 2\]"),
    ],
)
def test_other_actions_are_refused(odd, action, message):
    with pytest.raises(ConfigError, match=message) as caught:
        make(odd(action=action))
    assert "\n" not in str(caught.value)


def test_cart_pole_is_refused_in_one_sentence():
    with pytest.raises(
        ConfigError, match=r"^gym/CartPole-v1: its actions are Discrete\(2\); only a Box of real numbers is offered\.$"
    ):
        make("cartpole-v1")


def test_dictionaries_and_tuples_are_flattened_or_given_by_key(odd):
    space = spaces.Dict(
        {
            "arm": spaces.Dict({"angle": spaces.Box(-1, 1, (2, 2)), "mode": spaces.Discrete(3)}),
            "eye": spaces.Box(0, 255, (8, 8, 3), np.uint8),
            "feet": spaces.Tuple([spaces.Box(-1, 1, ()), spaces.MultiBinary(2)]),
        }
    )
    name = odd(observation=space)
    keyed, joined = make(name, obs="low_dim"), make(name)
    assert keyed.difftop_spec.shapes == {"arm/angle": (4,), "arm/mode": (3,), "feet/0": (1,), "feet/1": (2,)}
    obs, _ = keyed.reset(seed=1)
    assert obs["arm/mode"].sum() == 1 and joined.difftop_spec.shapes == {"state": (10,)}
    assert joined.reset(seed=1)[0]["state"].tolist() == np.concatenate(list(obs.values())).tolist()


def test_pixels_are_the_picture_resized_or_an_observation_that_is_an_image(odd):
    env = make(odd(), obs="pixels", image_size=16, frame_stack=2)
    obs = env.reset(seed=0)[0]["pixels"]
    assert obs.shape == (6, 16, 16) and (obs[:, :8] == 200).all() and (obs[:, 8:] == 0).all()
    assert env.render().shape == (256, 256, 3)
    image = odd(observation=spaces.Box(0, 255, (32, 32, 3), np.uint8))
    env = make(image, obs="pixels", image_size=32)
    assert (env.reset(seed=0)[0]["pixels"][-3:].transpose(1, 2, 0) == env.simulator._last).all()
    with pytest.raises(ConfigError, match=r"env\.obs=state is not offered, its observation is an image; take pixels"):
        make(image)


def test_an_environment_that_draws_nothing(odd):
    class Blind(Odd):
        metadata = {"render_modes": []}  # noqa: RUF012

    name = odd(entry_point=Blind)
    env = make(name)
    env.reset(seed=0)
    with pytest.raises(RenderError, match=f"gym/{name} draws no pictures"):
        env.render()
    with pytest.raises(ConfigError, match=f"gym/{name}: env.obs=pixels is not offered, it draws no pictures"):
        make(name, obs="pixels")
    assert env.difftop_spec.control_dt_s == 1 / 30


@pytest.mark.parametrize("key", ["success", "is_success"])
def test_success_is_told_where_the_environment_does(odd, key):
    env = make(odd(info={key: np.bool_(True)}), action_repeat=2)
    env.reset(seed=0)
    assert env.step(np.zeros(1))[4] == {"success": 1.0}


@pytest.mark.parametrize("extra", ["box2d", "classic-control"])
def test_what_is_missing_is_named_with_its_extra(odd, extra):
    class Missing(Odd):
        def __init__(self, **_):
            raise gymnasium.error.DependencyNotInstalled(f'run\n`pip install "gymnasium[{extra}]"`')

    name = odd(entry_point=Missing)
    with pytest.raises(
        EnvError, match=rf"^gym/{name} needs packages of Gymnasium's extra {extra}: run `pip install 'gymnasium\[{extra}\]'`\.$"
    ):
        make(name)


def test_an_environment_that_cannot_be_made_is_one_sentence(odd):
    class Broken(Odd):
        def __init__(self, **_):
            raise ValueError("two\nlines.")

    name = odd(entry_point=Broken)
    with pytest.raises(EnvError, match=rf"^gym/{name}: Gymnasium can't make it \(ValueError: two lines\)\.$"):
        make(name)


def test_modules_that_register_ids_are_imported(tmp_path, monkeypatch):
    (tmp_path / "of_somebody.py").write_text(
        "from gymnasium.envs.registration import register\n"
        "register(id='Elsewhere-v2', entry_point='gymnasium.envs.classic_control:PendulumEnv', max_episode_steps=9)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert envs.canonical_name("gym/of_somebody:elsewhere") == "gym/of_somebody:Elsewhere-v2"
    assert envs.env_spec(EnvConfig("gym/of_somebody:Elsewhere-v2")).episode_steps == 9
    del registry["Elsewhere-v2"], sys.modules["of_somebody"]
    with pytest.raises(ConfigError, match="module of_nobody can't be imported"):
        envs.canonical_name("gym/of_nobody:Elsewhere-v2")


def test_our_own_ids_are_no_gymnasium_environments():
    with pytest.raises(ConfigError, match="unknown environment"):
        envs.canonical_name("gym/difftop/toy-reach-v0")


@needs_opengl
def test_pixels_of_mujoco_s_environments():
    with closing(make("HalfCheetah-v5", obs="pixels", render_quality="fast")) as env:
        obs = env.reset(seed=0)[0]["pixels"]
        assert obs.shape == (9, 84, 84) and obs.std() > 10
        assert env.render().shape == (256, 256, 3)


def test_pixels_of_pendulum():
    try:
        with closing(make("Pendulum-v1", obs="pixels")) as env:
            obs = env.reset(seed=0)[0]["pixels"]
    except RenderError as error:
        assert str(error).endswith("extra classic-control: run `pip install 'gymnasium[classic-control]'`.")
        pytest.skip(str(error))
    assert obs.std() > 10


@pytest.mark.parametrize(("height", "width"), [(4, 6), (3, 5), (16, 24), (8, 12)])
def test_resizing_keeps_the_mean_and_is_by_area(height, width):
    image = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
    new = resized(image, height, width)
    assert new.shape == (height, width, 3) and new.mean() == pytest.approx(image.mean(), abs=0.5)
    fine = image.repeat(height, 0).repeat(width, 1).astype(float)  # each new pixel is then whole old parts
    exact = fine.reshape(height, 8, width, 12, 3).mean((1, 3))
    assert np.abs(new - exact).max() <= 0.51
