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


AVERAGE, RAW = -0.5, 0.25  # the prior's output by either


def told_apart(planner: str = "none", **acting: Any) -> LatentAgent:
    """An agent without noise whose prior tells by which weights it acts."""
    quiet = {
        "planner": planner,
        "random_share": 0.0,
        "std_start": 0.0,
        "std_end": 0.0,
        "start_std": 0.0,
        "exploring_episodes": 0.5,
    }
    agent = made(0.75, acting=SMALL["acting"] | quiet | acting)
    assert agent.average is not None
    with torch.no_grad():
        for model, value in ((agent.model, RAW), (agent.average, AVERAGE)):
            for p in model.pi.parameters():
                p.zero_()
            list(model.pi.parameters())[-1].fill_(value)
    return agent


def observed(count: int) -> dict[str, Tensor]:
    return {STATE.only_key: torch.randn(count, 4, generator=torch.Generator().manual_seed(0))}


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_average_acts_but_in_raw_episodes_and_while_rewards_are_rare(share: float) -> None:
    agent, raw = told_apart(raw_episodes=share), []
    for explore, rare in ((True, 1.0), (True, 0.0), (False, 1.0), (False, 0.0)):
        actor = agent.actor(1, seed=0, explore=explore)
        agent.finish_episode(actor, rare, 0)
        for seed in range(40):
            actor.begin(0, seed)
            explores = explore and (rare > 0 or share == 1 or (share > 0 and not actor.tells(0)))
            found = actor.act(observed(1), torch.tensor([True]), 10**6)
            torch.testing.assert_close(found, torch.full((1, STATE.action_dim), RAW if explores else AVERAGE).tanh())
            raw += [explores] if explore and not rare else []
    assert abs(sum(raw) - 40 * share) <= 8 * (share == 0.5)
    view = agent.latent_view()
    torch.testing.assert_close(
        view.policy(view.encode(observed(1)[STATE.only_key])), torch.full((1, STATE.action_dim), AVERAGE).tanh()
    )


@pytest.mark.parametrize("planner", ["none", "lm"])
def test_environments_of_one_batch_act_by_the_weights_of_their_own_episodes(planner: str) -> None:
    agent = told_apart(planner, raw_episodes=0.5)
    actor, alone = agent.actor(8, seed=0, explore=True), agent.actor(1, seed=0, explore=True)
    agent.finish_episode(actor, 0.0, 0)
    obs = observed(8)
    for seed in range(100, 103):
        for i in range(8):
            actor.begin(i, None if i == 5 else 8 * seed + i)
        explores = [not actor.tells(i) for i in range(8)]
        assert 0 < sum(explores) < 7
        found = actor.act(obs, torch.ones(8, dtype=torch.bool), 10**6)
        assert not found[5].any()
        for i in set(range(8)) - {5}:
            alone.begin(0, 8 * seed + i)
            wanted = alone.act({key: x[i : i + 1] for key, x in obs.items()}, torch.tensor([True]), 10**6)
            torch.testing.assert_close(found[i : i + 1], wanted, atol=1e-5, rtol=1e-4)
            if planner == "none":
                torch.testing.assert_close(wanted, torch.full((1, STATE.action_dim), RAW if explores[i] else AVERAGE).tanh())
            else:
                assert actor.plan is not None
                torch.testing.assert_close(actor.plan[i, 0], found[i])
        assert planner == "none" or not actor.plan[5].any()


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
