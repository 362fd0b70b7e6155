"""The scaled world: its loss against plain loops, and what its units promise."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from agents.latent.agent import LatentAgent, rates_to_
from agents.latent.planning import PlanSettings, Situation
from agents.latent.scaled_world import ScaledWorld
from agents.registry import make_agent
from tests.conftest import SMALL, STATE, random_batch

GAMMA, RHO = 0.97, 0.9  # while no step has a reward, as in a new world


def scaled(loss: Mapping[str, object] | None = None, **acting: object) -> LatentAgent:
    options = {
        "name": "difftop_rl",
        "world_model": "scaled",
        **SMALL,
        "policy_gradient": {"mode": "none"},
        "loss": dict(loss or {}),
    }
    agent = make_agent(options | {"acting": SMALL["acting"] | acting}, STATE, seed=3)
    assert isinstance(agent, LatentAgent) and isinstance(agent.world, ScaledWorld)
    with torch.no_grad():  # heads start at zero, which would hide mistakes
        for parameter in agent.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())))
    return agent


def huber(x: Tensor) -> Tensor:
    return torch.where(x.abs() < 1, 0.5 * x**2, x.abs() - 0.5)


def test_loss_is_the_formula() -> None:
    agent = scaled({"n_step": 1}, min_std=0.0).double()
    batch = random_batch(STATE)
    batch = replace(batch, **{k: getattr(batch, k).double() for k in ("obs", "action", "reward", "weight")})
    loss, _, priorities = agent.world.losses(agent.unroll(batch), agent.generator)
    m, target_q, scales = agent.model, agent.world.target_q, agent.world
    steps = batch.action.shape[1]
    wanted = m.encode(batch.obs[:, 1:].flatten(0, 1)).view(*batch.action.shape[:2], -1)
    variance = wanted.flatten(0, 1).var(dim=0).mean()
    total = torch.zeros((), dtype=torch.float64)
    errors = torch.zeros(batch.action.shape[:2], dtype=torch.float64)
    for i in range(len(batch.obs)):
        z = m.encode(batch.obs[i, :1])
        for k in range(steps):
            z = m.next(z, batch.action[i, k][None])
            errors[i, k] = ((z - wanted[i, k]) ** 2).mean().detach()
    bonus = 0.05 * batch.reward.abs().max() * (errors / errors.mean(dim=0)).clamp(max=5)
    batch = replace(batch, reward=batch.reward + bonus)
    for i in range(len(batch.obs)):
        z, priority = m.encode(batch.obs[i, :1]), torch.zeros((), dtype=torch.float64)
        for k in range(steps):
            a, z_next = batch.action[i, k : k + 1], wanted[i, k : k + 1]
            value = target_q(torch.cat([z_next, m.policy(z_next)], -1)).mean()
            y = batch.reward[i, k] + (0.0 if batch.terminated[i, k] else GAMMA * value)
            td = (m.values(z, a)[:, 0] - y) / scales.return_scale.value
            reward = (m.predict_reward(z, a)[0] - batch.reward[i, k]) / scales.reward_size.value
            z = m.next(z, a)
            error = ((z - z_next) ** 2).mean() / variance + huber(reward) + huber(td).sum()
            total = total + batch.weight[i] * RHO**k * error
            priority = priority + RHO**k * td.abs().sum()
        torch.testing.assert_close(priorities[i], priority.detach())
    torch.testing.assert_close(loss, total / len(batch.obs) / steps)


@pytest.mark.parametrize("factor", [1e-2, 1e3])
def test_units_of_the_reward_do_not_matter(factor: float) -> None:
    """Rewards, reward head and values times a factor: every term of the loss stays."""
    agent, batch = scaled(min_std=0.0).double(), random_batch(STATE)
    batch = replace(batch, **{k: getattr(batch, k).double() for k in ("obs", "action", "reward", "weight")})
    _, before, _ = agent.world.losses(agent.unroll(batch), agent.generator)
    other = scaled(min_std=0.0).double()
    with torch.no_grad():
        for net in (other.model.reward, other.model.q, other.world.target_q):
            for parameter in list(net[-1].parameters()):
                parameter.mul_(factor)
    _, after, _ = other.world.losses(other.unroll(replace(batch, reward=batch.reward * factor)), other.generator)
    for name in ("consistency", "reward", "value"):
        torch.testing.assert_close(after[f"train/{name}_loss"], before[f"train/{name}_loss"])


@pytest.mark.parametrize("factor", [1e-2, 1e3])
def test_units_of_the_reward_do_not_matter_to_what_is_learned(factor: float) -> None:
    """After updates on rewards times a factor, the last layers of reward and value are larger by it, and all else is the same."""
    batch = random_batch(STATE)
    batch = replace(batch, **{k: getattr(batch, k).double() for k in ("obs", "action", "reward", "weight")})
    agent, other = (scaled({"grad_clip": 1e6}, min_std=0.0).double() for _ in range(2))
    heads = [
        name
        for name, _ in agent.named_parameters()
        if re.match(r"(world\.(model\.q|model\.reward|target_q)|average\.(q|reward))\.6\.", name)
    ]
    assert len(heads) == 10
    for it in (agent, other):
        for group in [*it.optimizer.param_groups, *it.prior_optimizer.param_groups]:
            group["eps"] = 1e-20  # Adam's, which has no units
    with torch.no_grad():
        for name in heads:
            other.get_parameter(name).mul_(factor)
    before = {name: parameter.detach().clone() for name, parameter in agent.named_parameters()}
    for _ in range(3):
        agent.update(batch, 0)
        other.update(replace(batch, reward=batch.reward * factor), 0)
    for name, parameter in agent.named_parameters():
        size = factor if name in heads else 1.0
        torch.testing.assert_close(other.get_parameter(name), parameter * size, rtol=1e-3, atol=1e-5 * size)
    assert all((agent.get_parameter(name) - before[name]).abs().max() > 1e-6 for name in heads)


@pytest.mark.parametrize("expansion", [0, 3])
@pytest.mark.parametrize("ends", [0, 2])
def test_values_begin_at_what_all_states_share(ends: int, expansion: int) -> None:
    """Rewards of 3, a share p of them at a termination: with heads at zero every value is 3 / (1 - gamma (1 - p)) at once."""
    options = {"name": "difftop_rl", **SMALL, "loss": {"expansion": expansion, "n_step": 1}}
    agent, batch = make_agent(options, STATE, seed=3), random_batch(STATE)
    agent.world.reward_size.update(torch.tensor([6.0]))  # the largest reward below: what bounds targets
    terminated = torch.zeros_like(batch.terminated)
    terminated[:ends, -1] = True
    batch = replace(batch, reward=torch.full_like(batch.reward, 3.0), terminated=terminated)
    u = agent.unroll(batch)
    y = agent.world.td_targets(u, agent.generator)
    common = 3 / (1 - GAMMA * (1 - ends / len(batch.obs)))  # a termination is in one slice, the steps before it in several
    torch.testing.assert_close(agent.model.values(u.z[0], u.action[0]), torch.full((2, len(batch.obs)), common))
    imagined = 0 if ends else expansion  # steps in which the model predicts no reward yet
    torch.testing.assert_close(y, torch.where(terminated.t(), 3.0, 3 + GAMMA ** (1 + imagined) * common))
    values = agent.model.values(u.z[0], u.action[0])
    agent.world.td_targets(replace(u, reward=u.reward * 2), agent.generator)  # the mean reward moves by a hundredth of 3
    moved = agent.model.values(u.z[0], u.action[0]) - values
    torch.testing.assert_close(moved, torch.full_like(moved, 0.01 * common), rtol=1e-3, atol=0)


def test_the_raw_critic_is_trained_as_the_world_s_own_values() -> None:
    """Rewards of 3: both targets begin at the common value, in the same units, whatever the size of rewards."""
    options = {"name": "difftop_rl", "world_model": "scaled", **SMALL, "policy_gradient": {"mode": "replay"}}
    batch = random_batch(STATE)
    batch = replace(batch, reward=torch.full_like(batch.reward, 3.0), terminated=torch.zeros_like(batch.terminated))
    agent = make_agent(options, STATE, seed=3)
    assert isinstance(agent, LatentAgent) and agent.gradient is not None
    _, values, critic, _ = agent.optimizer.param_groups
    assert [id(p) for p in critic["params"]] == [id(p) for p in agent.gradient.critic.q[-1].parameters()]
    u = agent.unroll(batch)
    agent.world.reward_size.update(batch.reward)  # as a loss does before
    agent.world.td_targets(u, agent.generator)
    seen = torch.cat([u.obs, u.action[0]], dim=-1)
    for net in (agent.gradient.critic.q, agent.gradient.target_critic.q):
        torch.testing.assert_close(net(seen).squeeze(-1), torch.full((2, len(batch.obs)), 3 / (1 - GAMMA)))
    assert values["lr"] == critic["lr"] == agent.config.loss.learning_rate * agent.world.return_scale.value
    with torch.no_grad():  # half a unit above all targets, of which three steps are weighted 1, 0.9, ...
        agent.gradient.critic.q[-1].bias.add_(0.5 * agent.world.return_scale.value)
    loss = agent.gradient.critic_loss(agent.world, u, agent.generator)
    weights = sum(RHO**t for t in range(len(u.action)))
    torch.testing.assert_close(loss, torch.full_like(loss, 2 * 0.125 * weights), rtol=1e-4, atol=0)


def test_latents_are_of_unit_size_without_a_gain() -> None:
    options = {"name": "difftop_rl", **SMALL, "model": SMALL["model"] | {"latent_gain": False}}
    agent, batch = make_agent(options, STATE, seed=3), random_batch(STATE)
    assert isinstance(agent, LatentAgent)
    for step in range(3):
        agent.update(batch, step)
    u = agent.unroll(batch)
    for z in (u.z.flatten(0, 1), u.z_next):
        torch.testing.assert_close(z.square().mean(dim=-1), torch.ones(len(z)), atol=1e-2, rtol=0)


def test_exploration_ends_when_a_reward_is_seen() -> None:
    world = scaled().world
    settings = PlanSettings(explore_until_reward=True, std_start=0.5)
    asked = Situation(torch.zeros(1, 3), torch.zeros(1, 1, 2), 0, True, torch.Generator(), nullcontext, torch.ones(1, 2), 0.125)
    for share, std in ((0, 0.5), (1, 0.125)):  # of a hundred steps
        rewards = torch.zeros(100)
        rewards[:share] = 1.0
        world.reward_size.update(rewards)
        assert asked.explored(torch.zeros(1, 2), settings, world.rewarded())[0, 0] == std


def test_rates_of_a_checkpoint_go_where_the_weights_are() -> None:
    agent = scaled()
    rates_to_(agent.optimizer, torch.device("meta"))
    assert [getattr(group["lr"], "device", None) for group in agent.optimizer.param_groups] == [None, *[torch.device("meta")] * 2]


def test_sampled_plans_don_t_explore_in_evaluation() -> None:
    acting = scaled().config.acting
    assert acting.mppi_std(10**6, explore=True) == acting.std_end > acting.mppi_std(10**6, explore=False) == acting.mppi.min_std


@pytest.mark.parametrize("std", [0.0, 0.3])
def test_noise_takes_as_many_random_numbers_as_a_number_and_as_a_tensor(std: float) -> None:
    """A recorded plan is given the std as a tensor; what is drawn later must not depend on it."""
    settings = PlanSettings(explore_until_reward=False)
    drawn = []
    for given in (std, torch.tensor(std)):
        g = torch.Generator().manual_seed(0)
        asked = Situation(torch.zeros(2, 3), torch.zeros(2, 1, 2), 0, True, g, nullcontext, None, given)
        drawn.append(torch.cat([asked.explored(torch.zeros(2, 2), settings, torch.zeros(())), torch.randn(1, 2, generator=g)]))
    assert torch.equal(*drawn)


def test_heads_learn_at_rates_in_the_units_they_predict_also_after_a_resume() -> None:
    agent, batch = scaled({"learning_rate": 1e-3}), random_batch(STATE)
    agent.update(batch, 0)
    resumed = scaled({"learning_rate": 1e-3})
    resumed.load_state_dict(agent.state_dict())
    resumed.load_train_state(copy.deepcopy(agent.train_state()))
    large = replace(batch, reward=batch.reward * 100)
    for it in (agent, resumed):
        it.update(large, 0)
        rest, values, rewards = it.optimizer.param_groups
        assert rest["lr"] == 1e-3
        assert float(values["lr"]) == pytest.approx(1e-3 * float(it.world.return_scale.value))
        assert float(rewards["lr"]) == pytest.approx(1e-3 * float(it.world.reward_size.value))
        assert float(rewards["lr"]) > 2e-3
    for name, parameter in agent.named_parameters():
        assert torch.equal(parameter, resumed.get_parameter(name)), name


def test_the_prior_learns_from_the_first_latent_and_drawn_ones() -> None:
    agent = scaled()
    z = torch.randn(6, 4, 8, requires_grad=True)
    loss, _ = agent.world.prior_loss(z, agent.generator)
    (gradient,) = torch.autograd.grad(loss, z)
    used = gradient.abs().sum(dim=(1, 2)) > 0
    assert used[0] and used.sum() == 2
    world = scaled({"prior_steps": 1, "saturation": 0.0, "pessimism": 0.25}, min_std=0.0).world
    first, second = world.model.values(z[0], world.model.policy(z[0]))
    climbed = 0.75 * (first + second) / 2 + 0.25 * torch.minimum(first, second)
    torch.testing.assert_close(world.prior_loss(z, torch.Generator())[0], -climbed.mean() / world.return_scale.value)


def test_coloured_noise_resumes_where_it_was() -> None:
    agent = scaled(noise_colour="mixed")
    obs, first = {"state": random_batch(STATE, size=2).obs[:, 0]}, torch.tensor([True, True])
    actors = [agent.actor(2, seed=1, explore=True) for _ in range(2)]
    for i in range(2):
        actors[0].begin(i, 40 + i)
    actors[0].act(obs, first, 0)
    actors[1].load_state_dict(actors[0].state_dict())
    a, b = (actor.act(obs, ~first, 1) for actor in actors)
    assert torch.equal(a, b)
    actors[1].begin(0, 99)
    assert not torch.equal(actors[1].act(obs, ~first, 2)[0], actors[0].act(obs, ~first, 2)[0])


@pytest.mark.parametrize(("steps", "pessimism"), [(0, 0.0), (1, 0.25), (3, 1.0)])
def test_targets_are_expanded_by_steps_of_the_model(steps: int, pessimism: float) -> None:
    """The end's value lies between the mean of both networks and the smaller one, by `pessimism`."""
    world = scaled({"expansion": steps, "discount_while_rare": GAMMA, "pessimism": pessimism}, min_std=0.0).world
    world.discount = GAMMA
    assert isinstance(world, ScaledWorld)
    z = torch.randn(7, world.sizes.latent_dim, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found, expected = world.expanded_value(z, torch.Generator()), torch.zeros(7)
        for k in range(steps):
            a = world.model.policy(z)
            expected += GAMMA**k * world.model.predict_reward(z, a)
            z = world.model.next(z, a)
        q = world.target_q(torch.cat([z, world.model.policy(z)], 1)).squeeze(-1)
        expected += GAMMA**steps * ((1 - pessimism) * (q[0] + q[1]) / 2 + pessimism * torch.minimum(q[0], q[1]))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("rare", "lower", "wanted"), [(1.0, 0.97, 0.97), (0.2, 0.97, 0.97), (0.1, 0.97, 0.98), (0.0, 0.97, 0.99), (1.0, 1.0, 0.99)]
)
def test_values_look_less_far_while_rewards_are_rare(rare: float, lower: float, wanted: float) -> None:
    agent, other = (scaled({"discount_while_rare": lower}) for _ in range(2))
    agent.world.set_rare(rare)
    assert float(agent.world.gamma) == pytest.approx(wanted) == agent.latent_view().discount
    weights = agent.state_dict()
    other.load_state_dict(weights)
    assert float(other.world.gamma) == float(agent.world.gamma) and other.world.seeks == agent.world.seeks == (rare > 0)
    del weights["world.rarity"]  # as in checkpoints from before
    other.load_state_dict(weights)
    assert float(other.world.gamma) == pytest.approx(0.99) and not other.world.seeks


