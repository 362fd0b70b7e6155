import json
import re
from contextlib import closing
from importlib.util import find_spec

import h5py
import numpy as np
import pytest

from difftop.command import main
from difftop.data.demonstrations import DemonstrationError
from difftop.data.robomimic import open_robomimic
from envs import EnvConfig
from envs import robosuite as tasks
from envs.robosuite import playback
from envs.robosuite.playback import convert_raw

pytestmark = [
    pytest.mark.slow,  # its numba code compiles for half a minute
    pytest.mark.skipif(find_spec("robosuite") is None, reason="robosuite is not installed; run `make sims`"),
]

CONFIG = EnvConfig("robosuite/Lift", obs="low_dim", reward="sparse")
FLAT = {"type": "OSC_POSE", "input_max": 1, "input_min": -1, "kp": 150, "control_delta": True}
FLAT |= {"output_max": [0.05] * 3 + [0.5] * 3, "output_min": [-0.05] * 3 + [-0.5] * 3}


def copied(simulator):
    return {key: np.array(value) for key, value in simulator.observe().items()}


def teleoperate(name, seed, steps, config=CONFIG, use_expert=False):
    """An episode as it was seen when it was recorded."""
    with closing(tasks.load(name, config)) as simulator:
        simulator.reset(seed)
        obs, rng = copied(simulator), np.random.default_rng(seed)
        expert = tasks.expert(name, simulator, rng) if use_expert else None
        rows, actions, states, rewards = [], [], [], []
        for _ in range(steps):
            rows.append(obs)
            states.append(simulator.states())
            actions.append(expert.act(obs).clip(-1, 1) if expert else rng.uniform(-1, 1, 7))
            rewards.append(simulator.step(actions[-1]).reward)
            obs = copied(simulator)
        seen = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
        return {"obs": seen, "actions": actions, "states": states, "rewards": rewards, "model_file": simulator.model_xml()}


def write_raw(path, name, episodes, numbers=None, xml=lambda text: text):
    """As robosuite's collection script writes it."""
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env"], data.attrs["repository_version"] = name, "1.4.0"
        data.attrs["env_info"] = json.dumps({"env_name": name, "robots": "Panda", "controller_configs": FLAT})
        for k, episode in zip(numbers or range(1, len(episodes) + 1), episodes, strict=True):
            group = data.create_group(f"demo_{k}")
            group.attrs["model_file"] = xml(episode["model_file"])
            for key in ("states", "actions"):
                group[key] = np.array(episode[key])
    return path


@pytest.fixture(scope="module")
def lifted():
    return teleoperate("Lift", 3, 45, use_expert=True)


def read(path, number=0):
    with h5py.File(path) as file:
        group = file[f"data/demo_{number}"]
        return {key: group[key][()] for key in ("actions", "states", "rewards", "dones")}, {
            key: values[()] for key, values in group["obs"].items()
        }


def test_what_is_played_back_is_what_was_seen(tmp_path, lifted):
    raw, out = write_raw(tmp_path / "demo.hdf5", "Lift", [lifted]), tmp_path / "out.hdf5"
    made = convert_raw(raw, out)
    assert (made.episodes, made.successes, made.steps) == (1, 1, 45) and made.largest_m < 1e-9
    columns, obs = read(out)
    assert set(obs) == set(lifted["obs"])
    for key, seen in lifted["obs"].items():
        np.testing.assert_allclose(obs[key], seen, atol=2e-6, err_msg=key)
    np.testing.assert_array_equal(columns["actions"], lifted["actions"])
    np.testing.assert_array_equal(columns["states"], lifted["states"])
    np.testing.assert_array_equal(columns["rewards"][:-1], lifted["rewards"][:-1])  # nothing follows the last
    assert columns["rewards"][-1] == 1 and columns["dones"][-1] == 1 and columns["dones"][0] == 0
    opened = open_robomimic(out, filter_key="success")
    assert opened.env.same_version(tasks.version())
    assert opened.env.raw["render_quality"] == "published"
    assert opened.env.name == "Lift" and opened.shapes == {key: seen.shape[1:] for key, seen in lifted["obs"].items()}


def test_poses_seen_from_the_hand_are_played_back_too(tmp_path):
    """robosuite computes them with the object's pose of the look before."""
    episode = teleoperate("PickPlaceCan", 1, 8)
    convert_raw(write_raw(tmp_path / "demo.hdf5", "PickPlaceCan", [episode]), tmp_path / "out.hdf5")
    _, obs = read(tmp_path / "out.hdf5")
    np.testing.assert_allclose(obs["object"], episode["obs"]["object"], atol=2e-6)


