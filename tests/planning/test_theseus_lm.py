"""The Theseus planner against slow references: plans, gradients, bounds, scales, failures."""

import subprocess
import sys
import weakref
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from difftop.planning import LatentModel, LMConfig, TheseusPlanner, rollout_cost, rollout_return
from difftop.types import SolveStatus
from tests.oracles import AutoDiffTheseus, naive_lm, networks, outputs, point_mass, projected_adam, stagewise_rows

B, Z, A, H = 4, 5, 2, 3
DTYPE = torch.float64
FIXED = LMConfig(target="fixed", reward_target=1.5, value_target=2.5, scale=0.7, damping=2.0)


def problem(seed: int = 0, horizon: int = H, batch: int = B):
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(batch, Z, generator=g, dtype=DTYPE)
    return networks(Z, A, 12, seed=seed), z, torch.rand(batch, horizon, A, generator=g, dtype=DTYPE) - 0.5


def fixed_rows(model, z, config=FIXED, horizon: int = H):
    target = torch.full((horizon + 1,), config.reward_target, dtype=DTYPE)
    target[-1] = config.value_target
    return lambda a: stagewise_rows(outputs(model, z, a.view(horizon, A)), target, config.scale, model.discount, config.softness)


def plan(config, model, z, prior, **kwargs):
    return TheseusPlanner(config, A).plan(model, z, prior, **kwargs)


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


def linear_cost(batch: int = B, gamma: float = 0.9):
    """Linear dynamics and cost rows: the plan that minimizes the cost is one linear least-squares solve."""
    g = torch.Generator().manual_seed(3)
    f, b = 0.5 * torch.randn(Z, Z, generator=g, dtype=DTYPE), torch.randn(Z, A, generator=g, dtype=DTYPE)
    model = LatentModel(lambda z, a: z @ f.t() + a @ b.t(), discount=gamma, cost=lambda z, a: torch.cat([z + 1, 3 * a], 1))
    z = 0.3 * torch.randn(batch, Z, generator=g, dtype=DTYPE)

    def optimum(z):
        def rows(a):
            state, out = z, []
            for t in range(H):
                out.append(gamma ** (t / 2) * torch.cat([state + 1, 3 * a.view(H, A)[t]]))
                state = f @ state + b @ a.view(H, A)[t]
            return torch.cat(out)

        zero = torch.zeros(H * A, dtype=DTYPE)
        return torch.linalg.lstsq(torch.func.jacrev(rows)(zero), -rows(zero).unsqueeze(1)).solution.view(H, A)

    return model, z, optimum


