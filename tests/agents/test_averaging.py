"""The moving average of the weights, by which evaluation acts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from agents.latent.agent import LatentAgent
from agents.registry import make_agent
from tests.conftest import SMALL, STATE, random_batch


def made(ema: float, name: str = "difftop_rl", **more: Any) -> LatentAgent:
    agent = make_agent({"name": name, **SMALL, **more, "ema": ema}, STATE, seed=3)
    assert isinstance(agent, LatentAgent)
    return agent


def weights(agent: LatentAgent) -> list[Tensor]:
    return [p.detach().clone() for p in agent.model.parameters()]


def before_model(state: dict[str, Tensor]) -> list[Tensor]:
    """The model's parameters in a checkpoint."""
    fresh = made(0.75)
    fresh.load_state_dict(state)
    return weights(fresh)


@pytest.mark.parametrize("name", ["difftop_rl", "tdmpc", "tdmpc2"])
def test_average_is_the_formula_and_training_doesn_t_see_it(name: str) -> None:
    agent, other, batch = made(0.75, name), made(0.0, name), random_batch(STATE)
    wanted = weights(agent)
    for step in range(40):
        agent.update(batch, step)
        other.update(batch, step)
        rate = max(0.25, 10 / (11 + step))  # from the thirtieth update on 1 - ema
        wanted = [(1 - rate) * mine + rate * now for mine, now in zip(wanted, weights(agent), strict=True)]
    assert agent.average is not None and other.average is None
    for mine, found in zip(wanted, agent.average.parameters(), strict=True):
        torch.testing.assert_close(found, mine, atol=1e-6, rtol=1e-5)
        assert not found.requires_grad
    for mine, now in zip(agent.average.buffers(), agent.model.buffers(), strict=True):
        assert torch.equal(mine, now)
    plain = other.state_dict()
    assert all(torch.equal(x, agent.state_dict()[key]) for key, x in plain.items())
    assert not any(key.startswith("average") for key in plain)


def test_the_average_acts_but_where_rare_rewards_are_explored_for() -> None:
    agent = made(0.75, acting=SMALL["acting"] | {"planner": "none", "random_share": 0.0, "std_start": 0.0, "std_end": 0.0})
    assert agent.average is not None
    obs = torch.randn(1, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for model, value in ((agent.model, 0.25), (agent.average, -0.5)):
            for p in model.pi.parameters():
                p.zero_()
            list(model.pi.parameters())[-1].fill_(value)
    for explore, rare, value in ((True, 1.0, 0.25), (True, 0.0, -0.5), (False, 1.0, -0.5), (False, 0.0, -0.5)):
        actor = agent.actor(1, seed=0, explore=explore)
        agent.finish_episode(actor, rare, 0)
        actor.begin(0, 1)
        found = actor.act({STATE.only_key: obs}, torch.tensor([True]), 10**6)
        torch.testing.assert_close(found, torch.full((1, STATE.action_dim), value).tanh())
    view = agent.latent_view()
    torch.testing.assert_close(view.policy(view.encode(obs)), torch.full((1, STATE.action_dim), -0.5).tanh())


def test_a_checkpoint_from_before_begins_the_average_at_its_weights() -> None:
    trained, agent = made(0.75), made(0.75)
    for step in range(3):
        trained.update(random_batch(STATE), step)
    both = trained.state_dict()
    agent.load_state_dict(both)
    assert all(torch.equal(x, both[key]) for key, x in agent.state_dict().items())
    before = {key: x for key, x in both.items() if not key.startswith("average")}
    agent.load_state_dict(before)
    assert agent.average is not None and agent.averaged is not None and agent.averaged > 1e6
    for mine, now in zip(agent.average.parameters(), agent.model.parameters(), strict=True):
        assert torch.equal(mine, now)
    assert len(before) < len(both) and all(torch.equal(x, agent.state_dict()[key]) for key, x in before.items())
    agent.update(random_batch(STATE), 3)  # goes on as after many updates
    for mine, was, now in zip(agent.average.parameters(), before_model(before), agent.model.parameters(), strict=True):
        torch.testing.assert_close(mine, 0.75 * was + 0.25 * now)
