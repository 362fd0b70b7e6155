"""What a CUDA graph or a compiler needs of `lm.plan`, tested without a GPU: no host wait, no mixed devices, fixed shapes."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from difftop.nn.linearize import PolicyValue, StateAction
from difftop.nn.mlp import ensemble_mlp, mlp
from difftop.planning import LatentModel, LMConfig, LMPlanner, MPPIConfig, MPPIPlanner, plan
from difftop.planning import lm as planner
from difftop.types import SolveStatus
from tests.planning.problems import DTYPE, FIXED, A, B, H, Z, problem

# A torch without CUDA can't even slice a fake tensor of that device; `meta` tells of the same faults.
DEVICE = "cuda" if torch.backends.cuda.is_built() else "meta"
CONFIGS = {
    "default": LMConfig(),
    "starts": LMConfig(start_previous=True, start_zeros=True, start_random=1),
    "adaptive": LMConfig(adaptive=True, tolerance=0.01, proximal=0.1, radius=0.5),
    "return": LMConfig(objective="return", bounds="clamp"),
    "cost": LMConfig(objective="cost"),
    "implicit": LMConfig(backward="implicit"),
}


def moved(net: nn.Module) -> nn.Module:
    """The network with weights on the current device, not drawn: without CUDA torch can neither draw nor copy there."""
    for module in net.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(torch.zeros(parameter.shape)))
    return net


def fake_model(objective: str, by_hand: bool = True) -> LatentModel:
    """A model on the current device, which isn't there; its Jacobians by hand, or by autograd."""
    with torch.device("cpu"):
        nets = [mlp([Z + A, 8, Z]), mlp([Z + A, 8, 1]), mlp([Z, 8, A]), ensemble_mlp(2, [Z + A, 8, 8, 1])]
    dynamics, reward, policy, q = (moved(net) for net in nets)
    d, r, v = StateAction(dynamics), StateAction(reward, scalar=True), PolicyValue(q, policy)
    if objective == "cost":
        return LatentModel(d, cost=StateAction(dynamics))
    return LatentModel(d, r if by_hand else lambda z, a: r(z, a), v)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("batch", [1, 64])
def test_a_plan_meets_no_host_wait_and_one_device(name: str, batch: int) -> None:
    config = CONFIGS[name]
    with FakeTensorMode(), torch.device(DEVICE), torch.no_grad():
        model = fake_model(config.objective)
        z, prior = torch.zeros(batch, Z), torch.zeros(batch, H, A)
        result = LMPlanner(config, A).plan(model, z, prior, previous=prior, scale=torch.ones(batch))
        assert result.actions.shape == (batch, H, A) and result.actions.device.type == DEVICE
        assert result.value.shape == result.status.shape == (batch,)


@pytest.mark.parametrize("name", ["default", "starts", "adaptive", "return", "implicit"])
@pytest.mark.parametrize("by_hand", [False, True])
def test_nor_does_a_differentiable_plan_that_is_captured(name: str, by_hand: bool) -> None:
    """On torch's `meta` device: autograd asks a real one for its guard."""
    with FakeTensorMode(), torch.device("meta"):
        config = CONFIGS[name]
        model = fake_model(config.objective, by_hand)
        z, prior = torch.zeros(2, Z, requires_grad=True), torch.zeros(2, H, A)
        result = planner.plan(model, z, prior, config, previous=prior, scale=torch.ones(2), differentiable=True, static=True)
        assert result.actions.requires_grad and not result.value.requires_grad


def test_nor_does_sampling() -> None:
    with FakeTensorMode(), torch.device("meta"):
        model = fake_model("stagewise")
        z, prior = torch.zeros(2, Z), torch.zeros(2, 3, H, A)
        assert MPPIPlanner(MPPIConfig(samples=16, elites=4), A).plan(model, z, prior).actions.shape == (2, H, A)


def test_the_check_would_find_a_host_wait() -> None:
    with FakeTensorMode(), torch.device(DEVICE), torch.no_grad(), pytest.raises(DataDependentOutputException):
        model = fake_model("stagewise")

        class Waits(StateAction):
            def linearize(self, z: torch.Tensor, a: torch.Tensor) -> object:
                return super().linearize(z, a if bool(z.sum() > 0) else -a)

        model = replace(model, reward=Waits(model.reward.net, scalar=True))
        LMPlanner(LMConfig(), A).plan(model, torch.zeros(2, Z), torch.zeros(2, H, A))


