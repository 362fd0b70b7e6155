"""Names, what is known of environments without their simulators, and suites of other packages."""

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import gymnasium
import numpy as np
import pytest

import envs
from difftop.options import ConfigError
from difftop.types import GIVES, EnvSpec, ObsSpec
from envs import EnvConfig, registry
from envs.suites import SUITES


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
        ("toy/REACH", "toy/reach"),
        ("metaworld/button_press_topdown", "metaworld/button-press-topdown"),
        ("MetaWorld/Button-Press-Topdown-v3", "metaworld/button-press-topdown"),
        ("robosuite/lift", "robosuite/Lift"),
        ("robosuite/twoarmlift", "robosuite/TwoArmLift"),
        ("robomimic/NutAssemblySquare", "robomimic/square"),
        ("robomimic/TwoArmTransport", "robomimic/transport"),
        ("robomimic/ToolHang", "robomimic/tool_hang"),
        ("robomimic/Tool-Hang", "robomimic/tool_hang"),
        ("maniskill/pickcube", "maniskill/PickCube-v1"),
        ("gym/pendulum-v1", "gym/Pendulum-v1"),
        ("gym/HalfCheetah", "gym/HalfCheetah-v5"),
    ],
)
def test_names(given, canonical):
    assert envs.canonical_name(given) == canonical
    assert canonical in envs.list_envs()


def test_all_names_are_listed_once_and_mean_themselves():
    names = envs.list_envs()
    assert len(set(names)) == len(names) and {name.partition("/")[0] for name in names} == set(SUITES) - {
        "data"
    }  # whose tasks are files
    assert sum(name.startswith("metaworld/") for name in names) == 50
    assert all(envs.canonical_name(name) == name for name in names)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("dmc/walker-wolk", "Did you mean 'dmc/walker-walk'"),
        ("walker-walk", "Did you mean 'dmc/walker-walk'"),
        ("metaworld/drawer-opn", "Did you mean 'metaworld/drawer-open'"),
        ("maniskill/pickcubes", "Did you mean 'maniskill/PickCube-v1'"),
        ("maniskill/PickCube-v2", "unknown environment"),
        ("gym/HalfCheetah-v99", "unknown environment"),
        ("atari/pong", "unknown environment"),
        ("", "unknown environment"),
    ],
)
def test_unknown_name(given, message):
    with pytest.raises(ConfigError, match=rf"^env={given}: .*{message}.*mode=envs") as caught:
        envs.make_env(EnvConfig(given))
    assert "\n" not in str(caught.value)


def test_what_each_gives():
    expert = {name for name in envs.list_envs() if "expert" in envs.gives(name)}
    assert {"toy/reach", "metaworld/reach", "robosuite/Lift", "maniskill/PickCube-v1"} <= expert
    assert not {"toy/point-mass", "dmc/walker-walk", "robosuite/Stack", "robomimic/can", "maniskill/PushT-v1"} & expert
    silent = {name for name in envs.list_envs() if "reward" not in envs.gives(name)}
    assert silent == {name for name in envs.list_envs() if name.startswith("robomimic/")}
    assert all(envs.gives(name) <= set(GIVES) for name in envs.list_envs())


def test_the_table_has_a_row_for_every_suite():
    rows = {row.suite: row for row in envs.table()}
    assert list(rows) == list(SUITES)
    assert rows["toy"].installed and rows["toy"].extra == "" and rows["toy"].obs == ("state", "pixels", "low_dim")
    assert rows["robosuite"].extra == "robosuite" and rows["robomimic"].tasks["can"] == {"success", "states"}
    assert "any other" in rows["gym"].others and rows["dmc"].others == ""


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"obs": "image"}, "toy/point-mass: env.obs=image is not offered; take state or pixels or low_dim"),
        ({"reward": "sparse"}, "toy/point-mass: env.reward=sparse is not offered"),
        ({"cameras": ["corner"]}, "env.obs=state has no images"),
        ({"obs": "pixels", "cameras": ["corner"]}, "env.cameras=.*corner.* is not offered"),
        ({"name": "metaworld/reach", "obs": "pixels", "cameras": ["corner", "corner2"]}, "env.obs=pixels has one camera"),
        ({"name": "toy/reach", "control": "joints"}, "env.control=joints is not offered"),
        ({"name": "metaworld/reach", "control": "joints"}, "env.control=joints is not offered"),
        ({"name": "pusht/push-t", "obs": "pointcloud"}, "pointcloud is not offered; take state or pixels or low_dim or image"),
    ],
)
def test_options_that_a_task_has_no_use_for_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        envs.make_env(EnvConfig(**({"name": "toy/point-mass"} | values)))