def test_targets_are_not_expanded_where_episodes_terminate() -> None:
    """A model without ends would go on collecting rewards after them."""
    found = []
    for expansion in (0, 3):
        for terminates in (False, True):
            agent, batch = scaled({"expansion": expansion, "bounded": False}, min_std=0.0), random_batch(STATE)
            batch = replace(batch, terminated=batch.terminated & terminates)
            found.append(agent.world.td_targets(agent.unroll(batch), agent.generator))
    (goes_on, terminates), (expanded, again) = found[:2], found[2:]
    assert torch.equal(again, terminates) and (expanded - goes_on).abs().mean() > 1e-3


@pytest.mark.parametrize(("rare", "largest", "most"), [(0.0, 2.0, 200.0), (1.0, 2.0, 2 * 1.25 / 0.03), (1.0, 0.0, 5e-3 / 0.03)])
def test_bounded_targets_are_at_most_the_largest_reward_for_ever(rare: float, largest: float, most: float) -> None:
    """And what curiosity adds to it; before a reward is seen that alone, in units of the smallest size."""
    found = {}
    for bounded in (False, True):
        agent, batch = scaled({"bounded": bounded}), random_batch(STATE)
        batch = replace(batch, terminated=torch.zeros_like(batch.terminated))
        agent.world.set_rare(rare)
        agent.world.reward_size.largest.fill_(largest)
        assert isinstance(agent.world, ScaledWorld)
        last = list(agent.world.target_q.children())[-1]
        for sign in (1.0, -1.0):
            with torch.no_grad():
                last.bias.fill_(sign * 1e4)
            found[bounded, sign] = agent.world.td_targets(agent.unroll(batch), agent.generator)
    for sign in (1.0, -1.0):
        assert (found[False, sign] * sign).min() > most
        torch.testing.assert_close(found[True, sign], torch.full_like(found[True, sign], sign * most))


