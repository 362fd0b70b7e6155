"""ManiSkill: its tasks behind our interface, and demonstrations that its motion planner makes."""

import dataclasses
import json
import os
import subprocess
import sys
from contextlib import closing
from importlib.util import find_spec

import h5py
import numpy as np
import pytest

from difftop.data.demonstrations import DemonstrationError
from difftop.data.maniskill import open_maniskill
from envs import maniskill, maniskill_demos
from envs.errors import EnvError
from envs.keyed import KeyedEnv
from envs.tasks import TaskConfig, list_tasks, make_task

PICK = TaskConfig(name="maniskill/PickCube-v1")
PEG = TaskConfig(name="maniskill/PegInsertionSide-v1")
IMAGE = dataclasses.replace(PICK, obs="image", image_size=32, video_size=32)
POINTS = dataclasses.replace(PICK, obs="pointcloud", image_size=64, video_size=32)


def missing():
    """Why the simulator can't run here, empty where it can. A worker that dies in the driver takes only itself along."""
    if find_spec("mani_skill") is None:
        return f"mani_skill is not installed; {maniskill.INSTALL_LINE}"
    found = subprocess.run(
        [sys.executable, "-c", "import sapien; sapien.render.RenderSystem(sapien.Device('cpu'))"], capture_output=True
    )
    return "" if found.returncode == 0 else f"no Vulkan device; run `{maniskill.VULKAN_LINE}`"


REASON = missing()
pytestmark = pytest.mark.slow  # importing the suite and compiling its first image takes twenty seconds
simulated = pytest.mark.skipif(bool(REASON), reason=REASON)


def task_of(config):
    return config.name.partition("/")[2]


@pytest.fixture(scope="module")
def made():
    """Simulators by config, each made once."""
    found = {}

    def make(config):
        key = json.dumps(dataclasses.asdict(config))
        if key not in found:
            found[key] = maniskill.load(task_of(config), config)
        return found[key]

    yield make
    for simulator in found.values():
        simulator.close()
        simulator.close()


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """Demonstrations by obs, each file made once."""
    folder, found = tmp_path_factory.mktemp("maniskill"), {}

    def make(config, episodes=2):
        path = folder / f"{config.obs}.h5"
        if config.obs not in found:
            found[config.obs] = maniskill.make_demonstrations(task_of(config), episodes, path, 1, config)
        return found[config.obs]

    return make


def actions(count, seed=0, width=7):
    return np.random.default_rng(seed).uniform(-1, 1, (count, width))


def roll(simulator, seed, commands):
    first = simulator.reset(seed)
    return [first, *(simulator.step(command)[0] for command in commands)]


def equal(a, b):
    return all(x.keys() == y.keys() and all(np.array_equal(x[k], y[k]) for k in x) for x, y in zip(a, b, strict=True))


def test_tasks_are_known_without_the_package():
    assert len(maniskill.TASKS) == 40 and "maniskill/PickCube-v1" in list_tasks()
    steps = {
        name: maniskill.TASKS[f"{name}-v1"].episode_steps for name in ("PickCube", "StackCube", "PegInsertionSide", "PushCube")
    }
    assert steps == {"PickCube": 100, "StackCube": 200, "PegInsertionSide": 300, "PushCube": 100}
    code = "import sys, envs.maniskill, envs.maniskill_demos; assert not {'mani_skill', 'sapien', 'mplib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@simulated
