"""Absolute poses in robosuite: what displacements did, the poses that they led to do too."""

import dataclasses
import json
from contextlib import closing
from importlib.util import find_spec

import h5py
import numpy as np
import pytest

from difftop.command import main
from difftop.data.absolute import HAND, as_learned, range_of_poses
from difftop.data.files import open_demonstrations
from difftop.data.robomimic import Recording, write_demonstrations
from difftop.options import ConfigError
from difftop.poses import PoseRange, vector_of
from difftop.run.checkpoint import load_checkpoint
from envs import EnvConfig, EnvError, make_env, recorded_as
from envs import robosuite as tasks

pytestmark = [
    pytest.mark.slow,  # its numba code compiles for half a minute
    pytest.mark.skipif(find_spec("robosuite") is None, reason="robosuite is not installed; run `make sims`"),
]

CONFIG = EnvConfig("robosuite/Lift", obs="low_dim", reward="sparse")
SEED, STEPS = 3, 45


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A file with displacements, and beside them the goals that robosuite's controller made of them; and the cube's heights."""
    path = tmp_path_factory.mktemp("absolute") / "lift.hdf5"
    rows, actions, goals, heights = [], [], [], []
    with closing(tasks.load("Lift", CONFIG)) as simulator:
        simulator.reset(SEED)
        expert = tasks.expert("Lift", simulator, np.random.default_rng(SEED))
        controller = simulator.env.robots[0].part_controllers["right"]
        for _ in range(STEPS):
            rows.append({key: np.array(value) for key, value in simulator.observe().items()})
            actions.append(expert.act(rows[-1]).clip(-1, 1))
            simulator.step(actions[-1])
            turn = vector_of(controller.goal_ori)
            goals.append(np.concatenate([controller.goal_pos, turn, actions[-1][6:]]))
            heights.append(float(simulator.env.sim.data.body_xpos[simulator.env.cube_body_id][2]))
        assert simulator.judge()[1]
    obs = {key: np.stack([row[key] for row in rows]).astype(np.float32) for key in rows[0]}
    write_demonstrations(path, [Recording(obs, np.array(actions), np.zeros(STEPS))], recorded_as(CONFIG))
    with h5py.File(path, "r+") as file:
        file["data/demo_0/actions_abs"] = np.array(goals)
    return path, np.array(heights)


def absolute(path):
    """The demonstration as it is learned, and its environment."""
    made = open_demonstrations(path, obs_keys=[HAND], action_key="actions_abs", boxed=False)
    ranged = range_of_poses([made])
    return as_learned(made, ranged), dataclasses.replace(CONFIG, poses=ranged.text(), made_with=json.dumps(dict(made.env.kwargs)))


def test_a_demonstration_of_displacements_lifts_as_absolute_poses_too(recorded):
    path, heights = recorded
    made, config = absolute(path)
    assert PoseRange.read(config.poses).frame == "world"
    with closing(make_env(config)) as env:
        assert env.difftop_spec.action_dim == 10 and env.difftop_spec.poses == 1
        assert env.difftop_spec.action_low == pytest.approx(made.action_low.tolist())
        env.reset(seed=SEED)
        found, solved = [], False
        for action in made.actions.numpy():
            _, _, _, _, info = env.step(action)
            found.append(float(env.simulator.env.sim.data.body_xpos[env.simulator.env.cube_body_id][2]))
            solved = solved or bool(info["success"])
    assert solved and heights.max() - heights[0] > 0.04  # robosuite calls 4 cm above the table lifted
    np.testing.assert_allclose(found, heights, atol=1e-3)  # the cube is where it was, to 1 mm, at every step


def test_poses_seen_from_the_base_lead_to_the_same(recorded):
    path, heights = recorded
    made, config = absolute(path)
    with closing(make_env(config)) as env:  # where the base is
        env.reset(seed=SEED)
        controller = env.simulator.env.robots[0].part_controllers["right"]
        position, rotation = np.array(controller.origin_pos), np.array(controller.origin_ori)
    np.testing.assert_allclose(rotation, np.eye(3), atol=1e-9)  # so only positions differ
    ranged = PoseRange.read(config.poses)
    moved = [tuple(np.array(ends) - np.concatenate([position, np.zeros(7)])) for ends in (ranged.low, ranged.high)]
    seen = dataclasses.replace(config, poses=PoseRange(*moved, "base").text())
    with closing(make_env(seen)) as env:
        env.reset(seed=SEED)
        for action in made.actions.numpy():
            env.step(action)
        height = float(env.simulator.env.sim.data.body_xpos[env.simulator.env.cube_body_id][2])
    assert height == pytest.approx(heights[-1], abs=1e-3)


def test_a_run_learns_and_is_evaluated_on_poses(recorded, tmp_path, capsys):
    path, _ = recorded
    tiny = ["run.grad_steps=2", "run.batch_size=8", "threads=1", "device=cpu", f"root={tmp_path}", "env=robosuite/Lift"]
    tiny += [f"dataset={path}", "dataset.actions=actions_abs", "run.select_episodes=0", "run.eval_episodes=1", "run.eval_envs=1"]
    tiny += ["env.episode_steps=4", "run.video=false", "run.valid_fraction=0", "run.parallel=false"]
    assert main(["agent=leto", *tiny]) == 2
    assert "head=qp: its limits are of displacements per step, and actions are absolute poses" in capsys.readouterr().err
    assert main(["agent=bc", "agent.hidden_dims=[8]", *tiny]) == 0
    folder = tmp_path / "robosuite-Lift/bc/default/seed1"
    spec = load_checkpoint(folder).spec
    assert spec.poses == 1 and spec.action_dim == 10 and (folder / "evaluation" / "summary.json").is_file()
    assert main(["mode=eval", f"checkpoint={folder}", "run.eval_episodes=1", "run.video=false", "device=cpu", "head=clip"]) == 2


def test_what_poses_cannot_be_is_one_sentence(recorded):
    _, config = absolute(recorded[0])
    ranged = PoseRange.read(config.poses)
    two = PoseRange(ranged.low * 2, ranged.high * 2, "world").text()
    with pytest.raises(
        EnvError, match=r"its 1 arm\(s\) have 7 actions; absolute poses have 7 an arm, those of the data set are of 2"
    ):
        make_env(dataclasses.replace(CONFIG, poses=two))
    with pytest.raises(ConfigError, match="toy/reach: absolute poses as actions are not offered there"):
        make_env(EnvConfig("toy/reach", obs="low_dim", poses=config.poses))
