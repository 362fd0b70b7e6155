"""Shared fixtures: small agents and batches."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from agents.latent.agent import LatentAgent
from difftop.types import Batch, EnvSpec, ObsSpec, PlanResult

torch.set_num_threads(1)
os.environ.setdefault("DIFFTOP_NATIVE", "0")  # tests that want C++ say so: it takes a minute to compile

STATE = EnvSpec(
    name="test/state",
    obs={"state": ObsSpec("vector", (4,))},
    action_dim=2,
    episode_steps=20,
    control_dt_s=0.04,
    action_repeat=2,
    gives=frozenset({"reward"}),
)
PIXELS = replace(STATE, name="test/pixels", obs={"pixels": ObsSpec("image", (9, 84, 84))}, frame_stack=3)
SMALL = {
    "model": {"mlp_dim": 16, "encoder_dim": 16, "latent_dim": 8, "channels": 4},
    "acting": {"horizon_start": 3, "horizon": 3},
}


def task_spec(
    name: str, shapes: Mapping[str, tuple[int, ...]], action_dim: int, episode_steps: int = 20, control_dt_s: float = 0.05
) -> EnvSpec:
    """A task with observations of these shapes by key, and nothing else."""
    obs = {key: ObsSpec.of(shape, key) for key, shape in shapes.items()}
    return EnvSpec(name, obs, action_dim, episode_steps=episode_steps, control_dt_s=control_dt_s)


def random_batch(spec: EnvSpec, size: int = 6, steps: int = 5, seed: int = 0) -> Batch:
    """A batch of independent noise with one terminated transition."""
    g = torch.Generator().manual_seed(seed)
    seen = spec.obs[spec.only_key]
    shape = (size, steps + 1, *seen.shape)
    pixels = seen.kind == "image"
    obs = torch.randint(0, 256, shape, generator=g, dtype=torch.uint8) if pixels else torch.randn(shape, generator=g)
    terminated = torch.zeros(size, steps, dtype=torch.bool)
    terminated[0, -1] = True
    return Batch(
        obs=obs,
        action=torch.rand(size, steps, spec.action_dim, generator=g) * 2 - 1,
        reward=torch.rand(size, steps, generator=g),
        terminated=terminated,
        weight=torch.rand(size, generator=g),
        index=torch.arange(size),
    )


def planned_loss(
    agent: LatentAgent, obs: Tensor, start: Tensor | None = None, previous: Tensor | None = None
) -> tuple[Tensor, PlanResult]:
    """The policy-gradient loss on observations, from the starts that the agent would take itself where none are given."""
    assert agent.gradient is not None
    z = agent.model.encode(obs)
    start = agent.gradient.starts(agent.world, z, agent.config.acting.plan_length(0), agent.generator) if start is None else start
    return agent.gradient.planned_loss(agent.world, obs, z, start, agent.generator, previous)


@pytest.fixture(params=["state", "pixels"])
def spec(request: pytest.FixtureRequest) -> EnvSpec:
    """Both kinds of observation."""
    return STATE if request.param == "state" else PIXELS
