"""Exploration in parts of an episode, and the episodes without, which tell what has been learned."""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby
from typing import Any

import pytest
import torch
from torch import Tensor

from agents.latent.acting import PlanningActor
from agents.latent.exploration import EpisodeNoise
from agents.latent.lm import LMActing
from agents.registry import make_agent
from difftop.planning.planner import LMPlanner
from tests.conftest import SMALL, STATE


def explored(share: float, *, rare: float = 1.0, explore: bool = True, seed: int = 5) -> tuple[list[bool], PlanningActor]:
    """Of each step of an episode whether noise acted alone, and the actor."""
    acting = SMALL["acting"] | {"random_share": share, "exploring_episodes": 1.0}
    agent = make_agent({"name": "difftop_rl", **SMALL, "acting": acting}, STATE, seed=3)
    actor = agent.actor(1, seed=0, explore=explore)
    agent.finish_episode(actor, rare, 0)
    actor.begin(0, seed)
    alone = []
    for step in range(STATE.episode_steps):
        obs = {STATE.only_key: torch.full((1, 4), step / 10)}
        noise = EpisodeNoise(seed, STATE)
        noise.drawn = step
        action = actor.act(obs, torch.tensor([step == 0]), 10**6)
        alone.append(torch.equal(action[0], noise.draw().clamp(-1, 1)))
    return alone, actor


def test_noise_acts_alone_for_parts_of_an_episode_while_rewards_are_rare() -> None:
    episodes = [explored(0.5, seed=seed)[0] for seed in range(5)]
    assert 30 < sum(sum(alone) for alone in episodes) < 70  # of 100 steps
    assert all(explored(1.0)[0]) and not any(explored(0.0)[0])
    fewer = [explored(0.5, rare=0.5, seed=seed)[0] for seed in range(5)]
    assert all(
        before or not after for once, now in zip(episodes, fewer, strict=True) for before, after in zip(once, now, strict=True)
    )
    assert 0 < sum(map(sum, fewer)) < sum(map(sum, episodes))
    assert not any(explored(1.0, rare=0.0)[0]) and not any(explored(1.0, explore=False)[0])


@pytest.mark.parametrize(("rare", "wanted"), [(1.0, 0.5), (0.5, 0.25), (0.0, 0.0)])
def test_plans_are_bold_in_other_parts_while_rewards_are_rare(
    rare: float, wanted: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those with the largest numbers, where those with the smallest are the noise's."""
    spec = replace(STATE, episode_steps=250)
    acting = SMALL["acting"] | {"random_share": 0.5, "bold_share": 0.5, "bold_damping": 0.3, "exploring_episodes": 1.0}
    agent = make_agent({"name": "difftop_rl", **SMALL, "acting": acting}, spec, seed=3, capture="false")
    seen: list[Tensor | None] = []
    plan = LMPlanner.plan

    def spy(*given: Any, **how: Any) -> Any:
        seen.append(how["damping"])
        return plan(*given, **how)

    monkeypatch.setattr(LMPlanner, "plan", spy)
    obs, parts = {STATE.only_key: torch.zeros(2, 4)}, []
    actor = agent.actor(2, seed=0, explore=True)
    agent.finish_episode(actor, rare, 0)
    for i in range(2):
        actor.begin(i, 7 + i)
    for step in range(spec.episode_steps):
        parts.append([noise.part for noise in actor._noise])
        actor.act(obs, torch.tensor([step == 0] * 2), 10**6)
    numbers = torch.tensor(parts)
    bold = numbers.ge(1 - 0.5 * rare)
    assert torch.equal(torch.stack(seen), torch.where(bold, 0.3, agent.config.acting.lm.damping))
    assert wanted - 0.15 < bold.float().mean() < wanted + 0.15 and not (bold & numbers.lt(0.5 * rare)).any()
    agent.actor(2, seed=0, explore=False).act(obs, torch.tensor([True] * 2), 10**6)
    assert seen[-1] is None


def test_parts_are_runs_of_steps_and_go_on_after_a_resume() -> None:
    long = replace(STATE, episode_steps=250)
    noise = EpisodeNoise(7, long)
    numbers = [(noise.part, noise.draw())[0] for _ in range(250)]
    assert [len(list(run)) for _, run in groupby(numbers)] == [10] * 25
    actor, other = explored(0.5, rare=0.3)[1], explored(0.5)[1]
    other.load_state_dict(actor.state_dict())
    assert other.world.rare == actor.world.rare == 0.3 and float(other.world.rarity) == pytest.approx(0.3)


@pytest.mark.parametrize(("share", "rare"), [(0.5, 1.0), (0.5, 0.0), (1.0, 1.0), (0.0, 1.0)])
def test_the_other_episodes_are_planned_from_end_to_end_and_tell_how_rare_rewards_are(
    share: float, rare: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    acting = SMALL["acting"] | {"random_share": 0.5, "bold_share": 0.5, "bold_damping": 0.3, "exploring_episodes": share}
    agent = make_agent({"name": "difftop_rl", **SMALL, "acting": acting}, STATE, seed=3, capture="false")
    asked = []
    decide = LMActing.decide
    monkeypatch.setattr(LMActing, "decide", lambda planner, situation: (asked.append(situation), decide(planner, situation))[1])
    envs, obs = 40, {STATE.only_key: torch.zeros(40, 4)}
    actor = agent.actor(envs, seed=0, explore=True)
    agent.finish_episode(actor, rare, 0)
    for i in range(envs):
        actor.begin(i, i)
    for step in range(STATE.episode_steps):
        actor.act(obs, torch.tensor([step == 0] * envs), 10**6)
    strays = torch.stack([s.alone | s.bold for s in asked]).any(dim=0)
    told = torch.tensor([actor.tells(i) for i in range(envs)])
    if share == 1 or rare == 0:  # all alike
        assert strays.eq(rare > 0).all() and (told.all() or share < 1)
    else:
        assert torch.equal(told, ~strays) and told.all() == (share == 0) and told.sum() > 10
    assert agent.actor(1, seed=0, explore=False).tells(0)
