"""Every imitation policy looks at its images: gradients reach their networks, actions depend on them, a picture is enough."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from agents.policies.training import ImitationAgent
from difftop.data.windows import WindowBatch
from difftop.nn.small_conv import SmallConv
from difftop.types import EnvSpec
from tests.agents.imitators import CASES, base_run, make, random_batch, rolled
from tests.conftest import task_spec

SPEC = task_spec("test/images", {"camera_image": (3, 32, 32), "eef_pos": (3,)}, 4, episode_steps=10, control_dt_s=0.05)
ENCODER = {"network": "small", "crop": 0.9, "keypoints": 8, "features": 16}


def seen(agent: ImitationAgent, size: int, seed: int = 0) -> WindowBatch:
    """Noise, with pictures of noise."""
    batch, g = random_batch(agent, size, seed, SPEC), torch.Generator().manual_seed(seed)
    pictures = torch.randint(0, 256, (*batch.obs["eef_pos"].shape[:2], 3, 32, 32), dtype=torch.uint8, generator=g)
    return replace(batch, obs=batch.obs | {"camera_image": pictures})


def made(name: str, home: Path, spec: EnvSpec = SPEC, **more: Any) -> ImitationAgent:
    if name == "residual":  # whose base looks likewise
        base_run(home, more.get("base", "rnn_gmm"), spec, encoder=ENCODER)
    return make(name, spec=spec, home=home, **{"encoder": ENCODER} | more)


@pytest.mark.parametrize("name", CASES)
def test_a_policy_looks_at_its_images(name: str, tmp_path: Path) -> None:
    agent = made(name, tmp_path)
    batch = seen(agent, 3)
    agent.update(batch, 0)  # after which a residual corrects
    agent.policy.train().zero_grad()
    agent.policy.loss(batch, torch.Generator().manual_seed(0))[0].backward()
    own = [
        module for key, module in agent.policy.named_modules() if isinstance(module, SmallConv) and not key.startswith("base.")
    ]
    gradients = [p.grad for module in own for p in module.parameters() if p.requires_grad]
    assert gradients and all(g is not None and bool((g != 0).any()) for g in gradients)
    turned = batch.obs | {"camera_image": batch.obs["camera_image"].flip(-1)}
    actions, others = (rolled(agent.actor(3, seed=0), obs) for obs in (batch.obs, turned))
    assert float((actions - others).abs().max()) > 1e-6 and not torch.allclose(actions[:, -1], others[:, -1])
    losses = [float(agent.validate(replace(batch, obs=obs), seed=0)["valid/loss"]) for obs in (batch.obs, turned)]
    assert losses[0] != losses[1]
    first, again, other = (agent.policy.train().loss(batch, torch.Generator().manual_seed(seed))[0] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)  # crops are the generator's


def spots(agent: ImitationAgent, size: int, seed: int) -> tuple[WindowBatch, Tensor]:
    """A spot in the picture, and where it is: what is to be done, all along the window."""
    batch, g = random_batch(agent, size, seed, SPEC), torch.Generator().manual_seed(seed)
    place = 1.2 * torch.rand(size, 2, generator=g) - 0.6
    x, y = torch.linspace(-1, 1, 32), torch.linspace(-1, 1, 32)[:, None]
    shown = ((x - place[:, :1, None]).square() + (y - place[:, 1:, None]).square() < 0.06).to(torch.uint8) * 255
    pictures = shown[:, None, None].expand(-1, agent.windows.window, 3, -1, -1)
    actions = place.repeat(1, 2)[:, None].expand_as(batch.actions)
    return replace(batch, actions=actions, obs=batch.obs | {"camera_image": pictures}), place.repeat(1, 2)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "steps", "more"),
    [
        ("bc", 120, {"window": 1, "modes": 1}),
        pytest.param("leto", 200, {"window": 2, "limits": {"acceleration": 2.0}}, marks=SLOW),
        pytest.param("rnn_gmm", 200, {"window": 2, "modes": 1}, marks=SLOW),
        pytest.param("ibc", 400, {"window": 1, "dropout": 0.0, "negatives": 128, "samples": 256}, marks=SLOW),
        pytest.param("act", 300, {"dim": 32}, marks=SLOW),
        pytest.param("diffusion", 1000, {"widths": [32]}, marks=SLOW),
        pytest.param("diffusion_transformer", 500, {"dim": 32, "dropout": 0.0}, marks=SLOW),
        pytest.param("residual", 300, {"base": "bc", "window": 2}, marks=SLOW),
    ],
)
def test_a_picture_tells_what_to_do(name: str, steps: int, more: dict[str, Any], tmp_path: Path) -> None:
    training = {"learning_rate": 3e-3, "warmup_steps": 0, "ema": 0.0}
    agent = made(name, tmp_path, steps=steps, training=training, **more)
    for k in range(steps):
        agent.update(spots(agent, 16, k)[0], k)
    batch, place = spots(agent, 32, 10**6)
    actions = rolled(agent.actor(32, seed=0), batch.obs)[:, -1]
    error, blind = float((actions - place).abs().mean()), float((place - place.mean(0)).abs().mean())
    assert error < 0.5 * blind, (error, blind)
