"""robosuite's other tasks, those of two arms among them, and LeTO on all of their actions."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from agents.registry import make_agent
from difftop.data.demonstrations import DemonstrationError
from difftop.run.protocols import PROTOCOLS
from envs import EnvConfig, gives, make_env, robomimic, robosuite
from envs.robosuite.playback import convert_raw
from envs.robosuite.tasks import TASKS
from tests.agents.imitators import random_batch

INSTALLED = pytest.mark.skipif(find_spec("robosuite") is None, reason="robosuite is not installed; run `make sims`")
SLOW = pytest.mark.slow  # its numba code compiles for half a minute
LOW_DIM = EnvConfig("robosuite/Lift", obs="low_dim", render_quality="fast")
ARM = {"eef_pos": (3,), "eef_quat": (4,), "gripper_qpos": (2,)}
HAND = {key: ARM[key] for key in ("eef_pos", "eef_quat")}
# Size of `object`, numbers of each arm, actions of each arm, and how many arms.
SPECS = {
    "NutAssembly": (28, ARM, 7, 1),
    "NutAssemblySingle": (15, ARM, 7, 1),
    "NutAssemblyRound": (14, ARM, 7, 1),
    "Door": (14, ARM, 7, 1),
    "Wipe": (8, HAND, 6, 1),
    "TwoArmLift": (19, ARM, 7, 2),
    "TwoArmHandover": (16, ARM, 7, 2),
    "TwoArmPegInHole": (17, HAND, 6, 2),
}


def test_the_tables_name_them() -> None:
    before = {"Lift", "LiftPlate", "Stack", "PickPlaceCan", "NutAssemblySquare", "ToolHang", "TwoArmTransport"}
    assert set(SPECS) | before == set(TASKS)
    assert [name for name, task in TASKS.items() if task.robots == 2] == [name for name in TASKS if name.startswith("TwoArm")]
    assert "states" not in gives("robosuite/Wipe") and "states" in gives("robosuite/Door")  # what was wiped is in no state
    for task, name in {"Lift": "lift", "PickPlaceCan": "can", "ToolHang": "tool_hang", "TwoArmTransport": "transport"}.items():
        assert robomimic.canonical(task) == name == robomimic.canonical(task.lower())
    assert robomimic.canonical("Door") is None
    assert PROTOCOLS["leto_ph"].steps("robosuite/TwoArmLift") == 0  # no paper's: the task's own


@INSTALLED
@SLOW
@pytest.mark.parametrize("name", SPECS)
def test_reset_and_step(name: str) -> None:
    size, arm, actions, arms = SPECS[name]
    config = dataclasses.replace(LOW_DIM, name=f"robosuite/{name}", episode_steps=3)
    with closing(make_env(config)) as env:
        spec = env.difftop_spec
        assert spec.shapes == {"object": (size,)} | {f"robot{i}_{key}": shape for i in range(arms) for key, shape in arm.items()}
        assert spec.action_dim == actions * arms
        command = np.random.default_rng(0).uniform(-1, 1, (3, spec.action_dim))
        episodes = []
        for seed in (1, 2, 1):
            obs, _ = env.reset(seed=seed)
            rows = [np.concatenate([obs[key] for key in sorted(obs)])]
            for action in command:
                obs, reward, terminated, truncated, info = env.step(action)
                assert env.observation_space.contains(obs) and np.isfinite(reward) and not terminated
                rows.append(np.append(np.concatenate([obs[key] for key in sorted(obs)]), reward))
            assert truncated and info["success"] == 0
            episodes.append(np.concatenate(rows))
        np.testing.assert_array_equal(episodes[0], episodes[2])
        assert np.abs(episodes[0] - episodes[1]).max() > 1e-4


@INSTALLED
@SLOW
def test_what_is_wiped_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wipe's reward wipes: it is asked once a step, by robosuite, and its answer is the reward."""
    with closing(robosuite.load("Wipe", dataclasses.replace(LOW_DIM, name="robosuite/Wipe"))) as simulator:
        simulator.reset(1)
        answers = iter([0.25, 0.5])
        monkeypatch.setattr(simulator.env, "reward", lambda action=None: next(answers))
        assert [simulator.step(np.zeros(6)).reward for _ in range(2)] == [0.25, 0.5]


def test_states_that_do_not_tell_all_are_not_played_back(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "wipe.hdf5", "w") as file:
        file.create_group("data").attrs["env_args"] = json.dumps(
            {"env_name": "Wipe", "type": 1, "env_kwargs": {"robots": "Panda"}}
        )
    with pytest.raises(DemonstrationError, match="recorded in Wipe, whose states don't tell all of it"):
        convert_raw(tmp_path / "wipe.hdf5", tmp_path / "out.hdf5")


@INSTALLED
@SLOW
def test_the_nut_is_the_seeds() -> None:
    """robosuite's own draw depends on how a process hashes strings."""
    code = (
        "from envs import EnvConfig, make_env\n"
        "env = make_env(EnvConfig('robosuite/NutAssemblySingle', obs='low_dim', render_quality='fast'))\n"
        "print([round(float(env.reset(seed=k)[0]['object'].sum()), 4) for k in range(6)])\n"
    )
    how: dict[str, Any] = {"capture_output": True, "text": True}
    done = [subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": seed}, **how) for seed in "12"]
    assert done[0].returncode == 0, done[0].stderr
    assert done[0].stdout == done[1].stdout


@INSTALLED
@SLOW
@pytest.mark.parametrize("name", ["TwoArmLift", "TwoArmHandover", "TwoArmTransport"])
def test_leto_acts_with_two_arms_within_limits(name: str) -> None:
    """One update on noise with 14 actions, and an episode: no change of a limited action is above the limit."""
    config = dataclasses.replace(LOW_DIM, name=f"robosuite/{name}", episode_steps=12)
    with closing(make_env(config)) as env:
        values = {"name": "leto", "window": 4, "horizon": 3, "hidden_dim": 16, "limits": {"acceleration": 0.05, "free": [6, 13]}}
        agent = make_agent(values, env.difftop_spec, seed=0, total_steps=1)
        metrics = agent.update(random_batch(agent, spec=env.difftop_spec), 0).metrics
        assert bool(metrics["train/loss"].isfinite()) and float(metrics["train/qp/uncertified"]) == 0
        with torch.no_grad():
            agent.policy.linear.bias.fill_(3.0)  # it wants the limits
        actor, limited = agent.actor(1, seed=0), [i for i in range(14) if i not in (6, 13)]
        obs, _ = env.reset(seed=1)
        executed = []
        for step in range(12):
            seen = {key: torch.from_numpy(np.asarray(value))[None] for key, value in obs.items()}
            action = actor.act(seen, torch.tensor([step == 0]))[0].numpy()
            obs, *_ = env.step(action)
            executed.append(action)
        actions = np.array(executed)
        changes = np.diff(actions[:, limited], axis=0, prepend=0)
        assert int((np.abs(changes) > 0.05 + 1e-6).sum()) == 0 and int((np.abs(actions) > 1).sum()) == 0
        assert np.abs(changes).max() > 0.049  # and it uses them
        assert np.abs(np.diff(actions[:, [6, 13]], axis=0, prepend=0)).max() > 0.5  # grippers are free
        assert actor.metrics()["head/braked"] == 0