@pytest.mark.slow
def test_registered_ids_planners_and_assets_are_as_listed():
    import mani_skill.envs  # noqa: F401
    from mani_skill.examples.motionplanning.panda.run import MP_SOLUTIONS
    from mani_skill.utils.registration import REGISTERED_ENVS

    assert set(maniskill.TASKS) <= set(REGISTERED_ENVS)
    assert {name for name, known in maniskill.TASKS.items() if known.planner} == set(MP_SOLUTIONS) - {
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
    assert simulator.spec.shapes == {"state": (size,)} and simulator.spec.action_dim == 7
    assert simulator.spec.episode_steps == steps and simulator.spec.control_dt_s == pytest.approx(0.05)
    env = KeyedEnv(simulator)
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
    assert max(simulator.step(up)[1].contact_force_n for _ in range(5)) == 0
    assert max(simulator.step(down)[1].contact_force_n for _ in range(20)) > 20


@simulated
def test_success_is_told_and_does_not_end_the_episode(made):
    """A state that is the solution: the cube at the goal, the robot at rest."""
    simulator = made(PICK)
    env = KeyedEnv(simulator)
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
    assert simulator.spec.shapes["base_camera_image"] == (3, 32, 32) and simulator.spec.shapes["extra/goal_pos"] == (3,)
    assert list(simulator.spec.shapes)[:-1] == sorted(list(simulator.spec.shapes)[:-1])
    env = KeyedEnv(simulator, video_size=32)
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
    images = [key for key in simulator.spec.shapes if key.endswith("_image")]
    assert images == ["hand_camera_image"]
    both = made(dataclasses.replace(config, cameras=[]))
    commands = actions(3)
    one, two = (roll(each, 2, commands)[-1] for each in (simulator, both))
    assert np.array_equal(one["hand_camera_image"], two["hand_camera_image"]) and "base_camera_image" in two


@simulated
@pytest.mark.slow
def test_point_clouds_show_the_cube(made):
    simulator = made(POINTS)
    assert simulator.spec.shapes["pointcloud"] == (maniskill.POINTS, 3)
    cloud = simulator.reset(4)["pointcloud"]
    assert (cloud[:, 2] > 0.005).all() and np.abs(cloud).max() < 1
    cube = simulator.base.cube.pose.p[0].numpy()
    assert np.linalg.norm(cloud - cube, axis=1).min() < 0.04
    assert equal([{"p": cloud}], [{"p": simulator.reset(4)["pointcloud"]}])


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
    with pytest.raises(EnvError, match=message) as caught:
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
    code = f"from envs import maniskill, tasks; maniskill.load('PickCube-v1', tasks.{PICK!r})"
    environ = os.environ | {"VK_DRIVER_FILES": "/nowhere", "VK_ICD_FILENAMES": "/nowhere"}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and "ManiSkill needs a Vulkan device even for states" in last and maniskill.VULKAN_LINE in last


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
        assert made(config).spec.action_dim == 8
        recorded = maniskill.env_args("PickCube-v1", config)
        assert recorded["env_kwargs"]["sensor_configs"] == {"width": 48} and recorded["env_version"] == maniskill.version()


@simulated
@pytest.mark.slow
def test_robots_without_the_usual_control_mode_get_their_own(made):
    assert made(dataclasses.replace(PICK, name="maniskill/RotateValveLevel0-v1")).spec.action_dim == 9
    two = made(dataclasses.replace(PICK, name="maniskill/TwoRobotPickCube-v1"))
    commands = actions(2, width=two.spec.action_dim)
    assert equal(roll(two, 0, commands), roll(two, 0, commands))


@simulated
@pytest.mark.slow
@pytest.mark.parametrize("config", [PICK, IMAGE, POINTS], ids=["low_dim", "image", "pointcloud"])
def test_the_file_and_the_simulator_agree_to_the_bit(made, planned, config):
    report = planned(config)
    assert report.episodes == 2 and report.attempts >= report.planned >= report.converted >= 2 and report.seconds > 0
    described = json.loads(report.path.with_suffix(".json").read_text())
    recorded = open_maniskill(report.path).env
    simulator = made(dataclasses.replace(config, made_with=json.dumps({"env_kwargs": dict(recorded.kwargs)})))
    shapes = dict(simulator.spec.shapes)
    assert shapes == made(config).spec.shapes
    demonstrations = open_maniskill(report.path, obs_keys=list(shapes), successful_only=True)
    assert demonstrations.shapes == shapes and len(demonstrations) == 2
    recorded.check_version(maniskill.version())
    env = KeyedEnv(simulator)
    for episode, told in zip(demonstrations.episodes(images=True), described["episodes"], strict=True):
        obs, _ = env.reset(seed=told["episode_seed"])
        info = {"success": 0.0}
        for t, action in enumerate(episode.actions.numpy()):
            for key in shapes:
                assert np.array_equal(obs[key], episode.obs[key][t].numpy()), (key, t)
            obs, _, _, _, info = env.step(action)
        assert info["success"] == 1


@simulated
@pytest.mark.slow
def test_a_file_that_is_there_is_kept_if_the_same_arguments_made_it(planned, monkeypatch):
    report = planned(PICK)
    before = report.path.read_bytes()
    monkeypatch.setattr(maniskill_demos, "_plan", lambda *_: pytest.fail("planned again"))
    again = maniskill.make_demonstrations("PickCube-v1", 2, report.path, 1, PICK)
    assert again == dataclasses.replace(report, seconds=0.0) and report.path.read_bytes() == before
    with pytest.raises(EnvError, match="not made by the same arguments; delete it"):
        maniskill.make_demonstrations("PickCube-v1", 2, report.path, 7, PICK)


@simulated
@pytest.mark.slow
def test_the_planner_solves_most_episodes_and_raw_files_are_told_what_to_do(tmp_path):
    seeds = [0, 1, 2]
    assert maniskill_demos._plan("PushCube-v1", seeds, str(tmp_path), 32) == len(seeds)
    with pytest.raises(DemonstrationError, match=r"no observations, only .*replay_trajectory"):
        open_maniskill(tmp_path / "planned.h5")
    path = maniskill_demos._convert(tmp_path, "state", "pd_ee_delta_pos", len(seeds))  # as ManiSkill's own tools leave it
    official = open_maniskill(path)
    assert len(official) == 3 and official.shapes == {"state": (35,)} and official.actions.shape[1] == 4
    official.env.check_version(maniskill.version())


REFUSED = {
    "no planner": ("RollBall-v1", 1, PICK, "no motion planner for it, only for PickCube-v1, "),
    "none": ("PickCube-v1", 0, PICK, "episodes=0 must be at least 1"),
    "control": ("PickCube-v1", 1, dataclasses.replace(PICK, control="pd_joint_vel"), "'pd_joint_vel' can't be converted to"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_requests(tmp_path, name):
    task, episodes, config, message = REFUSED[name]
    with pytest.raises(EnvError, match=message):
        maniskill.make_demonstrations(task, episodes, tmp_path / "a.h5", 0, config)
    assert not list(tmp_path.iterdir())


@simulated
def test_a_planner_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(maniskill_demos, "_plan", lambda *_: 0)
    with pytest.raises(EnvError, match="26 attempts gave only 0 of 1 episodes"):
        maniskill.make_demonstrations("PickCube-v1", 1, tmp_path / "a.h5", 0, PICK)
    assert not list(tmp_path.iterdir())


def test_a_process_that_fails_or_hangs_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "broken.py").write_text("raise ValueError('two\\nlines')\n")
    (tmp_path / "slow.py").write_text("import time; time.sleep(30)\n")
    with pytest.raises(EnvError, match=r"broken failed with exit code 1 \(lines\)"):
        maniskill_demos._run(["broken"], str(tmp_path), 1)
    monkeypatch.setattr(maniskill_demos, "_START_S", 0.5)
    monkeypatch.setattr(maniskill_demos, "_EPISODE_S", 0.0)
    with pytest.raises(EnvError, match="slow was still at work after 0 s"):
        maniskill_demos._run(["slow"], str(tmp_path), 1)


def test_episodes_are_appended_with_new_numbers_and_without_what_no_policy_uses(tmp_path):
    def write(path, numbers):
        with h5py.File(path, "w") as file:
            for k in numbers:
                group = file.create_group(f"traj_{k}")
                group["actions"] = np.full((3, 7), k / 10, np.float32)
                group["obs/agent/qpos"] = np.full((4, 9), k, np.float32)
                group["obs/sensor_data/cam/rgb"] = np.full((4, 8, 8, 3), k, np.uint8)
                group["obs/sensor_param/cam/intrinsic_cv"] = np.ones((4, 3, 3), np.float32)
        return [{"episode_id": k, "elapsed_steps": 3, "success": True, "episode_seed": 100 + k} for k in numbers]

    described = []
    with h5py.File(tmp_path / "all.h5", "w") as file:
        for batch, numbers in enumerate(([0, 2], [1, 3])):
            path = tmp_path / f"{batch}.h5"
            maniskill_demos._append(file, described, path, write(path, numbers), 3)
        assert "sensor_param" not in file["traj_0/obs"]
    assert [(e["episode_id"], e["episode_seed"]) for e in described] == [(0, 100), (1, 102), (2, 101)]
    (tmp_path / "all.json").write_text(json.dumps({"env_info": {"env_id": "PickCube-v1"}, "episodes": described}))
    read = open_maniskill(tmp_path / "all.h5", obs_keys=["cam_image", "agent/qpos"])
    assert [float(e.obs["agent/qpos"][0, 0]) for e in read.episodes()] == [0, 2, 1]
    assert [int(e.obs["cam_image"][2].max()) for e in read.episodes(images=True)] == [0, 2, 1]


def test_pointcloud_keeps_robot_and_objects():
    xyzw = np.array([[0, 0, 0.2, 1], [0, 0, 0.3, 0], [0, 0, 0.001, 1], [0, -3, 0.2, 1], [0.1, 0, 0.02, 1]], np.float32)
    found = {tuple(point) for point in maniskill.chosen_points(xyzw).tolist()}
    assert found == {tuple(xyzw[0, :3].tolist()), tuple(xyzw[4, :3].tolist())}


@simulated
def test_by_name():
    env = make_task(dataclasses.replace(PICK, name="maniskill/pushcube-v1", episode_steps=2))
    with closing(env):
        env.reset(seed=0)
        assert [env.step(np.zeros(env.task_spec.action_dim))[3] for _ in range(2)] == [False, True]
