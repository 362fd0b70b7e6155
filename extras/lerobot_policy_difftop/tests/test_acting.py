"""A policy trained here acts inside LeRobot's own evaluation loop; skipped where lerobot isn't installed."""

from __future__ import annotations

import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest

pytest.importorskip("lerobot")
sys.path[:0] = [str(Path(__file__).parents[1] / "src"), str(Path(__file__).parents[3])]


class Reach(gymnasium.Env):
    """A point that is moved in pixels; LeRobot's names of observations."""

    metadata = {"render_fps": 10}  # noqa: RUF012 - as Gymnasium has it
    observation_space = gymnasium.spaces.Dict({"agent_pos": gymnasium.spaces.Box(-10, 10, (5,))})
    action_space = gymnasium.spaces.Box(0, 512, (2,))
    _max_episode_steps = 6
    task = task_description = "reach"

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.acted = []
        return {"agent_pos": np.zeros(5, np.float32)}, {}

    def step(self, action):
        self.acted.append(action)
        over = len(self.acted) == 6
        return {"agent_pos": np.full(5, len(self.acted), np.float32)}, 0.0, False, over, {"is_success": False}


def test_a_policy_acts_in_lerobots_rollout(tmp_path: Path) -> None:
    from lerobot.processor import PolicyProcessorPipeline
    from lerobot.scripts.lerobot_eval import rollout
    from lerobot_policy_difftop import DifftopConfig, DifftopPolicy, make_difftop_pre_post_processors

    from difftop.command import main
    from tests.datasets.files import zarr_folder

    made = zarr_folder(tmp_path / "pusht.zarr")
    short = ["agent=leto", "agent.window=3", "agent.horizon=2", "agent.hidden_dim=8", "run.grad_steps=2", "device=cpu"]
    short += ["agent.limits.free=[]", f"root={tmp_path / 'runs'}"]
    assert main([f"dataset={tmp_path / 'pusht.zarr'}", *short]) == 0
    config = DifftopConfig(checkpoint=str(tmp_path / "runs/data-pusht/leto/default/seed1"), device="cpu")
    policy = DifftopPolicy(config).eval()
    before, after = make_difftop_pre_post_processors(config)
    same = PolicyProcessorPipeline(steps=[])
    env = gymnasium.vector.SyncVectorEnv([Reach, Reach])
    found = rollout(env, policy, same, same, before, after, seeds=[0, 1])
    low, high = made["action"].min(0), made["action"].max(0)
    action = found["action"].numpy()
    assert action.shape[-1] == 2 and (action >= low - 1e-2).all() and (action <= high + 1e-2).all()
    assert np.ptp(action) > 0
