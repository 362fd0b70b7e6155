import subprocess
import sys
from pathlib import Path

import gymnasium
import pytest

import envs
from difftop.options import ConfigError
from difftop.types import EnvSpec
from envs import EnvConfig


@pytest.mark.parametrize(
    ("given", "canonical"),
    [
        ("dmc/walker-walk", "dmc/walker-walk"),
        ("dmc/ball_in_cup-catch", "dmc/cup-catch"),
        ("dmc/cup-catch", "dmc/cup-catch"),
        ("dmc/cartpole-swingup_sparse", "dmc/cartpole-swingup-sparse"),
        ("dmc/finger-turn-easy", "dmc/finger-turn-easy"),
        ("dmc/humanoid_CMU-run", "dmc/humanoid-cmu-run"),
        ("toy/point_mass", "toy/point-mass"),
    ],
)
def test_names(given, canonical):
    assert envs.canonical_name(given) == canonical
    assert canonical in envs.list_envs()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("dmc/walker-wolk", "Did you mean 'dmc/walker-walk'"),
        ("walker-walk", "Did you mean 'dmc/walker-walk'"),
        ("atari/pong", "unknown environment"),
        ("", "unknown environment"),
    ],
)
def test_unknown_name(given, message):
    with pytest.raises(ConfigError, match=rf"^env\.name={given}: .*{message}"):
        envs.make_env(EnvConfig(given))


def test_spec_of_states_and_pixels():
    assert envs.env_spec(EnvConfig("dmc/cartpole-swingup")) == EnvSpec("dmc/cartpole-swingup", "state", (5,), 1, 8, 125)
    pixels = EnvConfig("dmc/ball_in_cup-catch", obs="pixels", frame_stack=4, image_size=64, action_repeat=3)
    assert envs.env_spec(pixels) == EnvSpec("dmc/cup-catch", "pixels", (12, 64, 64), 2, 3, 334, 4)


def test_registering_twice_is_fine_and_options_pass_through_gymnasium():
    envs.register_all()
    envs.register_all()
    assert {f"{name}-v0" for name in envs.list_envs()} <= set(gymnasium.registry)
    env = gymnasium.make("toy/point-mass-v0", obs="pixels", action_repeat=5)
    assert env.unwrapped.difftop_spec == EnvSpec("toy/point-mass", "pixels", (9, 84, 84), 2, 5, 5, 3)
    with pytest.raises(ConfigError, match=r"env\.obs=smell.*state \| pixels"):
        gymnasium.make("toy/point-mass-v0", obs="smell")


def test_made_environment_can_be_made_again_from_its_gymnasium_spec():
    env = envs.make_env(EnvConfig("toy/point-mass", action_repeat=5))
    assert env.spec.make().unwrapped.difftop_spec == env.difftop_spec


def test_documentation_lists_every_environment_with_its_numbers():
    page = (Path(__file__).parents[2] / "docs" / "environments.md").read_text()
    for name in envs.list_envs():
        spec = envs.env_spec(EnvConfig(name))
        assert f"| `{name}` | {spec.action_repeat} | {spec.episode_steps} | {spec.obs_shape[0]} | {spec.action_dim} |" in page


def test_listing_and_specs_import_no_simulator_and_set_nothing():
    code = """if True:
        import os, sys
        before = dict(os.environ)
        import envs, gymnasium
        envs.register_all()
        [envs.env_spec(envs.EnvConfig(name)) for name in envs.list_envs()]
        envs.make_env(envs.EnvConfig("toy/point-mass"))
        assert not {"dm_control", "mujoco", "OpenGL", "matplotlib"} & set(sys.modules), sorted(sys.modules)
        assert dict(os.environ) == before
    """
    subprocess.run([sys.executable, "-c", code], check=True)
