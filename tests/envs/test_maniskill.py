"""ManiSkill: its tasks behind our interface."""

import dataclasses
import json
import os
import subprocess
import sys
from contextlib import closing

import numpy as np
import pytest

from difftop.options import ConfigError
from envs import list_envs, make_env, maniskill
from envs.base import SimulatedEnv
from envs.errors import EnvError
from envs.maniskill.observations import POINTS as COUNT
from envs.maniskill.observations import chosen_points
from envs.maniskill.package import VULKAN_LINE
from tests.envs.maniskill_suite import IMAGE, PEG, PICK, POINTS, actions, equal, roll, shapes, simulated, task_of

pytestmark = pytest.mark.slow  # importing the suite and compiling its first image takes twenty seconds


def test_tasks_are_known_without_the_package():
    assert len(maniskill.TASKS) == 40 and "maniskill/PickCube-v1" in list_envs()
    steps = {
        name: maniskill.TASKS[f"{name}-v1"].episode_steps for name in ("PickCube", "StackCube", "PegInsertionSide", "PushCube")
    }
    assert steps == {"PickCube": 100, "StackCube": 200, "PegInsertionSide": 300, "PushCube": 100}
    code = "import sys, envs.maniskill.demos; assert not {'mani_skill', 'sapien', 'mplib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@simulated
@pytest.mark.slow
def test_registered_ids_planners_and_assets_are_as_listed():
    import mani_skill.envs  # noqa: F401
    from mani_skill.examples.motionplanning.panda.run import MP_SOLUTIONS
    from mani_skill.utils.registration import REGISTERED_ENVS

    assert set(maniskill.TASKS) <= set(REGISTERED_ENVS)
    assert {name for name, known in maniskill.TASKS.items() if "expert" in known.gives} == set(MP_SOLUTIONS) - {
        "DrawSVG-v1",
        "DrawTriangle-v1",
    }
    for name, known in maniskill.TASKS.items():
        asked = REGISTERED_ENVS[name].asset_download_ids or []
        assert known.assets in asked if asked else known.assets in ("", "partnet_mobility_cabinet"), name


@simulated
@pytest.mark.parametrize(("config", "size", "steps"), [(PICK, 42, 100), (PEG, 43, 300)])
def test_spec_and_step(made, config, size, steps):
    simulator = made(config)
    env = SimulatedEnv(simulator, config)
    spec = env.difftop_spec
    assert spec.shapes == {"state": (size,)} and spec.action_dim == 7
    assert spec.episode_steps == steps and spec.control_dt_s == pytest.approx(0.05)
    obs, _ = env.reset(seed=3)
    assert env.observation_space.contains(obs)
    obs, reward, terminated, truncated, info = env.step(np.zeros(7))
    assert env.observation_space.contains(obs) and 0 <= reward <= 1 and not (terminated or truncated)
    assert info == {"success": 0.0, "contact_force_n": 0.0}


@simulated
@pytest.mark.parametrize("config", [PICK, PEG])
def test_an_episode_is_a_function_of_seed_and_actions(made, config):
    commands = actions(25)
    used, fresh = made(config), maniskill.load(task_of(config), config)
    with closing(fresh):
        first = roll(used, 5, commands)
        other = roll(used, 6, actions(25, seed=1))
        assert not equal(first[:1], other[:1])
        assert equal(first, roll(used, 5, commands)) and equal(first, roll(fresh, 5, commands))


@simulated
def test_units_of_an_action(made):
    simulator = made(PICK)
    for axis in range(3):
        simulator.reset(0)
        start = simulator.base.agent.tcp.pose.p[0].numpy()
        command = np.zeros(7)
        command[axis] = 0.2
        for _ in range(3):
            simulator.step(command)
        for _ in range(5):  # the arm lags behind
            simulator.step(np.zeros(7))
        moved = simulator.base.agent.tcp.pose.p[0].numpy() - start
        assert 0.01 < moved[axis] <= 3 * 0.2 * 0.1 + 1e-3 and np.abs(np.delete(moved, axis)).max() < 0.01
    gripper = []
    for opening in (-1, 1):
        for _ in range(10):
            simulator.step(np.array([0, 0, 0, 0, 0, 0, opening], float))
        gripper.append(float(simulator.base.agent.robot.get_qpos()[0, -1]))
    assert gripper == pytest.approx([0.0, 0.04], abs=2e-3)


@simulated
def test_contact_force_is_that_of_pushing_on_the_table_and_not_of_moving(made):
    simulator = made(PICK)
    simulator.reset(0)
    up, down = np.zeros(7), np.zeros(7)
    up[2], down[2] = 0.5, -0.5
    assert max(simulator.step(up).contact_force_n for _ in range(5)) == 0
    assert max(simulator.step(down).contact_force_n for _ in range(20)) > 20


