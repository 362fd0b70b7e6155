import dataclasses
import json
import math
from contextlib import closing
from importlib.util import find_spec

import numpy as np
import pytest

from difftop.options import ConfigError
from envs import EnvConfig, make_env, recorded_as, robomimic
from envs import robosuite as tasks
from envs.base import SimulatedEnv
from envs.errors import EnvError, RenderError

pytestmark = [
    pytest.mark.slow,  # its numba code compiles for half a minute
    pytest.mark.skipif(find_spec("robosuite") is None, reason="robosuite is not installed; run `make sims`"),
]

LOW_DIM = EnvConfig("robosuite/Lift", obs="low_dim", reward="sparse", render_quality="fast")
IMAGE = dataclasses.replace(LOW_DIM, obs="image", cameras=["agentview"])
FLAT = {  # as RoboMimic's v0.1 and v141 files have it
    "type": "OSC_POSE",
    "input_max": 1,
    "input_min": -1,
    "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],
    "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5],
    "kp": 150,
    "damping": 1,
    "impedance_mode": "fixed",
    "kp_limits": [0, 300],
    "damping_limits": [0, 10],
    "position_limits": None,
    "orientation_limits": None,
    "uncouple_pos_ori": True,
    "control_delta": True,
    "interpolation": None,
    "ramp_ratio": 0.2,
}
COMPOSITE = {  # as v15 files have it
    "type": "BASIC",
    "body_parts": {
        "right": {
            **{k: v for k, v in FLAT.items() if k not in ("damping", "damping_limits", "control_delta")},
            "damping_ratio": 1,
            "damping_ratio_limits": [0, 10],
            "input_type": "delta",
            "input_ref_frame": "world",
            "gripper": {"type": "GRIP"},
        }
    },
}


def actions(count, width=7, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (count, width))


def roll(simulator, seed, commands):
    simulator.reset(seed)
    rows, states = [copied(simulator)], [simulator.states()]
    for command in commands:
        simulator.step(command)
        rows.append(copied(simulator))
        states.append(simulator.states())
    return rows, np.array(states)


def copied(simulator):
    return {key: np.array(value) for key, value in simulator.observe().items()}


def shapes(simulator):
    return {key: seen.shape for key, seen in simulator.obs.items()}


@pytest.fixture(scope="module")
def lift():
    with closing(tasks.load("Lift", LOW_DIM)) as simulator:
        yield simulator


def test_an_episode_is_a_function_of_its_seed(lift):
    commands = actions(8)
    rows, states = roll(lift, 3, commands)
    _, others = roll(lift, 4, commands)
    again, repeated = roll(lift, 3, commands)
    with closing(tasks.load("Lift", LOW_DIM)) as other:
        _, elsewhere = roll(other, 3, commands)
    np.testing.assert_array_equal(states, repeated)
    np.testing.assert_array_equal(states, elsewhere)
    assert np.abs(states[0] - others[0]).max() > 1e-3
    for first, second in zip(rows, again, strict=True):
        assert all(np.array_equal(first[key], second[key]) for key in first)


def test_it_moves_as_robosuite_does(lift):
    """Looking at the state, and not looking in between, changes nothing in the physics."""
    import robosuite

    arguments = tasks.env_kwargs("Lift", LOW_DIM)
    quiet = {"has_renderer": False, "has_offscreen_renderer": False, "use_camera_obs": False, "ignore_done": True}
    stock = robosuite.make("Lift", **arguments, **quiet)
    stock.rng.bit_generator.state = np.random.default_rng(11).bit_generator.state
    stock.reset()
    commands, states = actions(10), []
    states.append(stock.sim.get_state().flatten())
    for command in commands:
        stock.step(command)
        states.append(stock.sim.get_state().flatten())
    stock.close()
    _, ours = roll(lift, 11, commands)
    np.testing.assert_array_equal(ours, np.array(states))


