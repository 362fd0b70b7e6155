"""What tells the policies apart: two ways to do the same thing, and demonstrations that need memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from difftop.data.windows import WindowBatch
from tests.agents.imitators import make, rolled
from tests.conftest import task_spec

SPEC = task_spec("test/fork", {"x": (2,)}, 2, episode_steps=20, control_dt_s=0.05)


def fork(agent: Any, size: int, seed: int) -> WindowBatch:
    """Left or right with equal chance, whatever is seen; forward in any case."""
    shape, g = agent.windows, torch.Generator().manual_seed(seed)
    span = shape.window + shape.horizon - 1
    side = 1.2 * torch.randint(0, 2, (size, 1), generator=g).expand(size, span) - 0.6
    actions = torch.stack([side, torch.full_like(side, 0.3)], -1) + 0.02 * torch.randn(size, span, 2, generator=g)
    obs = 0.1 * torch.randn(size, shape.window, 2, generator=g)
    return WindowBatch({"x": obs}, actions, torch.ones(size, span, dtype=torch.bool))


def acted(name: str, steps: int, learning_rate: float = 3e-3, **more: Any) -> Tensor:
    """First actions `[64, 2]` of a policy that was trained on the fork."""
    training = {"learning_rate": learning_rate, "warmup_steps": 0, "ema": 0.0}
    agent = make(name, spec=SPEC, steps=steps, training=training, **more)
    for k in range(steps):
        agent.update(fork(agent, 64, k), k)
    obs = {"x": 0.1 * torch.randn(64, 1, 2, generator=torch.Generator().manual_seed(0))}
    return rolled(agent.actor(64, seed=0), obs)[:, 0]


def test_squared_error_goes_between_the_ways() -> None:
    actions = acted("bc", 150, distribution="deterministic")
    assert float(actions[:, 0].abs().mean()) < 0.2
    torch.testing.assert_close(actions[:, 1].mean(), torch.tensor(0.3), rtol=0, atol=0.05)


@pytest.mark.parametrize(
    ("name", "steps", "more"),
    [
        ("bc", 250, {}),
        ("rnn_gmm", 250, {"window": 2, "horizon": 1}),
        ("ibc", 250, {"negatives": 64, "samples": 256, "dropout": 0.0}),
        ("diffusion", 200, {"learning_rate": 1e-2, "sampler": "ddpm", "window": 1, "execute": 1, "horizon": 2, "widths": [32]}),
        (
            "diffusion_transformer",
            200,
            {"learning_rate": 3e-3, "sampler": "ddpm", "window": 1, "execute": 1, "horizon": 2, "dim": 32, "dropout": 0.0},
        ),
    ],
)
def test_others_choose_a_way(name: str, steps: int, more: dict[str, Any]) -> None:
    actions = acted(name, steps, **more)
    side = actions[:, 0]
    off = torch.stack([(side.abs() - 0.6).abs(), (actions[:, 1] - 0.3).abs()], 1)
    assert float((off.amax(1) < 0.3).double().mean()) > 0.8 and float(off.mean()) < 0.15, off
    if name != "ibc":  # which takes the way that is a little better under its energy
        assert 0.15 < float((side > 0).double().mean()) < 0.85


@pytest.mark.parametrize("name", ["leto", "rnn_gmm"])
def test_memory_tells_what_was_seen_before(name: str) -> None:
    """The first observation of a window says where to go; later ones say nothing."""
    more = {"modes": 1} if name == "rnn_gmm" else {}
    agent = make(name, spec=SPEC, steps=250, training={"learning_rate": 1e-2}, limits={"acceleration": 2.0, "free": []}, **more)
    shape = agent.windows

    def batch(seed: int) -> WindowBatch:
        g = torch.Generator().manual_seed(seed)
        sign = torch.randint(0, 2, (32, 1), generator=g) * 2.0 - 1
        obs = torch.zeros(32, shape.window, 2)
        obs[:, 0, :1] = sign
        span = shape.window + shape.horizon - 1
        actions = (0.5 * sign)[:, None].expand(32, span, 2) + 0.01 * torch.randn(32, span, 2, generator=g)
        return WindowBatch({"x": obs}, actions, torch.ones(32, span, dtype=torch.bool))

    for k in range(120):
        agent.update(batch(k), k)
    actions = rolled(agent.actor(32, seed=0), batch(999).obs)
    expected = 0.5 * batch(999).obs["x"][:, :1, :1].expand_as(actions)
    assert float((actions - expected).abs().max()) < 0.15
