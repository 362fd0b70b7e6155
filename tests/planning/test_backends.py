"""The plain loop and Theseus: the same plans and the same gradients, bit for bit in float64."""

import itertools
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from difftop.planning import LatentModel, LMConfig, LMPlanner
from difftop.types import PlanResult
from tests.oracles import Networks, networks
from tests.planning.problems import A, Z, problem

STARTS = {"one": {}, "several": {"start_previous": True, "start_zeros": True, "start_random": 1}}
GRID = list(
    itertools.product(
        ("stagewise", "return", "cost"),
        ("project", "clamp"),
        ("unroll", "truncated", "implicit"),
        (False, True),
        (0.0, 0.5),
        STARTS,
    )
)


def model_of(n: Networks, objective: str) -> LatentModel:
    if objective != "cost":
        return n.fast
    fast = n.fast
    return LatentModel(fast.dynamics, discount=0.9, cost=lambda z, a: torch.cat([fast.dynamics(z, a)[:, :2].sin(), a], 1))


def both(
    config: LMConfig, dtype: torch.dtype = torch.float64, differentiable: bool = True
) -> list[tuple[PlanResult, list[torch.Tensor]]]:
    results = []
    for backend in ("plain", "theseus"):
        n, z, prior = problem(horizon=2, batch=3)
        n = networks(Z, A, 12, dtype)
        z, prior = z.to(dtype).requires_grad_(differentiable), prior.to(dtype).requires_grad_(differentiable)
        generator = torch.Generator().manual_seed(0)
        result = LMPlanner(replace(config, backend=backend), A).plan(
            model_of(n, config.objective), z, prior, previous=-prior, generator=generator, differentiable=differentiable
        )
        inputs = [z, prior, *n.parameters] if differentiable else []
        weights = torch.arange(1.0, result.actions.numel() + 1).to(dtype).view_as(result.actions)
        loss = (result.actions * weights).sum()
        gradients = torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True) if differentiable else ()
        results.append((result, list(gradients)))
    return results


@pytest.mark.parametrize(("objective", "bounds", "backward", "adaptive", "proximal", "starts"), GRID)
def test_plans_and_gradients_are_equal_bit_for_bit(
    objective: str, bounds: str, backward: str, adaptive: bool, proximal: float, starts: str
) -> None:
    config = LMConfig(
        objective=objective,
        bounds=bounds,
        backward=backward,
        adaptive=adaptive,
        proximal=proximal,
        damping=3.0,
        iterations=3,
        return_target=3.0,
        step_size=0.9,
        **STARTS[starts],
    )
    (plain, gradients), (theseus, others) = both(config)
    assert torch.equal(plain.actions, theseus.actions) and torch.equal(plain.value, theseus.value)
    assert torch.equal(plain.status, theseus.status) and torch.equal(plain.iterations, theseus.iterations)
    assert all(torch.equal(a, b) for a, b in zip(gradients, others, strict=True))
    assert gradients[0].abs().max() > 0 and gradients[1].abs().max() == 0  # the prior is a constant
    if adaptive or proximal > 0:
        return
    (single, few), (other, few_others) = both(config, torch.float32)
    torch.testing.assert_close(single.actions, other.actions, rtol=1e-5, atol=1e-6)
    for a, b in zip(few, few_others, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * max(1.0, b.abs().max().item()))


@pytest.mark.parametrize("differentiable", [False, True])
@pytest.mark.parametrize("options", [{"tolerance": 0.02, "iterations": 9}, {"radius": 0.2}, {"target": "fixed", "scale": 0.7}])
def test_so_they_are_with_other_options(options: dict, differentiable: bool) -> None:
    (plain, gradients), (theseus, others) = both(LMConfig(damping=0.5, **options), differentiable=differentiable)
    assert torch.equal(plain.actions, theseus.actions) and torch.equal(plain.iterations, theseus.iterations)
    assert all(torch.equal(a, b) for a, b in zip(gradients, others, strict=True))


def test_theseus_is_loaded_where_it_is_asked_for() -> None:
    code = (
        "import sys, difftop.planning as p; p.LMPlanner(p.LMConfig(), 2); assert 'theseus' not in sys.modules; "
        "p.LMPlanner(p.LMConfig(backend='theseus'), 2); sys.modules['theseus']"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_theseus_the_backend_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "theseus", None)
    monkeypatch.delitem(sys.modules, "difftop.planning.theseus_lm", raising=False)
    with pytest.raises(ValueError, match=r"backend=theseus: Theseus is not installed; docs/install\.md has the line"):
        LMPlanner(LMConfig(backend="theseus"), A)
    n, z, prior = problem()
    assert LMPlanner(LMConfig(), A).plan(n.fast, z, prior).actions.isfinite().all()