@pytest.mark.parametrize(
    ("name", "object_dim"),
    [("lift", 10), ("can", 14), ("square", 14)]
    + [pytest.param(name, dim, marks=pytest.mark.slow) for name, dim in (("tool_hang", 44), ("transport", 41), ("Stack", 23))],
)
def test_observations_are_as_the_spec_and_robomimic_say(name, object_dim):
    prefix = "robosuite" if name == "Stack" else "robomimic"
    with closing(make_env(dataclasses.replace(LOW_DIM, name=f"{prefix}/{name}", episode_steps=3))) as env:
        spec, arms = env.difftop_spec, 2 if name == "transport" else 1
        arm = {"eef_pos": (3,), "eef_quat": (4,), "gripper_qpos": (2,)}
        assert spec.shapes == {"object": (object_dim,)} | {f"robot{i}_{k}": v for i in range(arms) for k, v in arm.items()}
        assert spec.name == f"{prefix}/{name}" and ("reward" in spec.gives) == (name == "Stack")
        assert (spec.action_dim, spec.control_dt_s) == (7 * arms, 0.05)
        obs, _ = env.reset(seed=1)
        assert env.observation_space.contains(obs)
        for step in range(3):
            obs, reward, terminated, truncated, info = env.step(np.zeros(7 * arms))
            assert env.observation_space.contains(obs) and reward == 0 and not terminated and truncated == (step == 2)
        assert info["success"] == 0 and info["contact_force_n"] >= 0


def test_observations_are_of_the_state_at_the_end_of_the_step(lift):
    import mujoco

    lift.reset(5)
    for command in actions(6, seed=2):
        lift.step(command)
    obs = lift.observe()
    model, site = lift.env.sim.model._model, lift.env.robots[0].eef_site_id["right"]
    fresh = mujoco.MjData(model)
    fresh.qpos[:] = lift.env.sim.data.qpos
    mujoco.mj_forward(model, fresh)
    cube = fresh.xpos[lift.env.cube_body_id]
    np.testing.assert_allclose(obs["robot0_eef_pos"], fresh.site_xpos[site], atol=1e-12)
    np.testing.assert_allclose(obs["object"][:3], cube, atol=1e-12)
    np.testing.assert_allclose(obs["object"][7:], cube - fresh.site_xpos[site], atol=1e-12)


def test_poses_seen_from_the_hand_are_right_after_a_reset():
    """robosuite's own first observation has zeros there."""
    with closing(tasks.load("PickPlaceCan", LOW_DIM)) as simulator:
        simulator.reset(2)
        seen = simulator.observe()
        hand = simulator.env.sim.data.body_xmat[simulator.env.sim.model.body_name2id("gripper0_right_eef")].reshape(3, 3)
        distance = np.linalg.norm(seen["object"][7:10] - seen["robot0_eef_pos"])
        assert abs(np.linalg.norm(seen["object"][:3]) - distance) < 1e-6
        assert hand.shape == (3, 3) and np.linalg.norm(seen["object"][3:7]) == pytest.approx(1)


def test_the_force_on_the_hand_is_the_sum_of_its_contacts(lift):
    import mujoco

    lift.reset(0)
    free = lift.step(np.array([0, 0, 0.2, 0, 0, 0, -1.0]))
    assert free.contact_force_n == 0
    peak = max(lift.step(np.array([-0.3, 0, -1.0, 0, 0, 0, 1.0])).contact_force_n for _ in range(25))
    model, data = lift.env.sim.model._model, lift.env.sim.data._data
    mujoco.mj_forward(model, data)
    hand, total = set(lift._hands[0].tolist()), np.zeros(3)
    for i in range(data.ncon):
        contact, force = data.contact[i], np.zeros(6)
        mujoco.mj_contactForce(model, data, i, force)
        world = contact.frame.reshape(3, 3).T @ force[:3]  # on the second geom
        total += world * ((model.geom_bodyid[contact.geom2] in hand) - float(model.geom_bodyid[contact.geom1] in hand))
    assert lift.hand_force_n() == pytest.approx(np.linalg.norm(total), rel=1e-6)
    assert 5 < np.linalg.norm(total) <= peak  # it presses on the table


def test_action_1_moves_the_hand_a_quarter_of_what_it_commands(lift):
    """docs/environments.md says so, and limits on positions depend on it."""
    lift.reset(1)
    seen = []
    for _ in range(14):
        lift.step(np.array([0, 1.0, 0, 0, 0, 0, -1.0]))
        seen.append(lift.observe()["robot0_eef_pos"][1])
    assert 0.010 < seen[-1] - seen[-2] < 0.015


def test_the_flat_controller_of_old_files_is_the_same_environment():
    settings = {"robots": ["Panda"], "control_freq": 10, "reward_shaping": False, "horizon": 7, "has_renderer": True}
    flat, composite = ({**settings, "controller_configs": c} for c in (FLAT, COMPOSITE))
    configs = [dataclasses.replace(LOW_DIM, made_with=json.dumps(kwargs)) for kwargs in (flat, composite)]
    assert tasks.env_kwargs("Lift", configs[0]) == tasks.env_kwargs("Lift", configs[1])
    assert tasks.env_kwargs("Lift", configs[0])["lite_physics"] is False  # as robosuite 1.4 stepped
    results = []
    for config in configs:
        with closing(tasks.load("Lift", config)) as simulator:
            results.append(roll(simulator, 6, actions(5))[1])
            assert (simulator.control_dt_s, simulator.episode_steps) == (0.1, 7)
            assert simulator.env.robots[0].composite_controller.part_controllers["right"].input_ref_frame == "world"
    np.testing.assert_array_equal(*results)


