"""Gradients through the planner: finite differences, AutoDiff Theseus, closed forms."""

from dataclasses import replace

import pytest
import torch

from difftop.planning import LMConfig, LMPlanner
from difftop.planning.objectives import prepare
from tests.oracles import AutoDiffTheseus, stagewise_rows
from tests.planning.problems import DTYPE, FIXED, A, B, H, Z, fixed_rows, linear_cost, plan, problem


@pytest.mark.parametrize("backward", ["unroll", "truncated", "implicit"])
@pytest.mark.parametrize(("adaptive", "iterations"), [(False, 4), (True, 10), (True, 40)])
def test_gradient_at_a_linear_quadratic_optimum_is_exact(backward: str, adaptive: bool, iterations: int) -> None:
    model, z, optimum = linear_cost()
    z.requires_grad_()
    config = LMConfig(
        objective="cost", damping=1e-6, min_damping=1e-6, adaptive=adaptive, iterations=iterations, backward=backward, scale=1.0
    )
    weights = torch.randn(B, H, A, dtype=DTYPE, generator=torch.Generator().manual_seed(0))
    result = plan(config, model, z, torch.zeros(B, H, A, dtype=DTYPE), differentiable=True)
    (ours,) = torch.autograd.grad((result.actions * weights).sum(), z)
    (exact,) = torch.autograd.grad(sum((optimum(z[i]) * weights[i]).sum() for i in range(B)), z)
    torch.testing.assert_close(ours, exact, rtol=1e-5, atol=1e-7)


def test_the_default_holds_its_targets_and_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """Finite differences with the targets and the scale of the unperturbed prior, which are constants to the gradient."""
    n, z, prior = problem(seed=2)
    config, made = LMConfig(backward="unroll", damping=1.0), []
    planner = LMPlanner(config, A)
    z.requires_grad_()

    def held(*arguments: object, **options: object) -> object:
        made.append(prepare(*arguments, **options) if not made else made[0])
        return made[0]

    monkeypatch.setattr("difftop.planning.problem.prepare", held)
    weights = torch.randn(B, H, A, dtype=DTYPE, generator=torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad((planner.plan(n.fast, z, prior, differentiable=True).actions * weights).sum(), z)
    direction = torch.randn(z.shape, generator=torch.Generator().manual_seed(1), dtype=DTYPE)
    with torch.no_grad():
        up, down = ((planner.plan(n.fast, z + s * direction, prior).actions * weights).sum() for s in (1e-6, -1e-6))
    assert (gradient * direction).sum().item() == pytest.approx(((up - down) / 2e-6).item(), rel=1e-6)


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
    planner = LMPlanner(config, A)
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
@pytest.mark.parametrize("tolerance", [0.0, 0.2])
def test_the_plan_is_the_same_with_gradient(starts: bool, backward: str, adaptive: bool, tolerance: float) -> None:
    n, z, prior = problem()
    config = LMConfig(
        backward=backward,
        damping=0.05,
        adaptive=adaptive,
        start_zeros=starts,
        start_random=2 * starts,
        tolerance=tolerance,
        iterations=10 if tolerance else 5,
    )
    planner = LMPlanner(config, A)
    results = [
        planner.plan(n.fast, z, prior, generator=torch.Generator().manual_seed(0), differentiable=d) for d in (False, True)
    ]
    torch.testing.assert_close(results[0].actions, results[1].actions.detach(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(results[0].value, results[1].value)
    assert results[0].iterations.tolist() == results[1].iterations.tolist()
    assert (results[0].iterations < 10).any() if tolerance else results[0].iterations.tolist() == [5] * B
    assert results[1].actions.requires_grad and not results[0].actions.requires_grad
    assert not results[1].value.requires_grad
