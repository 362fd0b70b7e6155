"""Gymnasium's own checker on every id that we register."""

import warnings
from importlib.util import find_spec

import gymnasium
import pytest
from gymnasium.utils.env_checker import check_env

import envs
from envs.opengl import choose_backend
from envs.registry import gymnasium_spec
from envs.suites import SUITES
from tests.envs.maniskill_suite import missing

QUICK = {  # beside all of gym and toy; the others are marked slow
    "dmc/acrobot-swingup",
    "dmc/cup-catch",
    "dmc/cartpole-swingup",
    "dmc/humanoid-run",
    "dmc/lqr-lqr-2-1",
    "dmc/quadruped-walk",
    "metaworld/reach",
    "metaworld/door-open",
}
DRAWN = {"dmc/cartpole-swingup", "toy/point-mass", "toy/reach"}  # and made again, which takes the time


def marked(names):
    for name in names:
        suite = name.partition("/")[0]
        yield pytest.param(name, marks=() if suite in ("gym", "toy") or name in QUICK else pytest.mark.slow)


@pytest.fixture(scope="module")
def unavailable():
    """Why a suite can't run here, empty where it can; asked once for each."""
    found = {}

    def ask(suite):
        if suite not in found:
            package = SUITES[suite].package
            lacks = f"{package} is not installed; run `make sims`" if package and find_spec(package) is None else ""
            found[suite] = lacks or (missing() if suite == "maniskill" else "")
        return found[suite]

    return ask


@pytest.mark.parametrize("name", marked(envs.list_envs()))
def test_the_checker_passes(name, unavailable):
    suite = name.partition("/")[0]
    if unavailable(suite):
        pytest.skip(unavailable(suite))
    drawn = name in DRAWN and (suite == "toy" or choose_backend() != "disabled")
    try:
        env = gymnasium.make(gymnasium_spec(name).id).unwrapped
    except envs.EnvError as error:
        if "pip install" in str(error) or "download_asset" in str(error) or "apt-get" in str(error):
            pytest.skip(str(error))  # packages of Gymnasium's extras, ManiSkill's assets, OpenGL for quadruped-escape
        raise
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env, skip_render_check=not drawn, skip_close_check=not drawn)
    env.close()


@pytest.mark.parametrize("name", ["toy/point-mass", "toy/reach", "dmc/walker-walk"])
def test_the_checker_passes_on_pixels(name):
    if name.startswith("dmc/") and choose_backend() == "disabled":
        pytest.skip("no OpenGL: apt-get install -y libegl1 libgl1")
    check_env(gymnasium.make(gymnasium_spec(name).id, obs="pixels", render_quality="fast").unwrapped)