def test_what_is_written_into_a_file_makes_the_same_environment():
    args = tasks.env_args("Lift", LOW_DIM)
    assert (args["env_name"], args["type"], args["env_version"]) == ("Lift", 1, tasks.version())
    again = dataclasses.replace(LOW_DIM, made_with=json.dumps(args["env_kwargs"]))
    assert tasks.env_kwargs("Lift", again) == args["env_kwargs"]
    wanted = dataclasses.replace(again, obs="image", image_size=64)
    assert tasks.env_kwargs("Lift", wanted)["camera_heights"] == [64, 64]
    named = {"camera_names": ["sideview", "agentview"], "camera_heights": [240, 84], "camera_widths": 96}
    from_file = dataclasses.replace(wanted, made_with=json.dumps(named), cameras=["agentview"])
    assert tasks.env_kwargs("Lift", from_file)["camera_heights"] == [84]
    assert tasks.env_kwargs("Lift", from_file)["camera_widths"] == [96]


def test_the_scene_that_is_kept_is_its_own(lift):
    lift.reset(8)
    mine = lift.model_xml()
    with closing(tasks.load("Stack", LOW_DIM)) as other:
        other.reset(8)
        assert lift.model_xml() == mine and "cube_main" in mine and "cubeA" in other.model_xml()


def test_images_are_upright():
    with closing(tasks.load("Lift", IMAGE)) as simulator:
        simulator.reset(4)
        obs = simulator.observe()
        assert shapes(simulator) == {
            "robot0_eef_pos": (3,),
            "robot0_eef_quat": (4,),
            "robot0_gripper_qpos": (2,),
            "agentview_image": (3, 84, 84),
        }
        image = obs["agentview_image"].astype(int)
        red = (image[0] > 1.6 * image[1] + 20) & (image[0] > 1.6 * image[2] + 20)
        data, model = simulator.env.sim.data._data, simulator.env.sim.model._model
        camera = simulator.env.sim.model.camera_name2id("agentview")
        seen = data.cam_xmat[camera].reshape(3, 3).T @ (data.xpos[simulator.env.cube_body_id] - data.cam_xpos[camera])
        focal = 42 / math.tan(math.radians(model.cam_fovy[camera]) / 2)
        row, column = 42 - focal * seen[1] / -seen[2], 42 + focal * seen[0] / -seen[2]
        assert red.sum() > 10
        assert np.argwhere(red).mean(0) == pytest.approx([row, column], abs=3)
        assert simulator.render(120, 160).shape == (120, 160, 3)


@pytest.mark.slow
def test_environments_do_not_see_each_others_images():
    """robosuite's own renderer shows the first one the second one's scene; and meshes stay loaded from one reset to the next."""
    with closing(tasks.load("Lift", IMAGE)) as first, closing(tasks.load("PickPlaceCan", IMAGE)) as second:
        first.reset(1)
        first.reset(7)
        before = first.observe()["agentview_image"]
        second.reset(7)
        other = second.observe()["agentview_image"]
        np.testing.assert_array_equal(first.observe()["agentview_image"], before)
        with closing(tasks.load("Lift", IMAGE)) as fresh:
            fresh.reset(7)
            np.testing.assert_array_equal(fresh.observe()["agentview_image"], before)
        assert np.abs(before.astype(int) - other).mean() > 10
        np.testing.assert_array_equal(second.observe()["agentview_image"], other)


@pytest.mark.slow
def test_published_images_are_robosuites_own():
    import robosuite

    config = dataclasses.replace(IMAGE, render_quality="published")
    with closing(tasks.load("Lift", config)) as ours, closing(tasks.load("Lift", IMAGE)) as fast:
        ours.reset(9)
        fast.reset(9)
        image, quick = ours.observe()["agentview_image"], fast.observe()["agentview_image"]
        kwargs = {k: v for k, v in tasks.env_kwargs("Lift", config).items() if not k.startswith("camera")}
        stock = robosuite.make(
            "Lift", **kwargs, has_offscreen_renderer=True, camera_heights=84, camera_widths=84, ignore_done=True
        )
        stock.rng.bit_generator.state = np.random.default_rng(9).bit_generator.state
        theirs = stock.reset()["agentview_image"][::-1].transpose(2, 0, 1)
        stock.close()
    difference = np.abs(image.astype(int) - theirs).mean()
    assert difference < 0.1 < np.abs(image.astype(int) - quick).mean() < 5