def test_the_spec_is_that_of_the_environment():
    assert envs.env_spec(EnvConfig("toy/reach")) == EnvSpec(
        "toy/reach", {"state": ObsSpec("vector", (4,))}, 2, 40, 0.1, gives=frozenset({"reward", "success", "expert"})
    )
    config = EnvConfig("toy/POINT_mass", obs="pixels", frame_stack=4, image_size=64, action_repeat=3)
    spec = envs.env_spec(config)
    assert spec == EnvSpec("toy/point-mass", {"pixels": ObsSpec("image", (12, 64, 64))}, 2, 9, 0.75, 3, 4, frozenset({"reward"}))
    assert spec == envs.make_env(config).difftop_spec and EnvSpec.from_plain(spec.plain()) == spec


def test_what_a_file_says_of_an_environment_that_has_no_more_to_say_than_its_name():
    said = envs.recorded_as(EnvConfig("gym/pendulum-v1", obs="low_dim"))
    assert said == {
        "env_name": "Pendulum-v1",
        "type": 2,
        "env_version": gymnasium.__version__,
        "env_kwargs": {"suite": "gym", "obs": "low_dim"},
        "render_quality": "published",
    }


def test_registering_twice_is_fine_and_options_pass_through_gymnasium():
    envs.register_all()
    ids = {registry.gymnasium_spec(name).id for name in envs.list_envs()}
    assert ids <= set(gymnasium.registry) and len(ids) == len(envs.list_envs())
    env = gymnasium.make("envs:difftop/toy-point-mass-v0", obs="pixels", action_repeat=5)
    assert env.unwrapped.difftop_spec == envs.env_spec(EnvConfig("toy/point-mass", obs="pixels", action_repeat=5))
    with pytest.raises(ConfigError, match=r"env\.obs=smell.*state \| pixels"):
        gymnasium.make("difftop/toy-point-mass-v0", obs="smell")


def test_importing_envs_is_enough_for_gymnasium_and_takes_no_torch_along():
    code = """if True:
        import sys, gymnasium
        env = gymnasium.make("envs:difftop/toy-reach-v0")
        assert env.unwrapped.difftop_spec.name == "toy/reach"
        assert not {"torch", "h5py"} & set(sys.modules)
        import envs
        assert envs.record.__module__ == "envs.demos"
    """
    subprocess.run([sys.executable, "-c", code], check=True)


def test_made_environment_can_be_made_again_from_its_gymnasium_spec():
    env = envs.make_env(EnvConfig("toy/point-mass", action_repeat=5))
    assert env.spec.make().unwrapped.difftop_spec == env.difftop_spec


def test_documentation_says_what_the_code_does():
    page = (Path(__file__).parents[2] / "docs" / "environments.md").read_text()
    assert page.count("\n") < 250
    for row in envs.table():
        assert f"`{row.suite}/" in page
    for task, info in SUITES["dmc"].loaded().TASKS.items():
        domain = next(d for d in page.splitlines() if f"`{task}`" in d and d.startswith("|"))
        assert f"| {info.action_repeat} |" in domain, task
    for suite in ("robosuite", "maniskill", "toy"):
        missing = [task for task, info in SUITES[suite].loaded().TASKS.items() if "expert" in info.gives and task not in page]
        assert not missing, missing


def test_listing_imports_no_simulator_and_sets_nothing():
    code = """if True:
        import os, sys
        before = dict(os.environ)
        import envs
        envs.table()
        [envs.gives(envs.canonical_name(name)) for name in envs.list_envs()]
        envs.make_env(envs.EnvConfig("toy/point-mass"))
        simulators = {"dm_control", "mujoco", "OpenGL", "matplotlib", "robosuite", "metaworld", "mani_skill", "sapien"}
        assert not simulators & set(sys.modules), sorted(sys.modules)
        assert dict(os.environ) == before
    """
    subprocess.run([sys.executable, "-c", code], check=True)


