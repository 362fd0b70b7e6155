"""Small imitation policies, their batches, and bases on disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agents.policies.training import ImitationAgent
from agents.registry import make_agent
from difftop.data.windows import WindowBatch
from difftop.run.checkpoint import save_checkpoint
from difftop.types import EnvSpec
from tests.conftest import task_spec

SPEC = task_spec("test/task", {"eef_pos": (3,), "object": (4,)}, 4, episode_steps=60, control_dt_s=0.05)
SMALL: dict[str, dict[str, Any]] = {
    "leto": {"window": 4, "horizon": 3, "hidden_dim": 16},
    "bc": {"hidden_dims": [32, 32], "window": 2, "horizon": 3},
    "rnn_gmm": {"window": 4, "horizon": 3, "hidden_dim": 16},
    "ibc": {"hidden_dims": [32, 32], "negatives": 32, "samples": 64, "window": 2},
    "diffusion": {"widths": [16], "step_dim": 16, "horizon": 4, "execute": 3, "steps": 20, "ddim_steps": 4},
    "diffusion_transformer": {
        "name": "diffusion",
        "backbone": "transformer",
        "layers": 1,
        "dim": 16,
        "heads": 2,
        "horizon": 4,
        "execute": 3,
        "steps": 20,
        "ddim_steps": 4,
    },
    "act": {"dim": 16, "heads": 2, "feedforward": 32, "encoder_layers": 1, "decoder_layers": 1, "horizon": 4, "latent_dim": 3},
    "residual": {"hidden_dims": [32], "window": 4, "horizon": 3, "base": "rnn_gmm"},
}
CASES = tuple(SMALL)
NAMES = tuple(name for name in CASES if SMALL[name].get("name", name) == name)


def make(
    name: str, *, seed: int = 0, spec: EnvSpec = SPEC, steps: int = 100, home: Path | None = None, **more: Any
) -> ImitationAgent:
    """A small agent; `residual` gets a base from a run in `home`."""
    values = {"name": name, **SMALL[name], **more}
    if name == "residual" and home is not None:
        values["base_checkpoint"] = str(base_run(home, values["base"], spec))
    agent = make_agent(values, spec, seed=seed, total_steps=steps)
    if name == "residual" and home is not None:
        agent.policy.base.read_()
        if agent.average:
            agent.average.copy_(agent.policy)
    return agent


def base_run(home: Path, name: str, spec: EnvSpec = SPEC, **more: Any) -> Path:
    """A checkpoint of an untrained policy, with averaged weights that differ from the trained ones."""
    folder = home / name
    if not folder.exists():
        base = make(name, seed=7, spec=spec, **more)
        values = {"name": name, **SMALL[name], **more}
        save_checkpoint(
            folder, step=0, agent_name=name, config={"agent": values}, spec=spec, model=base.state_dict(), train_state={}
        )
    return folder


def observations(*lead: int, spec: EnvSpec = SPEC, seed: int = 0, scale: float = 1.0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {key: scale * torch.randn(*lead, *shape, generator=g) for key, shape in spec.shapes.items()}


def random_batch(agent: ImitationAgent, size: int = 6, seed: int = 0, spec: EnvSpec = SPEC) -> WindowBatch:
    """Noise, without padding."""
    shape, g = agent.windows, torch.Generator().manual_seed(seed)
    span = shape.window + shape.horizon - 1
    actions = torch.rand(size, span, spec.action_dim, generator=g) * 1.6 - 0.8
    return WindowBatch(observations(size, shape.window, spec=spec, seed=seed), actions, torch.ones(size, span, dtype=torch.bool))


def padded_batch(agent: ImitationAgent, size: int = 6, seed: int = 0) -> WindowBatch:
    """Noise whose windows begin or end as early and late as the agent's shape allows; row 0 has no padding."""
    batch, shape = random_batch(agent, size, seed), agent.windows
    steps = torch.arange(batch.mask.shape[1])
    rows = torch.arange(size)
    before, after = rows % (shape.pad_before + 1), (rows // 2) % (shape.pad_after + 1)
    after = torch.minimum(after, len(steps) - 1 - before)  # one real step at least
    mask = (steps >= before[:, None]) & (steps < len(steps) - after[:, None])
    assert bool(mask.any(1).all()) and not bool(mask.all())
    return replace(batch, mask=mask)


def rolled(actor: Any, obs: dict[str, Tensor], begins: Tensor | None = None) -> Tensor:
    """Actions `[N, T, A]` on observations `[N, T, ...]`; episodes begin where `begins [N, T]` says, or at the first call."""
    n, t = next(iter(obs.values())).shape[:2]
    begins = torch.arange(t).expand(n, t) == 0 if begins is None else begins
    return torch.stack([actor.act({key: x[:, i] for key, x in obs.items()}, begins[:, i], 0) for i in range(t)], 1)


def streams(actor: Any) -> list[torch.Generator]:
    """The actor's random streams, one per environment."""
    predictor = actor.predictor
    generators: list[torch.Generator] = getattr(predictor, "base", predictor).noise.generators
    return generators