def test_curiosity_rewards_what_is_foretold_badly_while_rewards_are_rare() -> None:
    world = scaled({"curiosity": 0.05}).world
    assert isinstance(world, ScaledWorld)
    # An error of eight means counts as one of five.
    errors = torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, 8.0, 0.0, 0.0], [2.0, 4.0, 6.0, 0.0]]).repeat(1, 2)
    errors[1, 4:] = 0
    sizes = torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, 5.0, 0.0, 0.0], [2 / 3, 4 / 3, 2.0, 0.0]]).repeat(1, 2)
    sizes[1, 4:] = 0
    world.set_rare(0.25)
    torch.testing.assert_close(world.curiosity(errors), 1e-3 * 0.25 * sizes)  # no reward was seen yet: of the smallest size
    world.reward_size.update(torch.tensor([0.0, 0.0, -4.0]))
    torch.testing.assert_close(world.curiosity(errors), 0.05 * 4 * 0.25 * sizes)


def test_where_rewards_are_not_rare_updates_are_those_of_one_step_targets_without_curiosity() -> None:
    """And where they are, reward and value are taught the sum, and the size of rewards is of the environment's alone."""
    batch, same = random_batch(STATE), {"discount_while_rare": 0.99}
    none, told = same | {"curiosity": 0.0}, {}
    plain = none | {"expansion": 0, "n_step": 1}
    for name, loss, rare in (("plain", plain, 1.0), ("common", {}, 0.0), ("rare", same, 1.0), ("none", none, 1.0)):
        agent = scaled(loss)
        agent.world.set_rare(rare)
        metrics = agent.update(batch, 0).metrics
        told[name] = {tag: float(metrics[f"train/{tag}"]) for tag in ("reward_loss", "value_loss", "td_target")}
        told[name]["size"] = float(agent.world.reward_size.largest)
    assert told["plain"] == told["common"]
    assert all(told["rare"][tag] != told["none"][tag] for tag in ("reward_loss", "value_loss", "td_target"))
    assert told["rare"]["td_target"] > told["none"]["td_target"]
    assert len({each["size"] for each in told.values()}) == 1
    always = scaled({"far_while_rare": False, "curiosity": 0.0})
    always.world.set_rare(0.0)
    assert float(always.update(batch, 0).metrics["train/td_target"]) == told["none"]["td_target"]
