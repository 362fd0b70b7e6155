import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

import envs
from envs import EnvConfig, EnvError, RenderError
from envs.dm_control import SUITE_TASKS, TASKS
from envs.opengl import choose_backend

suite = pytest.importorskip("dm_control.suite") if choose_backend() else None

FEW = [
    "acrobot-swingup",
    "cup-catch",
    "cartpole-swingup",
    "humanoid-run",
    "lqr-lqr-2-1",
    "manipulator-insert-peg",
    "quadruped-walk",
]
needs_opengl = pytest.mark.skipif(choose_backend() == "disabled", reason="no OpenGL: apt-get install -y libegl1 libgl1")


def make(task, **options):
    return envs.make_env(EnvConfig(f"dmc/{task}", **options))


def played(env):
    """dm_control's own environment."""
    return env.simulator._env


def slow_but(few):
    return [pytest.param(task, marks=() if task in few else pytest.mark.slow) for task in TASKS]


def test_table_holds_the_whole_suite():
    assert Counter((domain, task) for domain, task, _ in SUITE_TASKS.values()) == Counter(suite.ALL_TASKS)


def test_action_repeats_are_td_mpc_s():
    repeats = {
        "cartpole-swingup": 8,
        "cartpole-swingup-sparse": 8,
        "cheetah-run": 4,
        "cup-catch": 4,
        "dog-run": 2,
        "finger-spin": 2,
        "hopper-stand": 4,
        "humanoid-run": 2,
        "pendulum-swingup": 4,
        "quadruped-run": 4,
        "reacher-easy": 4,
        "walker-run": 2,
        "acrobot-swingup": 4,
        "fish-swim": 4,
    }
    assert {task: TASKS[task].action_repeat for task in repeats} == repeats


@pytest.mark.parametrize("task", TASKS)
def test_spaces_are_the_suite_s(task):
    if task == "quadruped-escape" and choose_backend() == "disabled":
        pytest.skip("dm_control itself draws when quadruped-escape resets")
    env = make(task)
    size = sum(int(np.prod(part.shape)) for part in played(env).observation_spec().values())
    assert env.difftop_spec.shapes == {"state": (size,)}
    assert env.observation_space.contains(env.reset(seed=1)[0])
    assert played(env).action_spec().shape == env.action_space.shape
    env.close()


def test_by_key_observations_are_the_suite_s_own_and_state_is_all_of_them():
    keyed, joined = make("walker-walk", obs="low_dim"), make("walker-walk")
    obs, _ = keyed.reset(seed=3)
    assert list(obs) == ["orientations", "height", "velocity"] and obs["height"].shape == (1,)
    assert np.concatenate(list(obs.values())).tobytes() == joined.reset(seed=3)[0]["state"].tobytes()


def test_an_episode_may_be_longer_than_the_suite_s():
    env = make("cartpole-balance", action_repeat=100, episode_steps=12)
    env.reset(seed=0)
    assert [env.step(np.zeros(1))[3] for _ in range(12)] == [False] * 11 + [True]


@pytest.mark.parametrize("task", slow_but(FEW))
def test_one_thousand_control_steps_then_truncation(task):
    env = make(task, action_repeat=40)
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    ends = [env.step(rng.uniform(-1, 1, env.action_space.shape))[2:4] for _ in range(25)]
    assert ends == [(False, False)] * 24 + [(False, True)]


def test_default_repeat_and_an_uneven_one():
    assert make("cartpole-swingup").difftop_spec.episode_steps == 125
    env = make("cartpole-swingup", action_repeat=7)  # 142 whole repeats and one of 6
    env.reset(seed=0)
    steps = 0
    truncated = False
    while not truncated:
        _, _, _, truncated, _ = env.step(np.zeros(1))
        steps += 1
    assert steps == env.difftop_spec.episode_steps == 143


@pytest.mark.parametrize("task", ["walker-walk", "finger-turn-hard"])
def test_agrees_with_the_suite(task):
    """Rewards, observations and their order, against dm_control played directly."""
    domain, name, _ = SUITE_TASKS[task]
    env = make(task, action_repeat=3)
    env.reset(seed=2)
    raw = suite.load(domain, name)
    raw.reset()
    raw.physics.set_state(played(env).physics.get_state())
    raw.physics.named.model.site_pos[:] = played(env).physics.named.model.site_pos[:]
    raw.physics.named.model.site_size[:] = played(env).physics.named.model.site_size[:]
    raw.physics.forward()
    rng = np.random.default_rng(0)
    for _ in range(20):
        action = rng.uniform(-1, 1, env.action_space.shape)
        obs, reward, *_ = env.step(action)
        steps = [raw.step(action) for _ in range(3)]
        flat = np.concatenate([np.atleast_1d(value) for value in steps[-1].observation.values()])
        np.testing.assert_allclose(obs["state"], flat, rtol=1e-4, atol=1e-5)
        assert reward == pytest.approx(sum(step.reward for step in steps), abs=1e-6)


def test_actions_are_rescaled_to_uneven_limits():
    env = make("quadruped-walk")
    env.reset(seed=0)
    spec = played(env).action_spec()
    assert spec.maximum.max() > 1 > spec.maximum.min()
    for action, expected in [(-1.0, spec.minimum), (1.0, spec.maximum), (0.0, (spec.minimum + spec.maximum) / 2)]:
        env.step(np.full(12, action))
        np.testing.assert_allclose(played(env).physics.control(), expected, rtol=1e-12, atol=1e-12)


def test_lqr_terminates_at_the_origin():
    env = make("lqr-lqr-2-1")
    env.reset(seed=0)
    physics = played(env).physics
    physics.data.qpos[:], physics.data.qvel[:] = 0, 0
    physics.forward()
    assert env.step(np.zeros(1))[2:4] == (True, False)