SUITE_OF_ANOTHER_PACKAGE = '''
"""A suite of another package."""
import numpy as np
from difftop.types import ObsSpec
from envs.suites import Outcome, TaskInfo

TASKS = {"Wait": TaskInfo(3)}
OBS = ("state",)


class Waiting:
    obs, action_dim, control_dt_s, episode_steps = {"time": ObsSpec("vector", (1,))}, 1, 0.1, 3

    def reset(self, seed):
        self.time = 0

    def step(self, action):
        self.time += 1
        return Outcome(1.0)

    def observe(self):
        return {"time": np.array([self.time])}

    def render(self, height, width):
        return np.zeros((height, width, 3), np.uint8)

    def close(self):
        pass


def load(task, config):
    return Waiting()
'''


@pytest.fixture
def added(tmp_path, monkeypatch):
    """Puts suites of other packages in place, by entry point name and source."""

    def add(**sources):
        found = []
        for name, source in sources.items():
            (tmp_path / f"suite_{name}.py").write_text(source)
            found.append(EntryPoint(name, f"suite_{name}", registry.GROUP))
        monkeypatch.setattr(registry, "entry_points", lambda group: found)
        monkeypatch.syspath_prepend(tmp_path)
        registry.suites.cache_clear()

    yield add
    registry.suites.cache_clear()


def test_other_packages_add_suites_by_entry_points(added):
    added(patience=SUITE_OF_ANOTHER_PACKAGE)
    assert "patience/Wait" in envs.list_envs() and envs.canonical_name("patience/wait") == "patience/Wait"
    assert envs.gives("patience/Wait") == {"reward"} and envs.table()[-1].suite == "patience"
    env = envs.make_env(EnvConfig("patience/wait"))
    obs, _ = env.reset(seed=0)
    assert obs["state"].tolist() == [0] and [env.step(np.zeros(1))[3] for _ in range(3)] == [False, False, True]
    with pytest.raises(ConfigError, match="no scripted expert"):
        envs.make_expert(EnvConfig("patience/wait"), env.simulator, None)


def test_a_broken_suite_of_another_package_costs_only_itself(added, caplog):
    added(broken="import nothing_of_this_name\n", poor="TASKS = {}\n", dmc=SUITE_OF_ANOTHER_PACKAGE)
    assert "dmc/walker-walk" in envs.list_envs() and not any(name.startswith("broken/") for name in envs.list_envs())
    assert "broken: its module suite_broken can't be imported (ModuleNotFoundError" in caplog.text
    assert "entry point dmc=suite_dmc are left out: take another name" in caplog.text
    with pytest.raises(ConfigError, match="poor: its module suite_poor lacks OBS, load"):
        envs.canonical_name("poor/task")


@pytest.mark.parametrize("name", ["toy/point-mass", "dmc/walker-walk", "dmc/finger-spin", "metaworld/door-open", "gym/Hopper-v5"])
def test_an_episode_does_not_depend_on_those_before_it(name):
    """To the bit: neither a solver's warm start nor a generator is left over."""
    for package in {"dmc": ["dm_control"], "metaworld": ["metaworld"], "gym": ["mujoco"]}.get(name.partition("/")[0], []):
        pytest.importorskip(package)
    fresh, used = envs.make_env(EnvConfig(name)), envs.make_env(EnvConfig(name))
    actions = np.random.default_rng(0).uniform(-1, 1, (30, *fresh.action_space.shape)).astype(np.float32)

    def play(env, seed):
        shown = [*env.reset(seed=seed)[0].values()]
        for action in actions:
            obs, reward, terminated, truncated, _ = env.step(action)
            shown += [*obs.values(), reward]
            if terminated or truncated:
                break
        return np.concatenate([np.ravel(part) for part in shown])

    play(used, 5)
    play(used, 6)
    assert np.array_equal(play(fresh, 1), play(used, 1))
    fresh.close()
    used.close()