def test_files_of_robosuite_1_4_name_the_gripper_differently(tmp_path, lifted):
    def older(xml):
        return xml.replace("gripper0_right_", "gripper0_")

    raw = write_raw(tmp_path / "demo.hdf5", "Lift", [lifted], xml=older)
    assert convert_raw(raw, tmp_path / "out.hdf5").successes == 1
    _, obs = read(tmp_path / "out.hdf5")
    for key, seen in lifted["obs"].items():
        np.testing.assert_allclose(obs[key], seen, atol=2e-6, err_msg=key)
    with h5py.File(tmp_path / "out.hdf5") as file:  # the cube's size is that of the recording
        converted = file["data/demo_0"].attrs["model_file"]
    size = playback._object_shapes(playback.ElementTree.fromstring(lifted["model_file"]), ["cube_g0"])["cube_g0"][0]
    again = playback._object_shapes(playback.ElementTree.fromstring(converted), ["cube_g0"])["cube_g0"][0]
    np.testing.assert_allclose(again, size)
    assert "gripper0_right_finger_joint1" in converted


def test_a_scene_that_means_something_else_here_is_refused(tmp_path, lifted):
    def moved(xml):
        root = playback.ElementTree.fromstring(xml)
        base = next(body for body in root.iter("body") if body.get("name") == "robot0_base")
        base.set("pos", "-0.66 0 0.912")
        return playback.ElementTree.tostring(root, encoding="unicode").replace("gripper0_right_", "gripper0_")

    raw = write_raw(tmp_path / "demo.hdf5", "Lift", [lifted], xml=moved)
    with pytest.raises(DemonstrationError, match=r"body robot0_\w+ is 0\.1 m .* from where it was recorded at step 0"):
        convert_raw(raw, tmp_path / "out.hdf5")
    assert not (tmp_path / "out.hdf5").exists()


def test_scenes_beside_the_file_and_meshes_of_another_machine(tmp_path, lifted, caplog):
    """As robosuite 1.0 keeps scenes; the command does what the function does, and goes on to any format."""

    def elsewhere(xml):
        (tmp_path / "models").mkdir()
        (tmp_path / "models" / "model_1.xml").write_text(re.sub(r'file="[^"]*/', 'file="/somebody/robosuite/models/', xml))
        return "model_1.xml"

    raw, out = write_raw(tmp_path / "demo.hdf5", "Lift", [lifted], xml=elsewhere), tmp_path / "out.hdf5"
    with caplog.at_level("INFO", logger="difftop"):
        assert main(["mode=convert", f"dataset={raw}", f"out={out}"]) == 0
    assert "proved: bodies are where the recorded scenes have them in every state" in caplog.text
    _, obs = read(out)
    for key, seen in lifted["obs"].items():
        np.testing.assert_allclose(obs[key], seen, atol=2e-6, err_msg=key)
    assert open_robomimic(out, filter_key="success").length.tolist() == [45]
    assert main(["mode=convert", f"dataset={out}", f"out={tmp_path / 'anew.hdf5'}", "playback=true"]) == 0
    np.testing.assert_allclose(read(tmp_path / "anew.hdf5")[1]["object"], obs["object"], atol=2e-6)
    (tmp_path / "models" / "model_1.xml").unlink()
    with pytest.raises(DemonstrationError, match=r"its scene model_1\.xml is neither in .*models nor beside"):
        convert_raw(raw, tmp_path / "again.hdf5")


def test_images_are_made_from_the_states(tmp_path):
    config = EnvConfig("robosuite/Lift", obs="image", image_size=32, cameras=["agentview"], reward="sparse", depth=True)
    episode = teleoperate("Lift", 2, 2, config)
    raw = write_raw(tmp_path / "demo.hdf5", "Lift", [episode])
    convert_raw(raw, tmp_path / "out.hdf5", config=config)
    _, obs = read(tmp_path / "out.hdf5")
    assert obs["agentview_image"].shape == (2, 32, 32, 3) and obs["agentview_image"].dtype == np.uint8
    difference = np.abs(obs["agentview_image"].astype(int) - np.moveaxis(episode["obs"]["agentview_image"], 1, -1))
    assert difference.mean() < 0.5
    assert obs["agentview_depth"].shape == (2, 32, 32, 1) and obs["agentview_depth"].dtype == np.float32
    assert np.median(np.abs(obs["agentview_depth"] - np.moveaxis(episode["obs"]["agentview_depth"], 1, -1))) < 1e-4  # m


def test_episodes_stay_in_numeric_order_with_their_filters(tmp_path, lifted):
    short = [{**lifted, **{key: lifted[key][:n] for key in ("states", "actions")}} for n in (3, 4)]
    raw = write_raw(tmp_path / "demo.hdf5", "Lift", short, numbers=[10, 2])
    with h5py.File(raw, "a") as file:
        file["mask/train"], file["mask/valid"] = np.array([b"demo_10"]), np.array([b"demo_2"])
    assert convert_raw(raw, tmp_path / "out.hdf5").steps == 7
    assert open_robomimic(tmp_path / "out.hdf5").length.tolist() == [4, 3]
    assert open_robomimic(tmp_path / "out.hdf5", filter_key="train").length.tolist() == [3]
    assert convert_raw(raw, tmp_path / "out.hdf5", limit=1).steps == 4


def test_states_are_carried_over_joint_by_joint():
    recorded = {"box": "free", "slider": "slide", "elbow": "hinge"}
    state = np.array([0.5, *range(10, 17), 20, 30, *range(110, 116), 120, 130])
    columns = playback._columns(recorded, ["elbow", "box", "slider"])
    np.testing.assert_array_equal(state[columns], [0.5, 30, *range(10, 17), 20, 130, *range(110, 116), 120])


