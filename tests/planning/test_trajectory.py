"""Rollouts against plain loops, structured Jacobians against autograd."""

import pytest
import torch
from torch import nn

from difftop.nn.linearize import StateAction
from difftop.nn.mlp import mlp
from difftop.planning import LatentModel, rollout, rollout_cost, rollout_return, shift_plan
from difftop.planning.model import unroll
from difftop.planning.trajectory import Trajectory
from tests.oracles import networks, outputs, point_mass

B, Z, A = 4, 5, 2


def problem(horizon: int):
    n = networks(Z, A, 8)
    g = torch.Generator().manual_seed(1)
    z = torch.randn(B, Z, generator=g, dtype=torch.float64)
    return n, z, torch.rand(B, horizon, A, generator=g, dtype=torch.float64) - 0.5


@pytest.mark.parametrize("horizon", [1, 4])
def test_rollout_return_is_the_discounted_sum(horizon: int) -> None:
    n, z, actions = problem(horizon)
    weights = n.plain.discount ** torch.arange(horizon + 1, dtype=torch.float64)
    expected = torch.stack([outputs(n.plain, z[i], actions[i]) @ weights for i in range(B)])
    torch.testing.assert_close(rollout_return(n.fast, z, actions), expected, rtol=1e-12, atol=1e-12)
    r = rollout(n.fast, z, actions)
    assert r.latents.shape == (B, horizon + 1, Z) and r.rewards.shape == (B, horizon) and r.terminal.shape == (B,)


@pytest.mark.parametrize("kind", ["fast", "plain"])
@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("horizon", [1, 2, 5])
def test_reward_jacobian(kind: str, terminal: bool, horizon: int) -> None:
    n, z, actions = problem(horizon)
    model = getattr(n, kind)
    if not terminal:
        model = LatentModel(model.dynamics, model.reward, None, model.discount)
    value = n.plain.terminal if terminal else (lambda z: z.new_zeros(z.shape[0]))
    oracle = LatentModel(n.plain.dynamics, n.plain.reward, value)
    weights = torch.rand(horizon + 1, B, dtype=torch.float64) + 0.5
    t = Trajectory(model, z, actions)
    for i in range(B):
        x, jacobian = outputs(oracle, z[i], actions[i]), torch.func.jacrev(outputs, 2)(oracle, z[i], actions[i]).flatten(1)
        torch.testing.assert_close(t.outputs[:, i], x, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(t.reward_jacobian(weights)[i], weights[:, i, None] * jacobian, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(t.return_gradient(weights)[i], weights[:, i] @ jacobian, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("horizon", [1, 3])
def test_cost_jacobian(horizon: int) -> None:
    n, z, actions = problem(horizon)

    def cost(z, a):
        return torch.cat([n.plain.dynamics(z, a)[:, :2].sin(), a.square()], -1)

    model = LatentModel(n.fast.dynamics, discount=0.9, cost=cost)
    weights = torch.rand(horizon, B, dtype=torch.float64)

    def rows(a, i):
        state, out = z[i : i + 1], []
        for t in range(horizon):
            out.append(weights[t, i] * cost(state, a[t : t + 1]))
            state = n.plain.dynamics(state, a[t : t + 1])
        return torch.cat(out, 1).squeeze(0)

    ours = Trajectory(model, z, actions, cost=True).cost_jacobian(weights)
    for i in range(B):
        torch.testing.assert_close(ours[i], torch.func.jacrev(rows)(actions[i], i).flatten(1), rtol=1e-10, atol=1e-12)
    weights = 0.9 ** torch.arange(horizon, dtype=torch.float64).div(2).unsqueeze(1).expand(-1, B)
    expected = torch.stack([rows(actions[i], i).square().sum() / 2 for i in range(B)])
    torch.testing.assert_close(rollout_cost(model, z, actions), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rows", [2, 40])
@pytest.mark.parametrize("begins_with_linear", [True, False])
@pytest.mark.parametrize("differentiable", [True, False])
def test_all_steps_in_one_call_are_the_steps(rows: int, begins_with_linear: bool, differentiable: bool) -> None:
    torch.manual_seed(0)
    net = mlp([Z + A, 7, Z]).double()
    dynamics = StateAction(net if begins_with_linear else nn.Sequential(nn.Tanh(), net))
    z = torch.randn(rows, Z, dtype=torch.float64, requires_grad=differentiable)
    actions = torch.rand(3, rows, A, dtype=torch.float64)
    with torch.set_grad_enabled(differentiable):
        latents, pull, to_actions = unroll(dynamics, z, actions)
        expected, expected_pull, _ = unroll(lambda z, a: dynamics(z, a), z, actions)
        for ours, theirs in zip(latents, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
        cotangent = torch.randn(4, rows, Z, dtype=torch.float64)
        for t in range(3):
            (gz, trace), (gz_expected, ga_expected) = pull(t, cotangent, True), expected_pull(t, cotangent, True)
            torch.testing.assert_close(gz, gz_expected, rtol=1e-12, atol=1e-12)
            for found in (trace, pull(t, cotangent, False)[1]):
                torch.testing.assert_close(to_actions(found), ga_expected, rtol=1e-12, atol=1e-12)


def test_wrong_shapes_name_the_callable() -> None:
    z, a = torch.zeros(2, 4), torch.zeros(2, 3, 2)
    m = point_mass()
    for model, name in [
        (LatentModel(lambda z, a: z[:, :2], m.reward), "model.dynamics"),
        (LatentModel(m.dynamics, lambda z, a: z), "model.reward"),
        (LatentModel(m.dynamics, lambda z, a: z[:, :1]), "model.reward"),
        (LatentModel(m.dynamics, m.reward, lambda z: z), "model.terminal"),
    ]:
        with pytest.raises(ValueError, match=f"{name} returned shape"):
            Trajectory(model, z, a)
        with pytest.raises(ValueError, match=f"{name} returned shape"):
            rollout_return(model, z, a)
    with pytest.raises(ValueError, match=r"model\.cost returned shape"):
        Trajectory(LatentModel(m.dynamics, cost=m.reward), z, a, cost=True)
    with pytest.raises(ValueError, match=r"model\.cost is None"):
        Trajectory(m, z, a, cost=True)
    with pytest.raises(ValueError, match=r"model\.reward is None"):
        Trajectory(LatentModel(m.dynamics), z, a)
    with pytest.raises(ValueError, match=r"discount=1\.5"):
        LatentModel(m.dynamics, discount=1.5)


def test_shift_plan() -> None:
    plan = torch.arange(6.0).view(1, 3, 2)
    assert shift_plan(plan).tolist() == [[[2, 3], [4, 5], [0, 0]]]
    assert shift_plan(plan, 1).tolist() == [[[2, 3]]]
    assert shift_plan(plan, 4).tolist() == [[[2, 3], [4, 5], [0, 0], [0, 0]]]
    assert shift_plan(plan[:, :1], 2).tolist() == [[[0, 0], [0, 0]]]
