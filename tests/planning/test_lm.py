"""Plans against slow references: objectives, bounds, starts, scales."""

from dataclasses import replace

import pytest
import torch

from difftop.planning import LatentModel, LMConfig, rollout_cost, rollout_return
from difftop.types import SolveStatus
from tests.oracles import naive_lm, outputs, point_mass, projected_adam, stagewise_rows
from tests.planning.problems import DTYPE, FIXED, A, B, H, fixed_rows, linear_cost, plan, problem


@pytest.mark.parametrize("damping", [0.05, 50.0])
@pytest.mark.parametrize("horizon", [1, H])
def test_stagewise_plan_is_naive_lm_sample_by_sample(damping: float, horizon: int) -> None:
    n, z, prior = problem(horizon=horizon)
    config = replace(FIXED, damping=damping)
    result = plan(config, n.fast, z, prior)
    for i in range(B):
        expected = naive_lm(fixed_rows(n.plain, z[i], config, horizon), prior[i].flatten(), 5, damping)
        torch.testing.assert_close(result.actions[i].flatten(), expected, rtol=1e-8, atol=1e-8)
    assert (result.actions.abs() == 1).any() == (damping == 0.05)  # both regimes are covered
    torch.testing.assert_close(result.value, rollout_return(n.plain, z, result.actions))
    assert result.status.tolist() == [SolveStatus.SOLVED] * B and result.iterations.tolist() == [5] * B


