"""Meta-World: observations, rewards and cameras."""

import sys
from contextlib import closing

import numpy as np
import pytest

import envs
from envs import EnvConfig, EnvError
from envs.opengl import choose_backend

needs_opengl = pytest.mark.skipif(choose_backend() == "disabled", reason="no OpenGL: apt-get install -y libegl1 libgl1")
pytest.importorskip("metaworld", reason="metaworld is not installed; run `make sims`")


def make(task="reach", **options):
    return envs.make_env(EnvConfig(f"metaworld/{task}", **options))


def test_names_are_the_suite_s():
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    assert {f"metaworld/{name.removesuffix('-v3')}" for name in ALL_V3_ENVIRONMENTS} == {
        name for name in envs.list_envs() if name.startswith("metaworld/")
    }


def test_state_is_the_suite_s_own_observation_and_low_dim_its_parts():
    state, keyed = make(), make(obs="low_dim")
    assert state.difftop_spec.shapes == {"state": (39,)} and state.difftop_spec.control_dt_s == 0.0125
    obs, parts = state.reset(seed=3)[0]["state"], keyed.reset(seed=3)[0]
    for action in np.random.default_rng(0).uniform(-1, 1, (5, 4)):
        before = obs
        obs, parts = state.step(action)[0]["state"], keyed.step(action)[0]
    assert obs == pytest.approx(state.simulator.last.astype(np.float32))
    assert np.concatenate(list(parts.values())).tobytes() == np.concatenate([obs[:18], obs[36:]]).tobytes()
    assert obs[18:36].tobytes() == before[:18].tobytes()  # which tells velocities


@pytest.mark.filterwarnings("ignore:Constant")  # the suite's expert, of its own numbers
def test_rewards_are_the_suite_s_or_of_success_alone():
    for reward in ("dense", "sparse"):
        env = make(obs="low_dim", reward=reward)
        config = EnvConfig("metaworld/reach", obs="low_dim")
        expert = envs.make_expert(config, env.simulator, np.random.default_rng(0))
        obs, _ = env.reset(seed=1)
        expert.reset()
        paid, solved = [], []
        for _ in range(60):
            obs, last, _, _, info = env.step(expert.act(obs).clip(-1, 1))
            paid.append(last)
            solved.append(info["success"])
        assert max(solved) == 1.0
        assert paid == solved if reward == "sparse" else 0 < paid[0] < max(paid) <= 10


def test_an_episode_is_a_function_of_its_seed_and_may_be_longer_than_the_suite_s():
    used, fresh = make(episode_steps=520), make(episode_steps=520)
    used.reset(seed=8)
    used.step(np.ones(4))
    actions = np.random.default_rng(0).uniform(-1, 1, (520, 4))
    rows = []
    for env in (used, fresh):
        first = env.reset(seed=2)[0]["state"]
        steps = [env.step(action) for action in actions]
        rows.append(np.array([first, *(step[0]["state"] for step in steps)]).tobytes())
        assert [step[3] for step in steps] == [False] * 519 + [True]
    assert rows[0] == rows[1]


def test_an_unknown_camera_is_refused():
    with pytest.raises(EnvError, match=r"there is no 'nope'; it has .*corner2"):
        make(obs="image", cameras=["corner", "nope"])


def test_missing_package_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "metaworld", None)
    with pytest.raises(EnvError, match=r"^metaworld tasks need the package metaworld .*`make sims`"):
        make()


@needs_opengl
@pytest.mark.parametrize("camera", ["corner", "corner2", "corner3", "topview"])
def test_pictures_are_upright_and_not_mirrored(camera):
    """The yellow box is moved up (from above: away from the robot) and to the right, and so are its pixels."""
    import mujoco

    with closing(make("button-press-topdown", obs="pixels", frame_stack=1, cameras=[camera], render_quality="fast")) as env:
        env.reset(seed=0)
        model, data = env.simulator._env.model, env.simulator._env.data
        forward = -data.cam_xmat[model.camera(camera).id].reshape(3, 3)[:, 2]
        up = np.array([0, 1.0, 0]) if camera == "topview" else np.array([0, 0, 1.0])
        right = np.cross(forward, up) / np.linalg.norm(np.cross(forward, up))

        def yellow(offset):
            """Row and column of the box, moved by `offset` (m)."""
            model.body("box").pos += offset
            mujoco.mj_forward(model, data)
            model.body("box").pos -= offset
            red, green, blue = env.simulator.observe()["pixels"].astype(int)
            mask = (red > 150) & (green > 100) & (blue < 60)
            assert mask.sum() > 20
            return np.argwhere(mask).mean(0)

        rest = yellow(np.zeros(3))
        assert yellow(0.05 * up)[0] < rest[0] - 1
        assert yellow(0.05 * right)[1] > rest[1] + 1


@needs_opengl
def test_points_are_of_what_can_move():
    options = {"obs": "pointcloud", "image_size": 84, "points": 200, "cameras": ["corner3"]}
    with closing(make("button-press-topdown", **options)) as env:
        obs, _ = env.reset(seed=1)
        assert {key: value.shape for key, value in obs.items()} == {"hand_pos": (3,), "gripper": (1,), "pointcloud": (200, 3)}
        data = env.simulator._env.data

        def nearest(cloud, place):
            return np.linalg.norm(cloud - place, axis=1).min()

        button, box = env.simulator.last[4:7], data.body("box").xpos - [0, 0, 0.05]
        assert nearest(obs["pointcloud"], obs["hand_pos"]) < 0.06 and nearest(obs["pointcloud"], button) < 0.04
        assert nearest(obs["pointcloud"], box) > 0.08  # it stands still
        assert obs["pointcloud"][:, 2].min() > 0.02  # no table
    with closing(make("button-press-topdown", render_quality="fast", **options)) as fast:
        assert np.array_equal(fast.reset(seed=1)[0]["pointcloud"], obs["pointcloud"])  # whatever pictures look like


@needs_opengl
def test_images_by_key_and_pixels_are_the_same_pictures():
    with closing(make(obs="image", image_size=48, render_quality="fast", cameras=["corner", "corner3"])) as keyed:
        obs, _ = keyed.reset(seed=2)
        assert {key: value.shape for key, value in obs.items()} == {
            "hand_pos": (3,),
            "gripper": (1,),
            "corner_image": (3, 48, 48),
            "corner3_image": (3, 48, 48),
        }
    with closing(make(obs="pixels", image_size=48, render_quality="fast", cameras=["corner"])) as pixels:
        assert (pixels.reset(seed=2)[0]["pixels"][-3:] == obs["corner_image"]).all()
