"""The trained checkpoints in examples/: they load, act, and are worth showing."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import difftop
from agents.registry import make_agent
from difftop.policy import Policy
from difftop.run.checkpoint import load_checkpoint
from difftop.run.weights import load_weights

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINTS = sorted((ROOT / "examples" / "checkpoints").iterdir())


def played(checkpoint: Path, planner: str = "") -> float:
    """Return of an episode."""
    saved = load_checkpoint(checkpoint, training=False)
    options = dict(saved.config["agent"])
    options["acting"] = dict(options["acting"]) | ({"planner": planner} if planner else {})
    agent = make_agent(options, saved.spec, seed=0)
    load_weights(agent, saved)
    policy = Policy(agent, saved.spec, saved.config, steps=saved.step)
    env = difftop.make_env(saved.spec.name)
    obs, _ = env.reset(seed=11)
    total, over = 0.0, False
    while not over:
        obs, reward, terminated, truncated, _ = env.step(policy.act(obs))
        total, over = total + float(reward), terminated or truncated
    return total


@pytest.mark.parametrize("checkpoint", CHECKPOINTS, ids=lambda path: path.name)
def test_a_checkpoint_is_small_says_nothing_of_a_machine_and_acts(checkpoint: Path) -> None:
    assert sum(file.stat().st_size for file in checkpoint.iterdir()) < 2e6
    for file in checkpoint.glob("*.json"):
        assert not re.search(r'": "/', file.read_text()), f"{file} names a path"
    policy = difftop.load_policy(checkpoint, "cpu")
    key, seen = next(iter(policy.spec.obs.items()))
    actions = policy.act({key: np.zeros((3, *seen.shape), np.float32)})
    assert actions.shape == (3, policy.spec.action_dim) and np.abs(actions).max() <= 1


@pytest.mark.slow
def test_the_readme_s_return_and_what_the_plan_adds() -> None:
    """On the sparse task the plan is worth about twice its prior; one episode each."""
    checkpoint = ROOT / "examples" / "checkpoints" / "cartpole-swingup-sparse"
    planned, prior = played(checkpoint), played(checkpoint, "none")
    assert planned > 650, planned
    assert planned > 1.2 * prior, (planned, prior)
    assert played(ROOT / "examples" / "checkpoints" / "cartpole-swingup") > 750
