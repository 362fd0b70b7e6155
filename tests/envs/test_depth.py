"""Depth images: against rays into known scenes, against point clouds, and as demonstrations keep them."""

import warnings
from contextlib import closing

import h5py
import numpy as np
import pytest

import envs
from agents.registry import make_agent
from difftop.data.robomimic import open_robomimic
from difftop.options import ConfigError
from difftop.run.seeding import stream
from envs import EnvConfig
from envs.demos import record
from envs.opengl import choose_backend

pytestmark = pytest.mark.skipif(choose_backend() == "disabled", reason="no OpenGL: apt-get install -y libegl1 libgl1")
mujoco = pytest.importorskip("mujoco", reason="mujoco is not installed; run `make setup`")

SCENE = """
<mujoco><worldbody>
  <light pos="0 0 3"/>
  <geom type="plane" size="5 5 .1"/>
  <geom type="box" size=".2 .1 .15" pos=".3 .2 .15"/>
  <camera name="above" pos="0 0 1.5" xyaxes="1 0 0 0 1 0"/>
  <camera name="aslant" pos="0 -1 1" xyaxes="1 0 0 0 .7 .714" fovy="50"/>
</worldbody></mujoco>
"""
CAMERAS = ["corner", "corner3", "topview", "gripperPOV"]  # the first two hang upside down


def rays(height, width, fovy_deg):
    """Of each pixel of an upright image, at depth 1, in the camera's axes `[height, width, 3]`."""
    focal = height / (2 * np.tan(np.deg2rad(fovy_deg) / 2))
    row, column = np.mgrid[:height, :width]
    return np.stack([(column + 0.5 - width / 2) / focal, -(row + 0.5 - height / 2) / focal, -np.ones((height, width))], -1)


def at_height(model, data, camera, z, shape):
    """Depth of the plane of height z in the world, by pixel; not a number where a ray doesn't reach it."""
    number = model.camera(camera).id
    world = rays(*shape, model.cam_fovy[number]) @ data.cam_xmat[number].reshape(3, 3).T
    with np.errstate(divide="ignore"):
        depth = (z - data.cam_xpos[number][2]) / world[..., 2]
    return np.where((depth > 0) & np.isfinite(depth), depth, np.nan)


def test_depths_are_the_distances_of_planes_along_the_axis():
    from envs.scene_camera import SceneCamera

    model = mujoco.MjModel.from_xml_string(SCENE)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    with closing(SceneCamera(fast=True, hidden=())) as camera:
        seen = camera.depth(model, data, "above", 60, 80)
        assert seen.dtype == np.float32 and seen.shape == (60, 80)
        row, column = 0.5 + np.argwhere(np.abs(seen - 1.2) < 1e-3).T  # the box's top, 0.3 high
        focal = 60 / (2 * np.tan(np.deg2rad(45) / 2))
        x, y = 1.2 * (column - 40) / focal, -1.2 * (row - 30) / focal  # upright: y of the world is up
        assert (x.min(), x.max()) == pytest.approx((0.1, 0.5), abs=0.03)
        assert (y.min(), y.max()) == pytest.approx((0.1, 0.3), abs=0.03)
        around = np.abs(seen - 1.5) < 1e-3
        assert around.sum() + len(row) > 0.95 * seen.size  # the box's sides are the rest
        aslant = camera.depth(model, data, "aslant", 64, 48)
        ground = at_height(model, data, "aslant", 0.0, (64, 48))
        error = np.abs(aslant - ground)
        assert (error < 2e-3 * ground).mean() > 0.85 and (aslant <= ground * 1.002).all()  # the box is nearer than the ground
        image = camera.image(model, data, "aslant", 64, 48)
        assert image.shape == (64, 48, 3)


def projected(model, data, camera, points, shape):
    """Row, column and depth of points of the world in an upright image."""
    number, (height, width) = model.camera(camera).id, shape
    seen = (points - data.cam_xpos[number]) @ data.cam_xmat[number].reshape(3, 3)
    focal = height / (2 * np.tan(np.deg2rad(model.cam_fovy[number]) / 2))
    row = np.floor(height / 2 + focal * seen[:, 1] / seen[:, 2])
    column = np.floor(width / 2 - focal * seen[:, 0] / seen[:, 2])
    return row.astype(int), column.astype(int), -seen[:, 2]


def test_metaworld_s_depths_are_where_its_points_are():
    pytest.importorskip("metaworld", reason="metaworld is not installed; run `make sims`")
    options = {"obs": "image", "image_size": 48, "cameras": CAMERAS, "depth": True}
    with closing(envs.make_env(EnvConfig("metaworld/drawer-open", render_quality="fast", **options))) as env:
        obs, _ = env.reset(seed=3)
        for _ in range(5):
            obs = env.step(np.array([1.0, 0.5, -1.0, 0.0]))[0]
        assert [key for key in obs if key.endswith("_depth")] == [f"{camera}_depth" for camera in CAMERAS]
        assert all(env.difftop_spec.obs[f"{camera}_depth"].kind == "depth" for camera in CAMERAS)
        simulator = env.simulator
        model, data = simulator._env.model, simulator._env.data
        for camera in CAMERAS:
            depth = obs[f"{camera}_depth"]
            assert (
                depth.dtype == np.float32
                and depth.shape == (1, 48, 48)
                and env.observation_space[f"{camera}_depth"].contains(depth)
            )
            points = simulator._measuring().points(model, data, camera, 48, 48)
            row, column, distance = projected(model, data, camera, points, (48, 48))
            if camera in ("corner", "corner3"):  # shown turned by half a turn, as its picture is
                row, column = 47 - row, 47 - column
            assert len(points) > 50
            np.testing.assert_allclose(depth[0, row, column], distance, rtol=1e-4)
    with closing(envs.make_env(EnvConfig("metaworld/drawer-open", **options))) as env:
        env.reset(seed=3)
        for _ in range(5):
            published = env.step(np.array([1.0, 0.5, -1.0, 0.0]))[0]
    for camera in CAMERAS:  # however pictures are drawn
        assert np.array_equal(published[f"{camera}_depth"], obs[f"{camera}_depth"])
    assert not np.array_equal(published["corner_image"], obs["corner_image"])