@simulated
def test_success_is_told_and_does_not_end_the_episode(made):
    """A state that is the solution: the cube at the goal, the robot at rest."""
    simulator = made(PICK)
    env = SimulatedEnv(simulator, PICK)
    for seed in range(50):
        env.reset(seed=seed)
        state = simulator.base.get_state_dict()
        if state["actors"]["goal_site"][0, 1].abs() > 0.09:  # not inside the hand
            break
    assert not simulator.base.evaluate()["success"]
    state["actors"]["cube"] = state["actors"]["cube"].clone()
    state["actors"]["cube"][:, :3] = state["actors"]["goal_site"][:, :3]
    simulator.base.set_state_dict(state)
    _, _, terminated, truncated, info = env.step(np.zeros(7))
    assert info["success"] == 1 and not (terminated or truncated)


@simulated
@pytest.mark.slow  # the first image of a process takes ten seconds
def test_images(made):
    simulator = made(IMAGE)
    assert shapes(simulator)["base_camera_image"] == (3, 32, 32) and shapes(simulator)["extra/goal_pos"] == (3,)
    assert list(simulator.obs)[:-1] == sorted(list(simulator.obs)[:-1])
    env = SimulatedEnv(simulator, IMAGE)
    first, _ = env.reset(seed=1)
    assert env.observation_space.contains(first) and first["base_camera_image"].std() > 20
    after = env.step(actions(1)[0])[0]
    assert not np.array_equal(first["base_camera_image"], after["base_camera_image"])
    again = env.reset(seed=1)[0]
    assert equal([first], [again])
    assert env.render().shape == (32, 32, 3) and simulator.render(16, 48).shape == (16, 48, 3)
    with pytest.raises(EnvError, match=r"env\.cameras=side is not there; it has base_camera"):
        maniskill.load("PickCube-v1", dataclasses.replace(IMAGE, cameras=["side"]))


@simulated
@pytest.mark.slow
def test_one_of_two_cameras(made):
    config = dataclasses.replace(IMAGE, name="maniskill/StackCube-v1", cameras=["hand_camera"])
    simulator = made(config)
    images = [key for key in simulator.obs if key.endswith("_image")]
    assert images == ["hand_camera_image"]
    both = made(dataclasses.replace(config, cameras=[]))
    commands = actions(3)
    one, two = (roll(each, 2, commands)[-1] for each in (simulator, both))
    assert np.array_equal(one["hand_camera_image"], two["hand_camera_image"]) and "base_camera_image" in two


@simulated
@pytest.mark.slow
def test_point_clouds_show_the_cube(made):
    simulator = made(POINTS)
    assert shapes(simulator)["pointcloud"] == (COUNT, 3)
    (row,) = roll(simulator, 4, [])
    cloud = row["pointcloud"]
    assert (cloud[:, 2] > 0.005).all() and np.abs(cloud).max() < 1
    cube = simulator.base.cube.pose.p[0].numpy()
    assert np.linalg.norm(cloud - cube, axis=1).min() < 0.04
    assert equal([row], roll(simulator, 4, []))


BAD = {
    "unknown": ("Nothing-v1", PICK, "ManiSkill registers no Nothing-v1; it has AssemblingKits-v1, "),
    "unnormalized": ("PickCube-v1", dataclasses.replace(PICK, control="pd_joint_pos"), "not normalized.*-c pd_ee_delta_pose"),
    "no such mode": ("PickCube-v1", dataclasses.replace(PICK, control="osc"), "osc not in supported modes: .*pd_joint_delta_pos"),
    "no success": ("Empty-v1", PICK, "reports no success"),
    "GPU file": ("PickCube-v1", dataclasses.replace(PICK, made_with='{"sim_backend": "physx_cuda"}'), "sim_backend=physx_cuda"),
    "no JSON": ("PickCube-v1", dataclasses.replace(PICK, made_with="{"), "made_with is not the JSON"),
    "two modes": (
        "PickCube-v1",
        dataclasses.replace(PICK, control="pd_ee_delta_pos", made_with='{"control_mode": "pd_ee_delta_pose"}'),
        "env.control=pd_ee_delta_pos, but the demonstrations were recorded with pd_ee_delta_pose",
    ),
}


@simulated
@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence(name):
    task, config, message = BAD[name]
    with pytest.raises((EnvError, ConfigError), match=message) as caught:
        maniskill.load(task, config)
    assert str(caught.value).startswith(f"maniskill/{task}") and "\n" not in str(caught.value)


@simulated
def test_missing_assets_are_no_question_to_the_user(monkeypatch):
    from mani_skill.utils import assets

    monkeypatch.setattr(assets, "is_data_source_downloaded", lambda _: False)
    with pytest.raises(
        EnvError, match=r"OpenCabinetDrawer-v1: its assets .*`python -m mani_skill.utils.download_asset partnet_mobility"
    ):
        maniskill.load("OpenCabinetDrawer-v1", PICK)


