"""TD-MPC2 against a plain implementation that loops over samples of time and value networks, in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from agents.latent.agent import LatentAgent
from agents.latent.tdmpc2_model import TDMPC2Model, TDMPC2ModelConfig
from agents.latent.tdmpc2_world import TDMPC2World
from agents.registry import make_agent
from agents.tdmpc2 import TDMPC2ActingConfig
from difftop.nn.encoders import SimplexPixelEncoder
from difftop.nn.mlp import count_parameters
from difftop.options import ConfigError, build
from difftop.planning.model import LatentModel
from difftop.planning.trajectory import Trajectory
from difftop.types import Batch, ObsSpec
from tests.conftest import PIXELS, SMALL, STATE, planned_loss, random_batch
from tests.plain_tdmpc2 import PlainTDMPC2


def roughened(agent: LatentAgent) -> LatentAgent:
    """In float64, with noise on every weight: heads start at zero, which would hide mistakes."""
    with torch.no_grad():
        for p in agent.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return agent.double()


def exact(name: str = "tdmpc2", **more: Any) -> LatentAgent:
    """Without dropout."""
    model = SMALL["model"] | {"dropout": 0.0, "members": 4}
    agent = make_agent({"name": name, **SMALL, "model": model, **more}, STATE, seed=3)
    assert isinstance(agent, LatentAgent) and isinstance(agent.world, TDMPC2World)
    roughened(agent)
    agent.world.target_q.load_state_dict(agent.model.q.state_dict())
    return agent


def doubled(batch: Batch) -> Batch:
    return replace(
        batch, obs=batch.obs.double(), action=batch.action.double(), reward=batch.reward.double(), weight=batch.weight.double()
    )


def paired(**more: Any) -> tuple[LatentAgent, PlainTDMPC2]:
    """Both with the same random stream."""
    agent = exact(**more)
    plain = PlainTDMPC2(agent)
    agent.generator.manual_seed(5)
    plain.generator.manual_seed(5)
    return agent, plain


def test_targets_loss_and_gradient() -> None:
    agent, plain = paired()
    batch = doubled(random_batch(STATE, steps=3))
    expected, targets, _ = plain.model_loss(batch)
    u = agent.unroll(batch)
    state = agent.generator.get_state()
    torch.testing.assert_close(agent.world.td_targets(u, agent.generator), torch.stack(targets))
    agent.generator.set_state(state)
    loss, metrics, priorities = agent.world.losses(u, agent.generator)
    torch.testing.assert_close(loss, expected)
    assert priorities is None
    torch.testing.assert_close(metrics["train/td_target"], torch.stack(targets).mean())
    loss.backward()
    expected.backward()
    compare_weights(agent, plain, gradient=True)


def test_whole_updates() -> None:
    agent, plain = paired()
    for seed in range(3):
        batch = doubled(random_batch(STATE, steps=3, seed=seed))
        agent.update(batch, 0)
        plain.update(batch)
        compare_weights(agent, plain)
    assert agent.world.value_scale.value.item() == pytest.approx(plain.scale)


def test_policy_loss_of_wide_values() -> None:
    """Where the values' spread is above its floor of 1; the plain scale begins at 1, ours with the first batch."""
    agent, plain = paired()
    with torch.no_grad():
        agent.model.q[-1].weight.mul_(40)
    plain._copy_weights()
    z = torch.rand(4, 6, 8, dtype=torch.float64).mul_(3).softmax(-1)
    plain.policy_loss(list(z))
    spread = (plain.scale - 1) / 0.01 + 1
    assert spread > 1.5
    plain.generator.manual_seed(5)
    plain.scale = 1 + (spread - 1)
    expected = plain.policy_loss(list(z))
    metrics = agent.update_prior(z)
    assert metrics["train/value_scale"].item() == pytest.approx(spread)
    torch.testing.assert_close(metrics["train/policy_loss"], expected.detach())


def compare_weights(agent: LatentAgent, plain: PlainTDMPC2, gradient: bool = False) -> None:
    """Equal weights (or gradients) of every network."""

    def of(p: Tensor) -> Tensor:
        return p.grad if gradient else p.detach()

    model = agent.model
    pairs = [(plain.encoder, model.encoder), (plain.dynamics, model.dynamics), (plain.reward, model.reward)]
    for ours, theirs in pairs if gradient else [*pairs, (plain.pi, model.pi)]:
        for p, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(of(other), of(p), rtol=1e-6, atol=1e-10)
    for plain_q, q in ((plain.q, model.q),) if gradient else ((plain.q, model.q), (plain.target_q, agent.world.target_q)):
        for j, head in enumerate(plain_q):
            for p, other in zip(head.parameters(), q.parameters(), strict=True):
                torch.testing.assert_close(of(other)[j].view_as(p), of(p), rtol=1e-6, atol=1e-10)