def test_a_compiler_takes_the_whole_plan_as_one_graph() -> None:
    n, z, prior = problem()

    def optimize(z: torch.Tensor, prior: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return planner.plan(n.fast, z, prior, LMConfig(iterations=2)).actions

    compiled = torch.compile(optimize, fullgraph=True, backend="eager")
    assert torch.equal(compiled(z, prior), optimize(z, prior))


@pytest.mark.parametrize("backward", ["unroll", "truncated", "implicit"])
@pytest.mark.parametrize("starts", [False, True])
@pytest.mark.parametrize("failing", [False, True])
def test_a_captured_plan_is_the_same_plan(backward: str, starts: bool, failing: bool) -> None:
    """`static` runs the last iterations twice and reads nothing; plans, statuses and gradients are those of the other way."""
    n, z, prior = problem()
    config = replace(FIXED, backward=backward, start_zeros=starts)
    model = n.fast
    if failing:  # beyond a_x = 0.45, where the third sample arrives on the way
        model = replace(model, reward=lambda z, a: torch.where((z[:, 0] > 50) & (a[:, 0] > 0.2), torch.nan, n.fast.reward(z, a)))
        model = replace(model, dynamics=lambda z, a: torch.cat([z[:, :1], n.plain.dynamics(z, a)[:, 1:]], 1))
        z[2, 0] = 100.0
        prior[2] = 0.0
    z.requires_grad_()
    inputs = [z, *n.parameters]
    results = [planner.plan(model, z, prior, config, differentiable=True, static=static) for static in (False, True)]
    eager, static = results
    torch.testing.assert_close(static.actions, eager.actions, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(static.value, eager.value, rtol=1e-12, atol=1e-12)
    assert torch.equal(static.status, eager.status) and torch.equal(static.iterations, eager.iterations)
    weights = torch.randn(B, H, A, dtype=DTYPE, generator=torch.Generator().manual_seed(0))
    for a, b in zip(
        *(torch.autograd.grad((r.actions * weights).sum(), inputs, allow_unused=True, materialize_grads=True) for r in results),
        strict=True,
    ):
        assert torch.isfinite(a).all()
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
    if failing:
        assert (static.status == SolveStatus.FAILED).tolist() == [False, False, True, False]


def test_on_a_device_that_is_not_read_bad_input_is_a_failure() -> None:
    """As on a GPU, where `LMPlanner` doesn't look at numbers."""
    n, z, prior = problem()
    z[1, 0] = torch.nan
    prior[2, 0, 0] = torch.inf
    prior[3, 0, 0] = torch.nan
    result = planner.plan(n.fast, z, prior, LMConfig())
    assert (result.status == SolveStatus.FAILED).tolist() == [False, True, False, True]
    assert result.actions.isfinite().all() and result.actions.abs().max() <= 1
    sound = planner.plan(n.fast, z[:1], prior[:1], LMConfig())
    torch.testing.assert_close(result.actions[:1], sound.actions, rtol=1e-12, atol=1e-12)


def test_one_call_is_the_planner() -> None:
    n, z, prior = problem()
    config = LMConfig(damping=0.5, start_random=2)
    expected = LMPlanner(config, A).plan(n.fast, z, prior, generator=torch.Generator().manual_seed(0), differentiable=True)
    result = plan(n.fast, z, prior, config, generator=torch.Generator().manual_seed(0), differentiable=True)
    assert torch.equal(result.actions, expected.actions) and result.actions.requires_grad
    with pytest.raises(ValueError, match=r"start: shape \[4, 2\]; must be \[B=4, H >= 1, A >= 1\]"):
        plan(n.fast, z, prior[:, 0])


def test_a_plan_without_gradient_leaves_ordinary_tensors() -> None:
    n, z, prior = problem()
    result = LMPlanner(LMConfig(), A).plan(n.fast, z, prior)
    assert not any(x.is_inference() for x in (result.actions, result.value, result.status, result.iterations))
    (n.fast.reward(z, result.actions[:, 0]).sum() + result.actions.sum()).backward()
    assert not n.fast.needs_autograd and n.plain.needs_autograd
