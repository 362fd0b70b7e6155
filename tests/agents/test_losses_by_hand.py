"""Targets and losses of TD-MPC and DiffTOP against plain loops over samples and time, written from the papers' formulas."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from agents.latent.agent import LatentAgent
from agents.latent.gradient import frozen
from agents.latent.tdmpc_world import TDMPCWorld
from agents.registry import make_agent
from difftop.losses import RunningScale, decayed_sum, n_step_targets, td_target
from tests.conftest import SMALL, STATE, planned_loss, random_batch

GAMMA, RHO = 0.99, 0.5


def no_noise(name: str, **more: object) -> LatentAgent:
    acting = SMALL["acting"] | {"min_std": 0.0, "start_std": 0.0}
    world = {"world_model": "tdmpc"} if name == "difftop_rl" else {}
    agent = make_agent({"name": name, **world, **SMALL, **more, "acting": acting}, STATE, seed=3)
    assert isinstance(agent, LatentAgent) and isinstance(agent.world, TDMPCWorld)
    with torch.no_grad():  # heads start at zero, which would hide mistakes
        for parameter in [*agent.parameters()]:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())))
    return agent.double()


def doubled(batch: object) -> object:
    return replace(
        batch, obs=batch.obs.double(), action=batch.action.double(), reward=batch.reward.double(), weight=batch.weight.double()
    )


def by_hand(agent: LatentAgent, batch: object) -> tuple[Tensor, Tensor, Tensor]:
    """Model loss, priorities and targets, one sample and one step at a time."""
    m, t, total = agent.model, agent.world.target, torch.zeros((), dtype=torch.float64)
    priorities, targets = [], []
    steps = batch.action.shape[1]
    for i in range(len(batch.obs)):
        z = m.encode(batch.obs[i, :1])
        per_sample, priority = 0.0, 0.0
        for k in range(steps):
            a, next_obs = batch.action[i, k : k + 1], batch.obs[i, k + 1 : k + 2]
            with torch.no_grad():
                z_online = m.encode(next_obs)
                value = t.values(z_online, m.policy(z_online)).min()
                y = batch.reward[i, k] + (0.0 if batch.terminated[i, k] else GAMMA * value)
                wanted = t.encode(next_obs)
            targets.append(y)
            td = m.values(z, a)[:, 0] - y
            reward_error = m.predict_reward(z, a)[0] - batch.reward[i, k]
            z = m.next(z, a)
            consistency = ((z - wanted) ** 2).mean()
            per_sample = per_sample + RHO**k * (2.0 * consistency + 0.5 * reward_error**2 + 0.1 * (td**2).sum())
            priority = priority + RHO**k * td.detach().abs().sum()
        total = total + batch.weight[i] * per_sample
        priorities.append(priority)
    return total / len(batch.obs) / steps, torch.stack(priorities), torch.stack(targets)


def test_td_target() -> None:
    y = td_target(torch.tensor([1.0, 1.0]), torch.tensor([False, True]), torch.tensor([10.0, 10.0]), 0.9)
    assert y.tolist() == [10.0, 1.0]


def test_decayed_sum_is_no_product_of_bfloat16() -> None:
    errors = torch.rand(3, 5, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        found = decayed_sum(errors, 0.9)
    assert found.dtype == torch.float32 and torch.equal(found, decayed_sum(errors, 0.9))


def test_decayed_sum_and_its_bound() -> None:
    errors = torch.tensor([[1.0, 1e6], [2.0, 0.0], [4.0, 0.0]])
    assert decayed_sum(errors, 0.5).tolist() == [3.0, 1e4]


def test_running_scale() -> None:
    scale = RunningScale(tau=0.5, peak=0.0)
    scale.update(torch.tensor([1.0, torch.nan]))
    assert not scale.filled and scale.value == 1  # a bad batch leaves no trace
    scale.update(torch.linspace(0, 100, 101))
    assert scale.value.item() == pytest.approx(90.0)
    scale.update(torch.linspace(0, 10, 101))
    assert scale.value.item() == pytest.approx(0.5 * 90 + 0.5 * 9)


def test_running_scale_of_rare_rewards_is_a_share_of_the_largest() -> None:
    scale = RunningScale()
    assert scale.value.item() == 1.0
    scale.update(torch.zeros(100))
    assert scale.value.item() == pytest.approx(1e-3)
    scale.update(torch.tensor([0.0] * 99 + [-4.0]))
    scale.update(torch.zeros(100))
    assert scale.value.item() == pytest.approx(0.4)


@pytest.mark.parametrize("name", ["tdmpc", "difftop_rl"])
def test_model_loss_priorities_and_gradient(name: str) -> None:
    agent = no_noise(name, policy_gradient={"mode": "none", "critic_coef": 0.0}) if name == "difftop_rl" else no_noise(name)
    batch = doubled(random_batch(STATE))
    loss, _, priorities = agent.world.losses(agent.unroll(batch), agent.generator)
    expected, expected_priorities, _ = by_hand(agent, batch)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(priorities, expected_priorities)
    parameters = [p for n, p in agent.model.named_parameters() if not n.startswith("pi.")]
    for got, want in zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(got, want)


def test_policy_loss_and_its_gradient() -> None:
    agent = no_noise("tdmpc")
    z = torch.randn(6, 4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = torch.zeros((), dtype=torch.float64)
    for k in range(6):
        expected = (
            expected - RHO**k * torch.stack([agent.model.values(x[None], agent.model.policy(x[None])).min() for x in z[k]]).mean()
        )
    parameters = list(agent.model.pi.parameters())
    wanted = torch.autograd.grad(expected, parameters)
    before = [p.detach().clone() for p in agent.model.parameters()]
    agent.capture_graphs("false")  # what is captured needs a fused optimizer
    agent.prior_optimizer = torch.optim.SGD(parameters, lr=1.0)
    got = agent.update_prior(z)
    torch.testing.assert_close(got["train/policy_loss"], expected.detach())
    norm = torch.stack([g.norm() for g in wanted]).norm()
    assert norm < agent.config.loss.grad_clip
    moved = {id(p) for p, old in zip(agent.model.parameters(), before, strict=True) if not torch.equal(p, old)}
    assert moved == {id(p) for p in parameters}
    old = dict(zip(map(id, agent.model.parameters()), before, strict=True))
    for p, gradient in zip(parameters, wanted, strict=True):
        torch.testing.assert_close(old[id(p)] - p, gradient)


def test_raw_critic_loss() -> None:
    agent = no_noise("difftop_rl")
    assert agent.gradient is not None
    batch = doubled(random_batch(STATE))
    expected = []
    for i in range(len(batch.obs)):
        total = torch.zeros((), dtype=torch.float64)
        for k in range(batch.action.shape[1]):
            s, s_next, a = batch.obs[i, k : k + 1], batch.obs[i, k + 1 : k + 2], batch.action[i, k : k + 1]
            with torch.no_grad():
                value = agent.gradient.target_critic(s_next, agent.model.policy(agent.model.encode(s_next))).min()
                y = batch.reward[i, k] + (0.0 if batch.terminated[i, k] else GAMMA * value)
            total = total + RHO**k * ((agent.gradient.critic(s, a)[:, 0] - y) ** 2).sum()
        expected.append(total)
    torch.testing.assert_close(
        agent.gradient.critic_loss(agent.world, agent.unroll(batch), agent.generator), torch.stack(expected)
    )


def test_policy_gradient_loss_reaches_the_model_but_neither_policy_nor_critic() -> None:
    agent = no_noise("difftop_rl", policy_gradient={"normalize": False})
    assert agent.gradient is not None
    obs = random_batch(STATE).obs[:, 0].double()
    loss, plan = planned_loss(agent, obs)
    expected = -torch.stack(
        [agent.gradient.critic(s[None], a[None]).min() for s, a in zip(obs, plan.actions[:, 0], strict=True)]
    ).mean()
    torch.testing.assert_close(loss, expected)
    assert plan.actions.abs().max() <= 1
    loss.backward()
    with_gradient = {
        name.split(".")[0] for name, p in agent.model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0
    }
    assert with_gradient == {"encoder", "dynamics", "reward", "q"}
    assert all(p.grad is None for p in [*agent.gradient.critic.parameters(), *agent.model.pi.parameters()])
    assert all(p.requires_grad for p in agent.gradient.critic.parameters())


def test_policy_gradient_to_network_parameters_against_finite_differences() -> None:
    agent = make_unrolled_agent()
    obs = random_batch(STATE, size=3).obs[:, 0].double()
    start = torch.rand(3, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(7)) - 0.5
    loss, _ = planned_loss(agent, obs, start)
    loss.backward()
    generator = torch.Generator().manual_seed(0)
    for name in ("encoder.0.weight", "dynamics.2.weight", "reward.4.weight", "q.0.weight"):
        parameter = agent.model.get_parameter(name)
        direction = torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
        step = 1e-6
        with torch.no_grad():
            parameter.add_(direction, alpha=step)
            up = planned_loss(agent, obs, start)[0]
            parameter.add_(direction, alpha=-2 * step)
            down = planned_loss(agent, obs, start)[0]
            parameter.add_(direction, alpha=step)
        numeric = (up - down) / (2 * step)
        assert (parameter.grad * direction).sum().item() == pytest.approx(numeric.item(), rel=1e-5, abs=1e-9), name


def make_unrolled_agent() -> LatentAgent:
    """A planner without stopped gradients: all iterations are unrolled, targets don't move with the prior."""
    acting = {"lm": {"backward": "unroll", "damping": 1.0, "iterations": 3, "target": "fixed"}}
    agent = no_noise("difftop_rl")
    config = {
        "name": "difftop_rl",
        "world_model": "tdmpc",
        **SMALL,
        "acting": SMALL["acting"] | {"min_std": 0.0, "start_std": 0.0} | acting,
    }
    unrolled = make_agent(config, STATE, seed=3)
    unrolled.double().load_state_dict(agent.state_dict())
    return unrolled


def test_frozen_restores_only_what_was_trained() -> None:
    layer = torch.nn.Linear(2, 2)
    layer.bias.requires_grad_(False)
    with frozen(layer):
        assert not layer.weight.requires_grad
    assert layer.weight.requires_grad and not layer.bias.requires_grad


@pytest.mark.parametrize("n", [1, 2, 3, 9])
def test_n_step_targets_against_a_plain_loop(n: int) -> None:
    generator = torch.Generator().manual_seed(n)
    reward, value = torch.randn(2, 4, 5, generator=generator, dtype=torch.float64)
    terminated = torch.rand(4, 5, generator=generator) < 0.2
    found = n_step_targets(reward, terminated, value, 0.9, n)
    for t in range(4):
        for b in range(5):
            end = min(t + n, 4)
            wanted, weight = 0.0, 1.0
            for k in range(t, end):
                wanted += weight * float(reward[k, b])
                weight *= 0.0 if terminated[k, b] else 0.9
            wanted += weight * float(value[end - 1, b])
            assert float(found[t, b]) == pytest.approx(wanted)