def test_a_termination_is_not_bootstrapped_and_dropout_changes_the_online_values_only() -> None:
    agent, batch = exact(), doubled(random_batch(STATE, steps=3))
    u = agent.unroll(batch)
    assert agent.world.td_targets(u, agent.generator)[-1, 0] == batch.reward[0, -1] and batch.terminated[0, -1]
    z, a = u.z[0].detach(), u.action[0]
    model = TDMPC2Model(STATE, build(TDMPC2ModelConfig, SMALL["model"] | {"dropout": 0.5, "members": 4})).double()
    model.load_state_dict(agent.model.state_dict())
    torch.testing.assert_close(model.value_logits(z, a), agent.model.value_logits(z, a))
    generator = torch.Generator().manual_seed(0)
    assert not torch.allclose(model.value_logits(z, a, generator=generator), model.value_logits(z, a))


@pytest.mark.parametrize(("size", "low", "high"), [("1M", 0.8e6, 1.4e6), ("5M", 4.5e6, 5.5e6)])
def test_sizes(size: str, low: float, high: float) -> None:
    spec = replace(STATE, obs={"state": ObsSpec("vector", (24,))}, action_dim=6)
    model = TDMPC2Model(spec, build(TDMPC2ModelConfig, {"size": size}))
    assert low < count_parameters(model) < high
    assert model.config.latent_dim == (128 if size == "1M" else 512) and model.config.members == (2 if size == "1M" else 5)
    own = build(TDMPC2ModelConfig, {"size": size, "mlp_dim": 96, "members": 3}).resolved()
    assert (own.mlp_dim, own.members, own.encoder_dim) == (96, 3, 256)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent_dim": 50}, "agent.model.latent_dim=50: must be a multiple of agent.model.simplex_dim=8."),
        ({"members": 1}, "agent.model.members=1: must be at least 2"),
    ],
)
def test_sizes_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_agent({"name": "tdmpc2", "model": options}, STATE, seed=0)


@pytest.mark.parametrize(("steps", "gamma"), [(500, 0.99), (125, 0.96), (20, 0.95), (5000, 0.995)])
def test_discount_follows_the_episode_s_length(steps: int, gamma: float) -> None:
    agent = make_agent({"name": "tdmpc2", **SMALL}, replace(STATE, episode_steps=steps), seed=0)
    assert agent.world.discount == pytest.approx(gamma) and agent.world.latent_model.discount == agent.world.discount
    assert make_agent({"name": "tdmpc2", **SMALL, "discount": 0.9}, STATE, seed=0).world.discount == 0.9


def test_latents_are_simplices_also_of_pixels() -> None:
    for spec in (STATE, PIXELS):
        agent = make_agent({"name": "tdmpc2", **SMALL}, spec, seed=0)
        batch = random_batch(spec, size=3)
        z = agent.model.next(agent.model.encode(batch.obs[:, 0]), batch.action[:, 0])
        torch.testing.assert_close(z.sum(1), torch.ones(3))
        assert z.min() > 0