def test_default_targets_lie_above_the_prior_in_units_of_its_scale() -> None:
    n, z, prior = problem()
    config = LMConfig(damping=1.0)
    result = plan(config, n.fast, z, prior)
    for i in range(B):
        x = outputs(n.plain, z[i], prior[i])
        scale = torch.cat([x[:-1].abs(), x[-1:].abs() * 0.01]).max()
        target = x / scale + 2.0

        def rows(a, i=i, target=target, scale=scale):
            return stagewise_rows(outputs(n.plain, z[i], a.view(H, A)), target, scale, n.plain.discount, 0.5)

        torch.testing.assert_close(result.actions[i].flatten(), naive_lm(rows, prior[i].flatten(), 5, 1.0), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("rho", [0.5])
def test_proximal_weight_is_least_squares_rows(rho: float) -> None:
    n, z, prior = problem()
    config = replace(FIXED, damping=0.05, proximal=rho)
    result = plan(config, n.fast, z, prior)
    for i in range(B):
        rows, start = fixed_rows(n.plain, z[i], config), prior[i].flatten()
        expected = naive_lm(lambda a, r=rows, s=start: torch.cat([r(a), rho**0.5 * (a - s)]), start, 5, 0.05)
        torch.testing.assert_close(result.actions[i].flatten(), expected, rtol=1e-8, atol=1e-8)


def test_return_objective_is_the_papers_normalised_ascent() -> None:
    """One row 1000 - G gives a <- a + alpha g (1000 - G) / (|g|^2 + lambda), with a clamp inside G."""
    n, z, prior = problem()
    config = LMConfig(objective="return", bounds="clamp", iterations=30, step_size=1e-3, damping=0.1, scale=1.0)
    result = plan(config, n.fast, z, prior)
    a = prior.clone()
    for _ in range(30):
        a.requires_grad_()
        value = rollout_return(n.plain, z, a.clamp(-1, 1))
        (g,) = torch.autograd.grad(value.sum(), a)
        step = g * ((1000 - value) / (g.square().sum((1, 2)) + 0.1)).view(-1, 1, 1)
        a = (a + 1e-3 * step).detach()
    assert (a.abs() > 1).any()  # the dead zone of the official code is reached
    torch.testing.assert_close(result.actions, a.clamp(-1, 1), rtol=1e-8, atol=1e-8)


def test_cost_objective_reaches_the_linear_quadratic_optimum() -> None:
    model, z, optimum = linear_cost()
    prior = torch.zeros(B, H, A, dtype=DTYPE)
    result = plan(LMConfig(objective="cost", damping=1e-6, iterations=3), model, z, prior)
    expected = torch.stack([optimum(z[i]) for i in range(B)])
    assert expected.abs().max() < 1
    torch.testing.assert_close(result.actions, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(result.value, -rollout_cost(model, z, expected))


def test_the_best_start_is_kept_per_sample() -> None:
    n, z, prior = problem(batch=8)
    config = LMConfig(damping=0.05, target="fixed", start_previous=True, start_zeros=True, scale=1.0)
    previous = torch.rand(prior.shape, dtype=DTYPE, generator=torch.Generator().manual_seed(5)) * 2 - 1
    result = plan(config, n.fast, z, prior, previous=previous)
    alone = replace(config, start_previous=False, start_zeros=False)
    plans = [plan(alone, n.fast, z, start).actions for start in (prior, previous, torch.zeros_like(prior))]
    target = torch.full((H + 1,), 2.0, dtype=DTYPE)
    picked = set()
    for i in range(8):
        errors = [stagewise_rows(outputs(n.plain, z[i], p[i]), target, 1.0, 0.99, 0.5).square().sum().item() for p in plans]
        best = min(range(3), key=errors.__getitem__)
        picked.add(best)
        torch.testing.assert_close(result.actions[i], plans[best][i], rtol=1e-9, atol=1e-9)
    assert len(picked) > 1


def test_without_a_previous_plan_it_is_no_start() -> None:
    n, z, prior = problem()
    config = LMConfig(start_previous=True)
    assert torch.equal(plan(config, n.fast, z, prior).actions, plan(LMConfig(), n.fast, z, prior).actions)


def test_random_starts_come_from_the_generator() -> None:
    n, z, prior = problem()
    config = LMConfig(damping=0.05, start_random=3)
    runs = [plan(config, n.fast, z, prior, generator=torch.Generator().manual_seed(s)).actions for s in (0, 0, 1)]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


@pytest.mark.parametrize("factor", [0.01, 100.0])
@pytest.mark.parametrize("objective", ["stagewise", "return", "cost"])
def test_plans_do_not_change_with_the_unit_of_reward(objective: str, factor: float) -> None:
    if objective == "cost":
        model, z, _ = linear_cost()
        times = LatentModel(model.dynamics, discount=model.discount, cost=lambda z, a: factor * model.cost(z, a))
        prior = torch.zeros(B, H, A, dtype=DTYPE)
    else:
        n, z, prior = problem()
        model = n.fast
        times = LatentModel(
            model.dynamics, lambda z, a: factor * model.reward(z, a), lambda z: factor * model.terminal(z), model.discount
        )
    config = LMConfig(objective=objective, damping=1.0, return_target=3.0)
    torch.testing.assert_close(
        plan(config, times, z, prior).actions, plan(config, model, z, prior).actions, rtol=1e-10, atol=1e-10
    )


def test_damping_and_radius_bound_the_step() -> None:
    n, z, prior = problem()
    moved = [(plan(LMConfig(damping=d), n.fast, z, prior).actions - prior).abs().amax((1, 2)) for d in (0.1, 10.0, 1000.0)]
    assert (moved[0] > moved[1]).all() and (moved[1] > 5 * moved[2]).all()
    result = plan(LMConfig(damping=0.01, radius=0.1, start_random=2), n.fast, z, prior)
    assert (result.actions - prior).abs().max() == pytest.approx(0.1)


@pytest.mark.parametrize("bounds", ["project", "clamp"])
def test_plans_are_in_the_box_and_on_the_box_descent_goes_on(bounds: str) -> None:
    model = point_mass()
    z = torch.tensor([[5.0, -5.0, 0.0, 0.0]], dtype=DTYPE)
    outside = torch.full((1, 4, 2), 3.0, dtype=DTYPE)
    result = plan(LMConfig(damping=1e-3, iterations=8, bounds=bounds), model, z, outside)
    assert result.actions.abs().max() <= 1
    assert (result.actions[0, 0] - torch.tensor([-1.0, 1.0], dtype=DTYPE)).abs().max() < 1e-9


def test_adaptive_damping_never_makes_the_objective_worse() -> None:
    n, z, prior = problem(batch=16)
    config = replace(FIXED, damping=1e-4, adaptive=True)
    rows = [fixed_rows(n.plain, z[i], config) for i in range(16)]
    errors = []
    for count in range(1, 7):
        actions = plan(replace(config, iterations=count), n.fast, z, prior).actions
        errors.append(torch.stack([rows[i](actions[i].flatten()).square().sum() for i in range(16)]))
    start = torch.stack([rows[i](prior[i].flatten()).square().sum() for i in range(16)])
    history = torch.stack([start, *errors])
    assert (history[1:] <= history[:-1] + 1e-12).all()
    assert ((history[1:] == history[:-1]).any(0) & (history[-1] < start)).any()  # some steps were undone


def test_float32_and_autocast_follow_float64() -> None:
    n, z, prior = problem()
    exact = plan(LMConfig(), n.fast, z, prior).actions
    for p in n.parameters:
        p.data = p.data.float()
    single = plan(LMConfig(), n.fast, z.float(), prior.float()).actions
    assert single.dtype == torch.float32 and (single - exact).abs().max() < 1e-5
    with torch.autocast("cpu", torch.bfloat16):
        for model in (n.fast, n.plain):
            half = plan(LMConfig(), model, z.float().requires_grad_(), prior.float(), differentiable=True).actions
            half.sum().backward()
            assert half.dtype == torch.float32
            assert (half - exact).abs().max() < 0.3 * (exact - prior).abs().max()


def test_point_mass_plans_reach_the_optimum_of_the_return() -> None:
    model, g = point_mass(), torch.Generator().manual_seed(0)
    z = torch.randn(6, 4, generator=g, dtype=DTYPE)
    prior = torch.zeros(6, 8, A, dtype=DTYPE)
    best = rollout_return(model, z, projected_adam(lambda a: rollout_return(model, z, a), prior, 600, 0.05))
    config = LMConfig(damping=1.0, adaptive=True, iterations=60, reward_target=50.0, value_target=50.0)
    result = plan(config, model, z, prior)
    gain = best - rollout_return(model, z, prior)
    assert (gain > 0.5).all() and ((best - result.value) < 0.01 * gain).all()