def test_bad_files_are_named(tmp_path, lifted):
    def broken(match, change):
        raw, out = write_raw(tmp_path / "raw.hdf5", "Lift", [lifted]), tmp_path / "out.hdf5"
        with h5py.File(raw, "a") as file:
            change(file, file["data/demo_1"])
        with pytest.raises(DemonstrationError, match=match):
            convert_raw(raw, out)
        assert not out.exists() and not list(tmp_path.glob("*.part"))

    def replaced(key, values):
        def change(file, demo):
            del demo[key]
            demo[key] = values

        return change

    states = np.array(lifted["states"])
    broken("demo_1 has no states, only actions", lambda file, demo: demo.__delitem__("states"))
    broken("has no attribute model_file", lambda file, demo: demo.attrs.__delitem__("model_file"))
    broken("model_file is no XML", lambda file, demo: demo.attrs.__setitem__("model_file", "<mujoco>"))
    broken(r"demo_1/states has shape \[45, 31\]; it must be \[T, 32\]", replaced("states", states[:, 1:]))
    broken(r"demo_1/actions has shape \[45, 14\]; it must be \[T, 7\]", replaced("actions", np.zeros((45, 14))))
    broken(r"demo_1/actions has shape \[44, 7\]", replaced("actions", np.zeros((44, 7))))
    broken("demo_1/states has NaN", replaced("states", np.where(states == states[3], np.nan, states)))
    broken(
        "they differ in cube_joint0, peg_joint0",
        lambda file, demo: demo.attrs.__setitem__("model_file", lifted["model_file"].replace("cube_joint0", "peg_joint0")),
    )
    broken(
        "recorded in Juggle; there are Lift",
        lambda file, demo: file["data"].attrs.__setitem__("env_info", json.dumps({"env_name": "Juggle", "robots": "Panda"})),
    )
    broken("data has no env_info", lambda file, demo: file["data"].attrs.__delitem__("env_info"))
    broken("this is no robosuite file", lambda file, demo: [file["data"].attrs.__delitem__(key) for key in ("env", "env_info")])
    broken("no demonstrations", lambda file, demo: file["data"].move("demo_1", "episode"))


def test_absolute_poses_are_not_played_back(tmp_path, lifted):
    poses = {**lifted, "actions": np.tile([0.1, 0.0, 0.9, np.pi, 0.0, 0.0, 1.0], (45, 1))}
    raw = write_raw(tmp_path / "demo.hdf5", "Lift", [poses])
    with pytest.raises(DemonstrationError, match=r"100% of the steps leave \[-1, 1\] by far, as absolute poses do"):
        convert_raw(raw, tmp_path / "out.hdf5")


def test_points_are_those_of_the_environment_at_that_state(tmp_path, lifted):
    raw, out = write_raw(tmp_path / "demo.hdf5", "Lift", [lifted]), tmp_path / "out.hdf5"
    assert main(["mode=convert", f"dataset={raw}", f"out={out}", "obs=pointcloud", "image_size=64"]) == 0
    columns, obs = read(out)
    assert set(obs) == {"robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos", "pointcloud"}
    assert obs["pointcloud"].shape == (45, 1024, 3) and obs["pointcloud"].dtype == np.float32
    assert open_robomimic(out, obs_keys=["pointcloud"]).shapes == {"pointcloud": (1024, 3)}
    with closing(tasks.load("Lift", EnvConfig("robosuite/Lift", obs="pointcloud", reward="sparse", image_size=64))) as simulator:
        simulator.reset(0)
        simulator.load_scene(lifted["model_file"])
        for step in (0, 20, 44):
            simulator.set_state(columns["states"][step])
            np.testing.assert_allclose(obs["pointcloud"][step], simulator.observe()["pointcloud"], atol=1e-6)


def test_points_lie_on_what_moves():
    """On the cube, whose place and size are known, and nowhere in the table; from every camera the same cube."""
    config = EnvConfig("robosuite/Lift", obs="pointcloud", reward="sparse", image_size=240)
    with closing(tasks.load("Lift", config)) as simulator:
        simulator.reset(3)
        sim = simulator.env.sim
        model, data, cube = sim.model._model, sim.data._data, simulator.env.cube_body_id
        half = model.geom_size[sim.model.geom_name2id("cube_g0")]
        for camera in ("agentview", "frontview", "robot0_eye_in_hand"):
            points = simulator._cameras().points(model, data, camera, 240, 240)
            local = np.abs((points - data.xpos[cube]) @ data.xmat[cube].reshape(3, 3))
            near = local[(local < half + 0.02).all(1)]
            assert len(near) > 20, camera
            on = np.abs((near - half).max(1)) < 1e-3  # on a face, 1 mm
            assert on.mean() > 0.95, (camera, on.mean())
            assert points[:, 2].min() > 0.795, camera  # the table's top is at 0.8 m
        cloud = simulator.observe()["pointcloud"]
        assert cloud.shape == (1024, 3) and np.isfinite(cloud).all() and len(np.unique(cloud, axis=0)) == 1024