def test_an_unknown_camera_and_a_large_image_are_refused(lift):
    with pytest.raises(RenderError, match="no camera 'nowhere'; there are frontview"):
        lift._image("nowhere", 84, 84)
    with pytest.raises(RenderError, match="600 x 84 pixels is not offered"):
        lift._image("agentview", 600, 84)


def test_bad_requests_are_one_sentence():
    def changed(**options):
        return dataclasses.replace(LOW_DIM, **options)

    with pytest.raises(ConfigError, match=r"unknown environment\. Did you mean 'robosuite/Lift'"):
        make_env(changed(name="robosuite/Lifd"))
    with pytest.raises(ConfigError, match="JOINT_POSITION is not offered"):
        tasks.load("Lift", changed(control="JOINT_POSITION"))
    with pytest.raises(EnvError, match="are no JSON"):
        tasks.load("Lift", changed(made_with="{"))
    with pytest.raises(EnvError, match="must be an object"):
        tasks.load("Lift", changed(made_with="[1]"))
    absolute = {"controller_configs": {**FLAT, "control_delta": False}}
    with pytest.raises(EnvError, match="absolute poses"):
        tasks.load("Lift", changed(made_with=json.dumps(absolute)))
    with pytest.raises(EnvError, match=r"can't make Lift .*not_an_argument"):
        tasks.load("Lift", changed(made_with=json.dumps({"not_an_argument": 1})))


def test_closing_twice_is_fine():
    simulator = tasks.load("Lift", LOW_DIM)
    simulator.close()
    simulator.close()


def test_state_is_what_robosuite_tells_of_object_and_robot(lift):
    with closing(tasks.load("Lift", dataclasses.replace(LOW_DIM, obs="state"))) as simulator:
        assert list(simulator.obs) == ["object", "robot0_proprio-state"]
        env = SimulatedEnv(simulator, dataclasses.replace(LOW_DIM, obs="state"))
        obs, _ = env.reset(seed=3)
        lift.reset(3)
        assert obs["state"][:10] == pytest.approx(lift.observe()["object"], abs=1e-6)
        assert obs["state"].shape == (10 + 50,)


def test_the_dense_reward_is_robosuite_s_shaped_one_of_the_end_of_the_step():
    with closing(tasks.load("Lift", dataclasses.replace(LOW_DIM, reward="dense"))) as simulator:
        simulator.reset(1)
        outcome = simulator.step(np.zeros(7))
        gripper = simulator.env.robots[0].gripper["right"].important_sites["grip_site"]
        site = simulator.env.sim.data.site_xpos[simulator.env.sim.model.site_name2id(gripper)]
        distance = np.linalg.norm(site - simulator.env.sim.data.body_xpos[simulator.env.cube_body_id])
        assert outcome.reward == pytest.approx((1 - np.tanh(10 * distance)) / 2.25, abs=1e-9) and not outcome.success


def test_robomimic_rewards_success_alone_and_arguments_of_a_file_go_first():
    dense = dataclasses.replace(LOW_DIM, reward="dense")
    assert tasks.env_kwargs("Lift", dense)["reward_shaping"] is True
    assert robomimic.env_args("lift", dense)["env_kwargs"]["reward_shaping"] is False
    assert recorded_as(dense)["env_kwargs"]["reward_shaping"] is False
    named = dataclasses.replace(dense, made_with=json.dumps({"reward_shaping": False}))
    assert tasks.env_kwargs("Lift", named)["reward_shaping"] is False
    assert tasks.env_kwargs("ToolHang", dense)["reward_shaping"] is False  # it has none


def test_pixels_are_of_one_camera():
    config = dataclasses.replace(LOW_DIM, obs="pixels", image_size=32)
    with (
        closing(tasks.load("Lift", config)) as one,
        closing(tasks.load("Lift", dataclasses.replace(IMAGE, image_size=32))) as keyed,
    ):
        assert shapes(one) == {"pixels": (3, 32, 32)}
        one.reset(2)
        keyed.reset(2)
        np.testing.assert_array_equal(one.observe()["pixels"], keyed.observe()["agentview_image"])