@pytest.mark.parametrize(
    "task", slow_but([*FEW, "finger-turn-hard", "fish-swim", "point-mass-hard", "reacher-easy", "swimmer-swimmer6"])
)
def test_seeded_episode_is_the_same_whatever_came_before(task):
    used, fresh = make(task), make(task)
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (50, *used.action_space.shape)).astype(np.float32)
    used.reset(seed=1)
    for action in rng.uniform(-1, 1, (40, *used.action_space.shape)):
        used.step(action)
    used.reset()
    used.step(actions[0])
    played = []
    for env in (used, fresh):
        first = env.reset(seed=9)[0]["state"]
        episode = [first]
        for action in actions:
            obs, reward, *_ = env.step(action)
            episode.append(np.append(obs["state"], reward))
        played.append(np.concatenate(episode).tobytes())
    assert played[0] == played[1]
    assert fresh.reset(seed=10)[0]["state"].tobytes() != first.tobytes()


@needs_opengl
def test_rendering_changes_no_state_and_pixels_repeat():
    plain, drawn = make("walker-walk"), make("walker-walk", obs="pixels", render_quality="fast")
    plain.reset(seed=3)
    first = drawn.reset(seed=3)[0]["pixels"]
    for action in np.random.default_rng(0).uniform(-1, 1, (5, 6)):
        plain.step(action)
        obs = drawn.step(action)[0]["pixels"]
        drawn.render()
    assert played(plain).physics.get_state().tobytes() == played(drawn).physics.get_state().tobytes()
    assert (obs[-3:] != obs[:3]).any()
    assert drawn.reset(seed=3)[0]["pixels"].tobytes() == first.tobytes()


@needs_opengl
def test_fast_quality_is_nearly_the_published_picture():
    frames = [
        make("walker-walk", obs="pixels", render_quality=quality).reset(seed=0)[0]["pixels"] for quality in ("published", "fast")
    ]
    difference = np.abs(frames[0].astype(float) - frames[1])
    assert frames[0].std() > 20
    assert 0 < difference.mean() < 1


@needs_opengl
def test_quadruped_uses_its_own_camera():
    env = make("quadruped-walk", obs="pixels", render_quality="fast")
    obs = env.reset(seed=0)[0]["pixels"]
    expected = played(env).physics.render(84, 84, camera_id=2)
    assert (obs[-3:].transpose(1, 2, 0) == expected).all()


@needs_opengl
def test_a_camera_by_name():
    env = make("walker-walk", obs="pixels", render_quality="fast", cameras=["back"])
    obs = env.reset(seed=0)[0]["pixels"]
    assert (obs[-3:].transpose(1, 2, 0) == played(env).physics.render(84, 84, camera_id="back")).all()
    with pytest.raises(EnvError, match=r"dmc/walker-walk: env.cameras=front is not there; it has side, back"):
        make("walker-walk", obs="pixels", cameras=["front"])


def test_simulator_that_diverges_is_an_error_with_its_cause():
    env = make("cheetah-run")
    env.reset(seed=5)
    env.step(np.zeros(6))
    played(env).physics.data.qvel[:] = 1e12
    with pytest.raises(
        EnvError, match=r"dmc/cheetah-run, step 2 in the episode of seed 5: the simulator raised PhysicsError"
    ) as caught:
        env.step(np.zeros(6))
    assert caught.value.__cause__ is not None
    assert np.isfinite(env.reset(seed=5)[0]["state"]).all()


def test_missing_dm_control_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "dm_control", None)
    with pytest.raises(EnvError, match=r"^dmc environments need dm_control .*`make setup`, or `pip install -e \.\[dmc\]"):
        make("walker-walk")


def test_states_without_opengl_and_one_sentence_for_pixels():
    """As on a machine without libEGL, libGL and libOSMesa."""
    code = """if True:
        import ctypes.util, os
        ctypes.util.find_library = lambda name: None
        os.environ.pop("MUJOCO_GL", None)
        import envs
        env = envs.make_env(envs.EnvConfig("dmc/walker-walk"))
        env.reset(seed=0)
        env.step(env.action_space.sample())
        assert os.environ["MUJOCO_GL"] == "disabled"
        pixels = envs.make_env(envs.EnvConfig("dmc/walker-walk", obs="pixels"))
        escape = envs.EnvConfig("dmc/quadruped-escape")
        for draw in (env.render, pixels.reset, lambda: envs.make_env(escape)):
            try:
                draw()
            except envs.RenderError as error:
                message = str(error)
            assert "apt-get install -y libegl1 libgl1" in message and "\\n" not in message, message
    """
    subprocess.run([sys.executable, "-c", code], check=True)


def test_backend_that_does_not_load_is_one_sentence():
    code = """if True:
        import os
        os.environ["MUJOCO_GL"], os.environ["PYOPENGL_PLATFORM"] = "egl", "osmesa"
        import envs
        try:
            envs.make_env(envs.EnvConfig("dmc/walker-walk"))
        except envs.EnvError as error:
            message = str(error)
        assert message.startswith("dm_control can't be imported with MUJOCO_GL=egl"), message
        assert "apt-get install -y libegl1 libgl1" in message and "\\n" not in message, message
    """
    subprocess.run([sys.executable, "-c", code], check=True)


def test_render_failure_is_a_render_error(monkeypatch):
    env = make("walker-walk")
    env.reset(seed=0)

    def fail(*args, **kwargs):
        raise RuntimeError("no context")

    monkeypatch.setattr(played(env).physics, "render", fail)
    with pytest.raises(RenderError, match=r"can't render .*no context.*apt-get install -y libegl1 libgl1"):
        env.render()