@simulated
@pytest.mark.slow
def test_missing_vulkan_says_what_to_run():
    code = f"from envs import EnvConfig, maniskill; maniskill.load('PickCube-v1', {PICK!r})"
    environ = os.environ | {"VK_DRIVER_FILES": "/nowhere", "VK_ICD_FILENAMES": "/nowhere"}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and "ManiSkill needs a Vulkan device even for states" in last and VULKAN_LINE in last


def test_missing_package_says_what_to_run(monkeypatch):
    monkeypatch.setitem(sys.modules, "mani_skill", None)
    monkeypatch.setitem(sys.modules, "mani_skill.envs", None)
    with pytest.raises(
        EnvError, match=r"maniskill/PickCube-v1: package mani_skill is not installed .*pip install -e '\.\[maniskill\]'"
    ):
        maniskill.load("PickCube-v1", PICK)


@simulated
def test_control_mode_and_cameras_of_the_file(made):
    kwargs = {"control_mode": "pd_joint_delta_pos", "obs_mode": "none", "sim_backend": "auto", "sensor_configs": {"width": 48}}
    for text in (json.dumps(kwargs), json.dumps({"env_name": "PickCube-v1", "env_kwargs": kwargs})):
        config = dataclasses.replace(PICK, made_with=text)
        assert made(config).action_dim == 8
        recorded = maniskill.env_args("PickCube-v1", config)
        assert recorded["env_kwargs"]["sensor_configs"] == {"width": 48} and recorded["env_version"] == maniskill.version()


@simulated
@pytest.mark.slow
def test_robots_without_the_usual_control_mode_get_their_own(made):
    assert made(dataclasses.replace(PICK, name="maniskill/RotateValveLevel0-v1")).action_dim == 9
    two = made(dataclasses.replace(PICK, name="maniskill/TwoRobotPickCube-v1"))
    commands = actions(2, width=two.action_dim)
    assert equal(roll(two, 0, commands), roll(two, 0, commands))


def test_pointcloud_keeps_robot_and_objects():
    xyzw = np.array([[0, 0, 0.2, 1], [0, 0, 0.3, 0], [0, 0, 0.001, 1], [0, -3, 0.2, 1], [0.1, 0, 0.02, 1]], np.float32)
    found = {tuple(point) for point in chosen_points(xyzw).tolist()}
    assert found == {tuple(xyzw[0, :3].tolist()), tuple(xyzw[4, :3].tolist())}


@simulated
def test_by_name():
    env = make_env(dataclasses.replace(PICK, name="maniskill/pushcube-v1", episode_steps=2))
    with closing(env):
        env.reset(seed=0)
        assert [env.step(np.zeros(env.difftop_spec.action_dim))[3] for _ in range(2)] == [False, True]


@simulated
@pytest.mark.parametrize("reward", ["dense", "sparse"])
def test_rewards(made, reward):
    """Dense: from 0 to 1, and larger near the cube; sparse: of success alone."""
    simulator = made(dataclasses.replace(PICK, obs="state", reward=reward))
    simulator.reset(3)
    still = simulator.step(np.zeros(7))
    for _ in range(20):
        offset = (simulator.base.cube.pose.p - simulator.base.agent.tcp.pose.p)[0].numpy()
        near = simulator.step(np.append((5 * offset).clip(-1, 1), [0, 0, 0, 1.0]))
    assert not (still.success or near.success)
    if reward == "sparse":
        assert still.reward == near.reward == 0
    else:
        assert 0 < still.reward < near.reward - 0.05 and near.reward <= 1


@simulated
def test_state_is_low_dim_s_and_pixels_are_the_first_camera_s(made):
    state, keyed = made(dataclasses.replace(PICK, obs="state")), made(PICK)
    assert equal(roll(state, 1, actions(2)), roll(keyed, 1, actions(2)))
    pixels, images = made(dataclasses.replace(IMAGE, obs="pixels")), made(IMAGE)
    assert shapes(pixels) == {"pixels": (3, 32, 32)}
    one, other = roll(pixels, 1, actions(1)), roll(images, 1, actions(1))
    assert all(np.array_equal(a["pixels"], b["base_camera_image"]) for a, b in zip(one, other, strict=True))


@simulated
@pytest.mark.parametrize("task", [name for name, info in maniskill.TASKS.items() if not info.assets])
def test_every_task_has_its_rewards_and_says_what_it_gives(task):
    for reward in ("dense", "sparse"):
        with closing(make_env(dataclasses.replace(PICK, name=f"maniskill/{task}", obs="state", reward=reward))) as env:
            env.reset(seed=0)
            paid, info = env.step(np.zeros(env.difftop_spec.action_dim))[1::3]
            assert np.isfinite(paid) and info["success"] in (0.0, 1.0)
            assert reward == "dense" or paid == info["success"]