def test_robosuite_s_table_is_where_it_is():
    pytest.importorskip("robosuite", reason="robosuite is not installed; run `make sims`")
    seen = {}
    for quality in ("fast", "published"):
        config = EnvConfig("robosuite/Lift", obs="image", image_size=64, cameras=["agentview", "frontview"], depth=True)
        with closing(envs.make_env(envs.EnvConfig(**{**vars(config), "render_quality": quality}))) as env:
            obs, _ = env.reset(seed=2)
            seen[quality] = obs
            sim = env.simulator.env.sim
            model, data = sim.model._model, sim.data._data
            table = float(env.simulator.env.table_offset[2])
            shares = []
            for camera in config.cameras:
                depth = obs[f"{camera}_depth"][0]
                expected = at_height(model, data, camera, table, depth.shape)
                shares.append((np.abs(depth - expected) < 2e-3).mean())
            cube = data.body(env.simulator.env.cube_body_id).xpos
            row, column, distance = projected(model, data, "agentview", cube[None], (64, 64))
            assert 0 < distance[0] - obs["agentview_depth"][0, row[0], column[0]] < 0.04  # of its surface
            assert envs.recorded_as(config)["env_kwargs"]["camera_depths"] is True
        assert shares[0] > 0.4 and shares[1] > 0.05, shares
    for camera in ("agentview", "frontview"):
        assert np.array_equal(seen["fast"][f"{camera}_depth"], seen["published"][f"{camera}_depth"])
        assert not np.array_equal(seen["fast"][f"{camera}_image"], seen["published"][f"{camera}_image"])


RECORDED = EnvConfig(
    "metaworld/button-press-topdown", obs="image", image_size=32, cameras=["corner3"], depth=True, render_quality="fast"
)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A file of one demonstration."""
    pytest.importorskip("metaworld", reason="metaworld is not installed; run `make sims`")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Constant")  # the suite's expert, of its own numbers
        return record(RECORDED, 1, seed=5, folder=tmp_path_factory.mktemp("demonstrations"))


def test_what_is_recorded_is_what_is_evaluated(recorded):
    path, config = recorded, RECORDED
    assert path.name == "expert-image32-corner3-depth-fast-1-seed5.hdf5"
    with h5py.File(path) as file:
        stored = file["data/demo_0/obs/corner3_depth"]
        assert stored.dtype == np.float32 and stored.shape[1:] == (32, 32, 1)  # RoboMimic's layout
        actions = file["data/demo_0/actions"][()]
    made = open_robomimic(path, obs_keys=["corner3_depth", "corner3_image", "hand_pos"])
    assert made.shapes == {"hand_pos": (3,), "corner3_depth": (1, 32, 32), "corner3_image": (3, 32, 32)}
    (episode,) = made.episodes(images=True)
    with closing(envs.make_env(config)) as env:
        obs, _ = env.reset(seed=stream(5, "demonstration", 0))
        for step, action in enumerate(actions):
            for key, value in obs.items():
                if key in episode.obs:
                    assert value.dtype == episode.obs[key].numpy().dtype
                    assert np.array_equal(value, episode.obs[key][step].numpy()), (key, step)
            obs = env.step(action)[0]
    moved = episode.obs["corner3_depth"][-1] - episode.obs["corner3_depth"][0]
    assert float(moved.abs().max()) > 0.05


def test_a_policy_is_trained_on_the_file_and_acts_in_the_environment(recorded):
    import torch

    with closing(envs.make_env(RECORDED)) as env:
        spec = env.difftop_spec
        made = open_robomimic(recorded, obs_keys=list(spec.obs))
        network = {"network": "small", "crop": 0.9, "keypoints": 8, "features": 16}
        options = {
            "name": "bc",
            "encoder": network,
            "hidden_dims": [32],
            "window": 1,
            "horizon": 1,
            "distribution": "deterministic",
        }
        agent = make_agent(options, spec, seed=0, total_steps=40)
        agent.fit_normalizer_(made)
        windows, g = made.windows(1, 1), torch.Generator().manual_seed(0)
        losses = [
            float(agent.update(windows.gather(torch.randint(len(windows), (16,), generator=g)), k).metrics["train/loss"])
            for k in range(40)
        ]
        assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
        actor = agent.actor(1, seed=0)
        actor.begin(0, 0)
        obs, _ = env.reset(seed=1)
        for step in range(3):
            seen = {key: torch.from_numpy(value)[None] for key, value in obs.items()}
            obs = env.step(actor.act(seen, torch.tensor([step == 0]))[0].numpy())[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "dmc/walker-walk"}, r"^dmc/walker-walk: env.depth=true is not offered there, but in metaworld, robosuite, "),
        ({"name": "toy/reach", "obs": "low_dim"}, r"^toy/reach: env.depth=true is not offered there, but in .*; leave it out\.$"),
        ({"name": "metaworld/reach", "obs": "low_dim"}, r"env.obs=low_dim has no depth images; set env.obs=image\.$"),
    ],
)
def test_depths_that_are_not_there_are_refused_in_one_sentence(options, message):
    with pytest.raises(ConfigError, match=message):
        envs.make_env(EnvConfig(depth=True, **options))
