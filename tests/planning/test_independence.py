"""Samples, calls and failures do not touch each other; mistakes are named."""

import copy
import pickle
import weakref
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from difftop.planning import LatentModel, LMConfig, LMPlanner, TheseusPlanner, rollout_return
from difftop.types import SolveStatus
from tests.oracles import point_mass
from tests.planning.problems import DTYPE, FIXED, A, H, Z, plan, problem


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


@pytest.mark.parametrize("backend", ["plain", "theseus"])
@pytest.mark.parametrize("options", [{}, {"start_zeros": True}, {"adaptive": True}])
def test_a_sample_with_a_damping_of_its_own_is_planned_as_if_all_had_it(backend: str, options: dict) -> None:
    n, z, prior = problem(batch=4)
    config = replace(FIXED, iterations=6, backend=backend, **options)
    damping = torch.tensor([0.01, 10.0, 0.5, 0.01])

    def result(damping: torch.Tensor | None, config: LMConfig) -> tuple[torch.Tensor, torch.Tensor]:
        leaf = z.clone().requires_grad_()
        found = LMPlanner(config, A).plan(n.fast, leaf, prior, damping=damping, differentiable=True)
        return found.actions, torch.autograd.grad(found.actions.sum(), leaf)[0]

    actions, gradient = result(damping, config)
    for i, each in enumerate(damping.tolist()):
        wanted, slope = result(None, replace(config, damping=each))
        torch.testing.assert_close(actions[i], wanted[i], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(gradient[i], slope[i], rtol=1e-7, atol=1e-9)
    if not config.adaptive:
        assert (actions[0] - prior[0]).abs().max() > 2 * (actions[1] - prior[1]).abs().max()


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
    layers = planner.loop.layers
    for horizon in (3, 1, 2, 3):
        planner.plan(n.fast, z, prior[:, :horizon])
        planner.plan(n.fast, z[:2], prior[:2, :horizon])
    assert len(layers) == 3
    model = replace(n.fast)
    result = planner.plan(model, z.requires_grad_(), prior, differentiable=True)
    held = weakref.ref(model)
    del result, model
    assert held() is None
    for layer in layers.values():
        boxes = [*layer.optimizer.ordering, *layer.optimizer._tmp_optim_vars]
        assert all(box.tensor.grad_fn is None and box.tensor.shape[0] == 1 for box in boxes)


def test_weights_that_change_in_place_are_seen() -> None:
    n, z, prior = problem()
    planner = LMPlanner(LMConfig(), A)
    first = planner.plan(n.fast, z, prior).actions
    with torch.no_grad():
        for p in n.parameters:
            p *= 1.3
    second = planner.plan(n.fast, z, prior).actions
    assert torch.equal(second, LMPlanner(LMConfig(), A).plan(n.fast, z, prior).actions) and not torch.equal(first, second)


def test_bad_input_is_named() -> None:
    n, z, prior = problem()
    planner = LMPlanner(LMConfig(), A)
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
    for lowest in (0.0, -1.0, torch.nan, torch.inf):
        with pytest.raises(ValueError, match=r"damping=.*must be positive"):
            planner.plan(n.fast, z, prior, damping=torch.tensor([1.0, lowest, 1.0, 1.0]))
    with pytest.raises(ValueError, match=r"damping: shape \[1\]; must be \[B=4\]"):
        planner.plan(n.fast, z, prior, damping=torch.ones(1))
    with pytest.raises(ValueError, match="scale: shape"):
        planner.plan(n.fast, z, prior, scale=torch.ones(3))
    with pytest.raises(ValueError, match="action_dim=0"):
        LMPlanner(LMConfig(), 0)
    with pytest.raises(ValueError, match=r"model\.cost is None"):
        plan(LMConfig(objective="cost"), n.fast, z, prior)
    with pytest.raises(ValueError, match=r"model\.reward is None"):
        plan(LMConfig(), LatentModel(n.fast.dynamics), z, prior)


def test_another_start_rescues_a_sample_whose_prior_has_no_value() -> None:
    model = LatentModel(lambda z, a: z + a, lambda z, a: torch.where(a[:, 0] > 0.85, torch.nan, -a.square().sum(1)))
    z, prior = torch.zeros(2, 2, dtype=DTYPE), torch.full((2, H, 2), 0.9, dtype=DTYPE)
    prior[1] = 0.1
    result = plan(LMConfig(start_zeros=True), model, z, prior)
    assert result.status.tolist() == [0, 0] and torch.isfinite(result.value).all()
    assert plan(LMConfig(), model, z, prior).status.tolist() == [SolveStatus.FAILED, 0]


def test_where_all_starts_fail_the_best_finite_iterate_is_the_plan() -> None:
    def reward(z, a):
        value = (3 * a).sum(1)
        return torch.where((a[:, 0] > 0.85) | (a[:, 0] != 0) & (a[:, 0] != 0.9), torch.nan, value)

    model = LatentModel(lambda z, a: z, reward)
    z, prior = torch.zeros(1, 2, dtype=DTYPE), torch.full((1, H, 2), 0.9, dtype=DTYPE)
    result = plan(replace(FIXED, start_zeros=True), model, z, prior)
    assert result.status.tolist() == [SolveStatus.FAILED]
    assert torch.equal(result.actions, torch.zeros_like(prior)) and result.value.tolist() == [0.0]


def test_a_bad_implicit_step_is_a_failure_and_not_a_plan() -> None:
    weight = torch.ones(1, dtype=DTYPE, requires_grad=True)
    # At a = 1, where the first step of the first sample ends, the slope is infinite.
    model = LatentModel(lambda z, a: z, lambda z, a: z[:, 0] * a[:, 0] * weight + 0.1 * (1 - a[:, 0].square()).sqrt())
    z, prior = torch.tensor([[50.0], [0.1]], dtype=DTYPE), torch.zeros(2, 1, 1, dtype=DTYPE)
    config = LMConfig(iterations=1, backward="implicit", scale=1.0, damping=1.0, reward_target=60.0)
    result = LMPlanner(config, 1).plan(model, z, prior, differentiable=True)
    plain = LMPlanner(config, 1).plan(model, z, prior)
    assert result.status.tolist() == [SolveStatus.FAILED, 0] and plain.actions[0].item() == 1.0
    assert torch.isfinite(result.actions).all() and torch.equal(result.actions[1], plain.actions[1])
    (gradient,) = torch.autograd.grad(result.actions.sum(), weight)
    assert torch.isfinite(gradient).all() and gradient.item() != 0


def test_inference_mode_gives_the_same_plan() -> None:
    n, z, prior = problem()
    expected = plan(FIXED, n.plain, z, prior).actions
    with torch.inference_mode():
        inside = plan(FIXED, n.plain, z.clone(), prior.clone(), scale=torch.ones(len(z), dtype=DTYPE)).actions
    assert torch.equal(inside, expected)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda planner: pickle.loads(pickle.dumps(planner))])
@pytest.mark.parametrize("backend", ["plain", "theseus"])
def test_a_planner_that_has_planned_can_be_copied(copied: Callable[[LMPlanner], LMPlanner], backend: str) -> None:
    n, z, prior = problem()
    planner = LMPlanner(replace(FIXED, backend=backend), A)
    expected = planner.plan(n.fast, z, prior).actions
    assert torch.equal(copied(planner).plan(n.fast, z, prior).actions, expected)


def test_a_dtype_that_the_planner_lacks_is_named() -> None:
    n, z, prior = problem()
    for dtype in (torch.bfloat16, torch.int64):
        with pytest.raises(ValueError, match=f"z0: {dtype}; must be torch.float32 or torch.float64"):
            plan(FIXED, n.plain, z.to(dtype), prior.to(dtype))


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("target", ["prior", "fixed"])
def test_no_infinite_reward_is_a_plan(bad: float, target: str) -> None:
    model = LatentModel(lambda z, a: z, lambda z, a: a.sum(1) + bad)
    z, prior = torch.zeros(1, 2, dtype=DTYPE), torch.zeros(1, H, 2, dtype=DTYPE)
    assert plan(LMConfig(target=target, start_zeros=True), model, z, prior).status.tolist() == [SolveStatus.FAILED]