def test_pixel_encoder_of_the_paper_s_frames_needs_no_projection() -> None:
    encoder = SimplexPixelEncoder((9, 64, 64), 32, 512, 8)
    assert isinstance(encoder.project, torch.nn.Identity)
    frames = torch.randint(0, 256, (2, 9, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    z = encoder(frames)
    torch.testing.assert_close(z.view(2, 64, 8).sum(-1), torch.ones(2, 64))
    torch.testing.assert_close(z, encoder(frames.float()))


def test_the_encoder_learns_at_its_own_rate() -> None:
    agent = make_agent({"name": "tdmpc2", **SMALL}, STATE, seed=0)
    rates = {id(p): group["lr"] for group in agent.optimizer.param_groups for p in group["params"]}
    for name, p in agent.model.named_parameters():
        expected = {"encoder": 0.3 * 3e-4, "pi": None}.get(name.split(".")[0], 3e-4)
        assert rates.get(id(p)) == (pytest.approx(expected) if expected else None), name


def test_more_rounds_of_mppi_for_many_actions() -> None:
    rounds = [
        make_agent({"name": "tdmpc2", **SMALL}, replace(STATE, action_dim=a), seed=0).planner.mppi.config.iterations
        for a in (19, 20)
    ]
    assert rounds == [6, 8]


def test_policy_plans_of_mppi_are_24() -> None:
    assert build(TDMPC2ActingConfig, {}).mppi.prior_samples == 24


def test_sampled_model_ends_in_the_mean_of_two_members() -> None:
    agent = exact()
    z = torch.rand(3, 8, dtype=torch.float64).softmax(-1)
    members = agent.world.two_members(torch.Generator().manual_seed(1))
    assert len(set(members)) == 2
    values = agent.model.number(agent.model.value_logits(z, agent.model.policy(z)))
    ends = agent.world.sampled_model(torch.Generator().manual_seed(1)).terminal(z)
    torch.testing.assert_close(ends, values[members].mean(0))
    torch.testing.assert_close(agent.world.latent_model.terminal(z), values.mean(0))
    drawn = {tuple(sorted(agent.world.two_members(agent.generator))) for _ in range(100)}
    assert len(drawn) == 6


def test_fast_jacobians_are_autograd_s() -> None:
    agent = exact()
    fast = agent.world.latent_model
    plain = LatentModel(lambda z, a: fast.dynamics(z, a), lambda z, a: fast.reward(z, a), lambda z: fast.terminal(z), 0.9)
    z = torch.rand(4, 8, dtype=torch.float64).softmax(-1)
    actions = torch.rand(4, 3, 2, dtype=torch.float64) * 2 - 1
    weights = torch.rand(4, 4, dtype=torch.float64)
    ours, theirs = Trajectory(fast, z, actions), Trajectory(plain, z, actions)
    torch.testing.assert_close(ours.outputs, theirs.outputs)
    torch.testing.assert_close(ours.reward_jacobian(weights), theirs.reward_jacobian(weights), rtol=1e-10, atol=1e-12)


def test_policy_gradient_through_the_planner_against_finite_differences() -> None:
    lm = {"backward": "unroll", "damping": 1.0, "iterations": 3, "target": "fixed"}
    acting = SMALL["acting"] | {"start_std": 0.0, "lm": lm}
    agent = exact("difftop_rl", world_model="tdmpc2", acting=acting)
    obs = random_batch(STATE, size=3).obs[:, 0].double()
    start = torch.rand(3, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(7)) - 0.5
    loss, plan = planned_loss(agent, obs, start)
    assert (plan.status == 0).all() and not torch.allclose(plan.actions, start, atol=1e-3)
    loss.backward()
    assert all(p.grad is None for p in [*agent.gradient.critic.parameters(), *agent.model.pi.parameters()])
    generator = torch.Generator().manual_seed(0)
    for name in ("encoder.0.weight", "dynamics.0.weight", "dynamics.6.weight", "reward.6.weight", "q.0.weight", "q.6.weight"):
        parameter = agent.model.get_parameter(name)
        direction = torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
        with torch.no_grad():
            parameter.add_(direction, alpha=1e-6)
            up = planned_loss(agent, obs, start)[0]
            parameter.add_(direction, alpha=-2e-6)
            down = planned_loss(agent, obs, start)[0]
            parameter.add_(direction, alpha=1e-6)
        slope = (parameter.grad * direction).sum().item()
        assert slope != 0, name
        assert slope == pytest.approx(((up - down) / 2e-6).item(), rel=1e-4, abs=1e-9), name


@pytest.mark.parametrize("planner", ["lm", "none"])
def test_environments_do_not_influence_each_other(planner: str) -> None:
    acting = SMALL["acting"] | {"planner": planner}
    agent = make_agent({"name": "tdmpc2", **SMALL, "acting": acting}, STATE, seed=0)
    obs, order = random_batch(STATE, size=5).obs[:, 0], torch.tensor([3, 1, 4, 0, 2])
    straight, mixed = (agent.actor(5, seed=9, explore=False) for _ in range(2))
    for t0 in (torch.ones(5, dtype=torch.bool), torch.zeros(5, dtype=torch.bool)):
        a, b = straight.act({"state": obs}, t0, 0), mixed.act({"state": obs[order]}, t0, 0)
        torch.testing.assert_close(a[order], b, rtol=0, atol=1e-6)


def test_world_models_that_an_agent_cannot_have() -> None:
    with pytest.raises(ConfigError, match="world_model=tdmpc2: agent=tdmpc has its own"):
        make_agent({"name": "tdmpc", "world_model": "tdmpc2"}, STATE, seed=0)
    with pytest.raises(ConfigError, match="world_model=dreamer: unknown; agent=difftop_rl can be given: scaled, tdmpc, tdmpc2"):
        make_agent({"name": "difftop_rl", "world_model": "dreamer"}, STATE, seed=0)