def test_cost_objective_reaches_the_linear_quadratic_optimum() -> None:
    model, z, optimum = linear_cost()
    prior = torch.zeros(B, H, A, dtype=DTYPE)
    result = plan(LMConfig(objective="cost", damping=1e-6, iterations=3), model, z, prior)
    expected = torch.stack([optimum(z[i]) for i in range(B)])
    assert expected.abs().max() < 1
    torch.testing.assert_close(result.actions, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(result.value, -rollout_cost(model, z, expected))


@pytest.mark.parametrize("backward", ["unroll", "truncated", "implicit"])
def test_gradient_at_a_linear_quadratic_optimum_is_exact(backward: str) -> None:
    model, z, optimum = linear_cost()
    z.requires_grad_()
    config = LMConfig(objective="cost", damping=1e-6, iterations=4, backward=backward, scale=1.0)
    weights = torch.randn(B, H, A, dtype=DTYPE, generator=torch.Generator().manual_seed(0))
    result = plan(config, model, z, torch.zeros(B, H, A, dtype=DTYPE), differentiable=True)
    (ours,) = torch.autograd.grad((result.actions * weights).sum(), z)
    (exact,) = torch.autograd.grad(sum((optimum(z[i]) * weights[i]).sum() for i in range(B)), z)
    torch.testing.assert_close(ours, exact, rtol=1e-5, atol=1e-7)


CASES = {
    "stagewise": replace(FIXED, backward="unroll", iterations=4, damping=3.0),
    "own_scale": LMConfig(backward="unroll", iterations=3, scale=0.0, target="fixed", reward_target=3.0, damping=3.0),
    "bounds": replace(FIXED, backward="unroll", iterations=4, damping=0.3),
    "proximal": replace(FIXED, backward="unroll", proximal=0.5, damping=1.0),
    "return": LMConfig(
        objective="return", bounds="clamp", backward="unroll", iterations=6, step_size=1e-3, damping=0.1, scale=1.0
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", ["fast", "plain"])
def test_gradient_to_parameters_and_latent_by_finite_differences(name: str, kind: str) -> None:
    config = CASES[name]
    n, z, prior = problem(seed=2)
    z.requires_grad_()
    planner = TheseusPlanner(config, A)
    weights = torch.randn(B, H, A, dtype=DTYPE, generator=torch.Generator().manual_seed(0))
    scale = 0.9 if config.scale == 0 else None  # the automatic scale is a constant to the gradient; so it is here

    def loss(differentiable: bool = False):
        return (planner.plan(getattr(n, kind), z, prior, scale=scale, differentiable=differentiable).actions * weights).sum()

    inputs = [z, *n.parameters]
    gradients = torch.autograd.grad(loss(True), inputs)
    g = torch.Generator().manual_seed(1)
    for x, gradient in zip(inputs, gradients, strict=True):
        direction = torch.randn(x.shape, generator=g, dtype=DTYPE)
        direction /= direction.norm()
        step = 1e-6
        with torch.no_grad():
            x += step * direction
            up = loss()
            x -= 2 * step * direction
            down = loss()
            x += step * direction
        numeric = ((up - down) / (2 * step)).item()
        assert (gradient * direction).sum().item() == pytest.approx(numeric, rel=1e-6, abs=1e-7)
    assert all(gradient.abs().max() > 0 for gradient in gradients[:-1])  # the last one is the policy's last bias, see below


def test_truncated_gradient_is_the_unroll_of_the_last_iterations() -> None:
    n, z, prior = problem()
    z.requires_grad_()
    inputs = [z, *n.parameters]
    whole = plan(replace(FIXED, iterations=5, backward_iterations=2), n.fast, z, prior, differentiable=True)
    middle = plan(replace(FIXED, iterations=3), n.fast, z, prior).actions
    tail = plan(replace(FIXED, iterations=2, backward="unroll"), n.fast, z, middle, differentiable=True)
    torch.testing.assert_close(whole.actions, tail.actions, rtol=1e-12, atol=1e-12)
    for a, b in zip(*(torch.autograd.grad(r.actions.square().sum(), inputs) for r in (whole, tail)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("count", [2, 7])
def test_gradient_equals_autodiff_theseus(count: int) -> None:
    n, z, prior = problem()
    z.requires_grad_()
    config = replace(FIXED, damping=30.0, iterations=7, backward_iterations=count)
    target = torch.tensor([1.5] * H + [2.5], dtype=DTYPE)

    def rows(a, z0):
        x, state = [], z0
        for action in a.view(-1, H, A).unbind(1):
            x.append(n.plain.reward(state, action))
            state = n.plain.dynamics(state, action)
        return stagewise_rows(
            torch.stack([*x, n.plain.terminal(state)], 1), target, config.scale, n.plain.discount, config.softness
        )

    reference = AutoDiffTheseus(rows, (H * A, Z), H + 1, DTYPE, 7, 30.0, backward_iterations=count).solve(prior.flatten(1), z)
    assert reference.abs().max() < 1
    result = plan(config, n.fast, z, prior, differentiable=True)
    torch.testing.assert_close(result.actions.flatten(1), reference, rtol=1e-12, atol=1e-12)
    inputs = [z, *n.parameters]
    ours, theirs = torch.autograd.grad(result.actions.sum(), inputs), torch.autograd.grad(reference.sum(), inputs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_implicit_leaves_the_plan_and_differentiates_one_step_with_constant_curvature() -> None:
    n, z, prior = problem()
    z.requires_grad_()
    config = replace(FIXED, backward="implicit", damping=30.0)
    result = plan(config, n.fast, z, prior, differentiable=True)
    end = plan(config, n.fast, z, prior).actions
    assert torch.equal(result.actions, end) and end.abs().max() < 1
    step = []
    for i in range(B):
        rows, a = fixed_rows(n.plain, z[i], config), end[i].flatten()
        jacobian = torch.func.jacrev(rows)(a)
        curvature = (jacobian.t() @ jacobian).detach() + 30.0 * torch.eye(H * A, dtype=DTYPE)
        step.append(-torch.linalg.solve(curvature, jacobian.t() @ rows(a)))
    weights = torch.randn(B, H * A, dtype=DTYPE, generator=torch.Generator().manual_seed(0))
    inputs = [z, *n.parameters]
    ours = torch.autograd.grad((result.actions.flatten(1) * weights).sum(), inputs)
    theirs = torch.autograd.grad((torch.stack(step) * weights).sum(), inputs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("starts", [False, True])
@pytest.mark.parametrize("backward", ["unroll", "truncated", "implicit"])
@pytest.mark.parametrize("adaptive", [False, True])
def test_the_plan_is_the_same_with_gradient(starts: bool, backward: str, adaptive: bool) -> None:
    n, z, prior = problem()
    config = LMConfig(backward=backward, damping=0.05, adaptive=adaptive, start_zeros=starts, start_random=2 * starts)
    planner = TheseusPlanner(config, A)
    results = [
        planner.plan(n.fast, z, prior, generator=torch.Generator().manual_seed(0), differentiable=d) for d in (False, True)
    ]
    torch.testing.assert_close(results[0].actions, results[1].actions.detach(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(results[0].value, results[1].value)
    assert results[0].iterations.tolist() == results[1].iterations.tolist() == [5] * B
    assert results[1].actions.requires_grad and not results[0].actions.requires_grad
    assert not results[1].value.requires_grad


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


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("tolerance", [0.0, 0.05])
def test_rows_do_not_depend_on_their_batch_mates(adaptive: bool, tolerance: float) -> None:
    n, z, prior = problem(batch=6)
    config = replace(FIXED, damping=1e-3, adaptive=adaptive, tolerance=tolerance, iterations=12)
    together = plan(config, n.fast, z, prior)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    permuted = plan(config, n.fast, z[order], prior[order])
    torch.testing.assert_close(permuted.actions, together.actions[order], rtol=1e-9, atol=1e-9)
    assert torch.equal(permuted.iterations, together.iterations[order])
    for i in range(6):
        alone = plan(config, n.fast, z[i : i + 1], prior[i : i + 1])
        torch.testing.assert_close(alone.actions[0], together.actions[i], rtol=1e-9, atol=1e-9)
        assert alone.iterations[0] == together.iterations[i]
    if tolerance > 0:
        assert (together.iterations < 12).any()


def poisoned(model, bad: float, where: str, threshold: float = 50.0):
    """The model, but rows with z[0] beyond the threshold come out bad."""

    def spoil(name, function):
        def wrapped(z, *a):
            out = function(z, *a)
            hit = z[:, 0] > threshold
            factor = torch.where(hit, bad, 1.0).view(-1, *[1] * (out.dim() - 1))
            return out * factor if name == where else out

        return wrapped

    return LatentModel(
        spoil("dynamics", model.dynamics), spoil("reward", model.reward), spoil("terminal", model.terminal), model.discount
    )


@pytest.mark.parametrize("where", ["dynamics", "reward", "terminal"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize(
    "config", [LMConfig(), LMConfig(adaptive=True, damping=0.01), LMConfig(start_zeros=True), LMConfig(backward="unroll")]
)
def test_a_failed_sample_leaves_the_others_to_the_last_bit(where: str, bad: float, config: LMConfig) -> None:
    n, z, prior = problem(batch=5)
    z, prior = z.float(), prior.float()
    for p in n.parameters:
        p.data = p.data.float()
    sound = (
        n.plain
        if where != "terminal"
        else replace(n.plain, dynamics=lambda z, a: torch.cat([z[:, :1], n.plain.dynamics(z, a)[:, 1:]], 1))
    )
    model = poisoned(sound, bad, where)
    hit = z.clone()
    hit[2, 0] = 100.0
    keep = [0, 1, 3, 4]
    good, result = plan(config, model, z, prior), plan(config, model, hit, prior)
    assert result.status.tolist() == [0, 0, SolveStatus.FAILED, 0, 0]
    assert torch.equal(result.actions[keep], good.actions[keep]) and torch.equal(result.value[keep], good.value[keep])
    assert torch.equal(result.actions[2], prior[2])
    assert good.status.tolist() == [0] * 5

    leaf, hit_leaf = z.requires_grad_(), hit.requires_grad_()
    sound_gradient = torch.autograd.grad(
        plan(config, model, leaf, prior, differentiable=True).actions[keep].sum(), [leaf, *n.parameters]
    )
    result = plan(config, model, hit_leaf, prior, differentiable=True)
    gradient = torch.autograd.grad(result.actions.sum(), [hit_leaf, *n.parameters])
    assert result.status[2] == SolveStatus.FAILED and torch.equal(result.actions[2].detach(), prior[2])
    assert torch.equal(gradient[0][2], torch.zeros(Z))
    torch.testing.assert_close(gradient[0][keep], sound_gradient[0][keep], rtol=1e-4, atol=1e-5)
    for a, b in zip(gradient[1:], sound_gradient[1:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("backward", ["unroll", "truncated"])
def test_failure_on_the_way_falls_back_to_the_best_iterate(backward: str) -> None:
    """The reward becomes NaN beyond a_x = 0.3: the plan stops before it, with a finite value, and is counted."""
    base = point_mass()

    def reward(z, a):
        return torch.where(a[:, 0] > 0.3, torch.nan, base.reward(z, a) + a[:, 0])

    model = LatentModel(base.dynamics, reward, base.terminal, base.discount)
    z = torch.tensor([[-3.0, 0.0, 0.0, 0.0], [3.0, 0.0, 0.0, 0.0]], dtype=DTYPE, requires_grad=True)
    config = LMConfig(damping=0.3, iterations=8, backward=backward, backward_iterations=6)
    for differentiable in (False, True):
        result = plan(config, model, z, torch.zeros(2, 3, A, dtype=DTYPE), differentiable=differentiable)
        assert result.status.tolist() == [SolveStatus.FAILED, SolveStatus.SOLVED]
        assert result.iterations[0] < 8 and result.iterations[1] == 8
        assert torch.isfinite(result.value).all() and result.actions[0, :, 0].max() <= 0.3
        torch.testing.assert_close(result.value, rollout_return(model, z, result.actions).detach())
    (gradient,) = torch.autograd.grad(result.actions.sum(), z)
    assert torch.equal(gradient[0], torch.zeros(4, dtype=DTYPE)) and gradient[1].abs().max() > 0


def test_all_samples_may_fail() -> None:
    m = point_mass()
    model = LatentModel(m.dynamics, lambda z, a: m.reward(z, a) * torch.nan, m.terminal)
    z, prior = torch.zeros(3, 4, dtype=DTYPE, requires_grad=True), torch.full((3, 2, 2), 0.5, dtype=DTYPE)
    for differentiable in (False, True):
        result = plan(LMConfig(start_zeros=True), model, z, prior, differentiable=differentiable)
        assert (result.status == SolveStatus.FAILED).all() and torch.equal(result.actions, prior)


def test_layers_are_built_once_and_hold_nothing_between_calls() -> None:
    n, z, prior = problem()
    planner = TheseusPlanner(LMConfig(), A)
    for horizon in (3, 1, 2, 3):
        planner.plan(n.fast, z, prior[:, :horizon])
        planner.plan(n.fast, z[:2], prior[:2, :horizon])
    assert len(planner._layers) == 3
    model = replace(n.fast)
    result = planner.plan(model, z.requires_grad_(), prior, differentiable=True)
    held = weakref.ref(model)
    del result, model
    assert held() is None
    for layer in planner._layers.values():
        boxes = [*layer.optimizer.ordering, *layer.optimizer._tmp_optim_vars]
        assert all(box.tensor.grad_fn is None and box.tensor.shape[0] == 1 for box in boxes)


def test_weights_that_change_in_place_are_seen() -> None:
    n, z, prior = problem()
    planner = TheseusPlanner(LMConfig(), A)
    first = planner.plan(n.fast, z, prior).actions
    with torch.no_grad():
        for p in n.parameters:
            p *= 1.3
    second = planner.plan(n.fast, z, prior).actions
    assert torch.equal(second, TheseusPlanner(LMConfig(), A).plan(n.fast, z, prior).actions) and not torch.equal(first, second)


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


def test_bad_input_is_named() -> None:
    n, z, prior = problem()
    planner = TheseusPlanner(LMConfig(), A)
    bad = z.clone()
    bad[1, 0] = torch.nan
    with pytest.raises(ValueError, match=r"z0: 1 of 4 rows are not finite"):
        planner.plan(n.fast, bad, prior)
    with pytest.raises(ValueError, match=r"prior: 4 of 4 rows are not finite"):
        planner.plan(n.fast, z, prior * torch.inf)
    with pytest.raises(ValueError, match=r"previous: 4 of 4 rows"):
        planner.plan(n.fast, z, prior, previous=prior * torch.nan)
    with pytest.raises(ValueError, match=r"previous: shape .* must be prior's"):
        planner.plan(n.fast, z, prior, previous=prior[:, :1])
    with pytest.raises(ValueError, match=r"prior: shape \[4, 3, 1\]; must be \[B=4, H >= 1, A=2\]"):
        planner.plan(n.fast, z, prior[..., :1])
    with pytest.raises(ValueError, match=r"prior: shape \[4, 0, 2\]"):
        planner.plan(n.fast, z, prior[:, :0])
    with pytest.raises(ValueError, match=r"prior: torch\.float32"):
        planner.plan(n.fast, z, prior.float())
    with pytest.raises(ValueError, match=r"z0: shape \[0, 5\]"):
        planner.plan(n.fast, z[:0], prior[:0])
    for scale in (0.0, -1.0, torch.nan, torch.zeros(4)):
        with pytest.raises(ValueError, match=r"scale=.*must be positive"):
            planner.plan(n.fast, z, prior, scale=scale)
    with pytest.raises(ValueError, match="scale: shape"):
        planner.plan(n.fast, z, prior, scale=torch.ones(3))
    with pytest.raises(ValueError, match="action_dim=0"):
        TheseusPlanner(LMConfig(), 0)
    with pytest.raises(ValueError, match=r"model\.cost is None"):
        plan(LMConfig(objective="cost"), n.fast, z, prior)
    with pytest.raises(ValueError, match=r"model\.reward is None"):
        plan(LMConfig(), LatentModel(n.fast.dynamics), z, prior)


def test_theseus_is_loaded_by_the_planner_alone() -> None:
    code = "import sys, difftop.planning as p; assert 'theseus' not in sys.modules; p.TheseusPlanner; sys.modules['theseus']"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_softplus_rows_keep_the_sum_of_losses() -> None:
    """1/2 sum r^2 = sum_t gamma^t tau softplus((c_t - x_t) / tau): the return up to a constant where targets are far."""
    x, target = torch.randn(6, H + 1, dtype=DTYPE), torch.full((H + 1,), 40.0, dtype=DTYPE)
    rows = stagewise_rows(x, target, 1.0, 0.9, 0.5)
    weights = 0.9 ** torch.arange(H + 1, dtype=DTYPE)
    torch.testing.assert_close(rows.square().sum(1) / 2, (weights * (target - x)).sum(1), rtol=1e-12, atol=1e-12)
    assert F.softplus(torch.tensor(80.0)) == 80.0
