"""The head: gradients, dtypes, modes, infeasible samples, and what deployment promises."""

from __future__ import annotations

import copy
import dataclasses
import math
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from difftop.qp import ClipHead, QPHead, SolveInfo, TrajectoryLimits
from difftop.qp.layer import SolveQP
from difftop.qp.solver import prepare
from difftop.types import SolveStatus
from tests.qp.problems import XYZ_ROWS, Z_ROW, box_limits, clarabel_solve, leto_limits, make

SOLVED, RELAXED, INFEASIBLE = int(SolveStatus.SOLVED), int(SolveStatus.RELAXED), int(SolveStatus.INFEASIBLE)


def small_limits() -> TrajectoryLimits:
    return TrajectoryLimits(
        2,
        3,
        (0,),
        dt=0.5,
        acceleration_min=-0.4,
        acceleration_max=0.3,
        position_matrix=[[1.0]],
        position_min=-0.4,
        position_max=0.5,
    )


def small_inputs(batch: int) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(2)
    e = 2 * torch.randn(batch, 6, generator=g, dtype=torch.float64)
    position = 0.3 * (torch.rand(batch, 1, generator=g, dtype=torch.float64) - 0.5)
    previous = 0.4 * (torch.rand(batch, 2, generator=g, dtype=torch.float64) - 0.5)
    return e, position, previous


def test_gradcheck_of_the_head() -> None:
    head = QPHead(small_limits(), generator=torch.Generator().manual_seed(0)).double()
    inputs = [x.requires_grad_() for x in small_inputs(5)]
    start = head.L.detach().clone().requires_grad_()

    def run(lower_factor: Tensor, *rest: Tensor) -> Tensor:
        return torch.func.functional_call(head, {"L": lower_factor}, rest)[0]

    assert torch.autograd.gradcheck(run, (start, *inputs), eps=1e-6, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("condition", [0.0, 1e3])
def test_gradcheck_of_the_program(condition: float) -> None:
    p = make(TrajectoryLimits(2, 4, acceleration_min=-0.1, acceleration_max=0.1), 3, condition=condition, previous=True)

    def run(q: Tensor, e: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
        q = 0.5 * (q + q.mT)
        return SolveQP.apply(q, e, lower, upper, prepare(q.detach(), p.rows), None)[0]

    inputs = [x.clone().requires_grad_() for x in (p.hessian, p.e, p.lower, p.upper)]
    assert torch.autograd.gradcheck(run, inputs, eps=1e-6, atol=1e-6, rtol=1e-6)


def test_directional_derivatives_at_letos_size() -> None:
    head = QPHead(box_limits(10, Z_ROW), alpha=0.0025, generator=torch.Generator().manual_seed(1)).double()
    g = torch.Generator().manual_seed(3)
    e = -torch.tanh(torch.randn(32, 70, generator=g, dtype=torch.float64))
    position = 0.03 + 0.06 * torch.rand(32, 6, generator=g, dtype=torch.float64)
    previous = 0.2 * (torch.rand(32, 7, generator=g, dtype=torch.float64) - 0.5)
    inputs = (head.L.detach(), e, position, previous)
    weight = torch.randn(32, 10, 7, generator=g, dtype=torch.float64)

    def loss(*values: Tensor) -> tuple[Tensor, SolveInfo]:
        y, info = torch.func.functional_call(head, {"L": values[0]}, values[1:])
        return info.mean((weight * y).sum((1, 2))), info

    leaves = [x.clone().requires_grad_() for x in inputs]
    value, info = loss(*leaves)
    assert bool(info.certified.all())
    gradients = torch.autograd.grad(value, leaves)
    assert gradients[0].triu(1).abs().max() == 0
    for k in range(4):
        direction = torch.randn(inputs[k].shape, generator=g, dtype=torch.float64)
        direction = direction.tril() if k == 0 else direction
        h = 1e-6 if k else 1e-7
        ends = [loss(*(x + s * h * direction if i == k else x for i, x in enumerate(inputs)))[0] for s in (1, -1)]
        difference = (ends[0] - ends[1]) / (2 * h)
        torch.testing.assert_close((gradients[k] * direction).sum(), difference, rtol=1e-6, atol=1e-6)


def test_the_gradient_of_L_is_a_sum_over_the_batch() -> None:
    head = QPHead(leto_limits(4)).double()
    e = torch.randn(1, 28, dtype=torch.float64)
    head(e)[0].sum().backward()
    one = head.L.grad.clone()
    head.L.grad = None
    head(e.expand(8, -1))[0].sum().backward()
    torch.testing.assert_close(head.L.grad, 8 * one, rtol=1e-9, atol=1e-12)


def test_infeasible_samples_leave_the_training_loss() -> None:
    head = QPHead(box_limits(6, Z_ROW), alpha=0.0025)
    e = torch.randn(4, 42, requires_grad=True)
    position = torch.full((4, 6), 0.06)
    position[2, 2] = 0.7
    y, info = head(e, position)
    assert info.status.tolist() == [SOLVED, SOLVED, INFEASIBLE, SOLVED]
    assert info.counts() == {"solved": 3, "relaxed": 0, "infeasible": 1, "failed": 0}
    assert y[2].isnan().all() and y[[0, 1, 3]].isfinite().all()
    loss = info.mean((y - 1).square().mean((1, 2)))
    loss.backward()
    assert torch.isfinite(loss) and e.grad[2].abs().max() == 0 and e.grad[[0, 1, 3]].abs().sum() > 0
    gradient = head.L.grad.clone()
    head.L.grad = None
    keep = torch.tensor([0, 1, 3])
    without, _ = head(e[keep].detach(), position[keep])
    (without - 1).square().mean().backward()
    torch.testing.assert_close(gradient, head.L.grad)
    nothing = SolveInfo(torch.full((2,), INFEASIBLE), *[torch.zeros(2)] * 3)
    assert nothing.mean(torch.full((2,), torch.nan)) == 0


def test_evaluation_relaxes_positions_only() -> None:
    head = QPHead(box_limits(6, Z_ROW), alpha=0.0025).eval()
    position = torch.full((3, 6), 0.06)
    position[1, 2] = 0.7
    with torch.no_grad():
        y, info = head(torch.randn(3, 42), position, torch.zeros(3, 7))
    assert info.status.tolist() == [SOLVED, RELAXED, SOLVED]
    assert info.slack[0] == 0 and info.slack[1] == pytest.approx(0.7 - 0.05 * 0.1 - 0.12, abs=1e-6)
    assert float(y[1, 0, 2]) == pytest.approx(-0.1, abs=1e-6)  # back towards the box as fast as the acceleration limit allows
    assert y.diff(dim=1)[..., :6].abs().max() <= 0.1 + 1e-6
    previous = torch.zeros(3, 7)
    previous[0, 0] = 1.2  # nothing within 0.1 of it satisfies |v| <= 1
    y, info = head(torch.randn(3, 42), position, previous)
    assert info.status.tolist() == [INFEASIBLE, RELAXED, SOLVED] and y[0].isnan().all()


@pytest.mark.parametrize("batch", [1, 40])
def test_only_limits_in_conflict_are_relaxed(batch: int) -> None:
    head, g = QPHead(box_limits(10, XYZ_ROWS), alpha=0.0025, generator=torch.Generator().manual_seed(0)).eval(), torch.Generator()
    e = -3 * torch.tanh(torch.randn(batch, 70, generator=g.manual_seed(1), dtype=torch.float64))
    position = 0.02 + 0.08 * torch.rand(batch, 6, generator=g, dtype=torch.float64)
    previous = 0.1 * (torch.rand(batch, 7, generator=g, dtype=torch.float64) - 0.5)
    position[:, 2] = 0.5  # x and y are inside, and can stay there
    with torch.no_grad():
        y, info = head(e, position, previous)
        lower, upper = head.constraints.bounds(batch, position, previous)
    value = y.flatten(1) @ head.constraints.rows.mT
    violation = torch.maximum(value - upper, lower - value)
    assert info.status.tolist() == [RELAXED] * batch
    assert violation[:, head.constraints.soft != 2].max() <= 1e-9
    torch.testing.assert_close(violation.amax(1), info.slack, rtol=0, atol=1e-9)


def test_a_limit_with_one_side_is_relaxed_too() -> None:
    limits = dataclasses.replace(box_limits(10, Z_ROW), position_min=-math.inf)
    head, g = QPHead(limits, alpha=0.0025, generator=torch.Generator().manual_seed(0)).eval(), torch.Generator().manual_seed(1)
    e, position = -torch.tanh(torch.randn(60, 70, generator=g)), 0.06 + 0.1 * torch.rand(60, 6, generator=g)
    previous = torch.rand(60, 7, generator=g) - 0.5
    with torch.no_grad():
        alone = [int(head(e[i : i + 1], position[i : i + 1], previous[i : i + 1])[1].status) for i in range(60)]
        together = head(e, position, previous)[1].status.tolist()
    assert alone == together and set(together) == {SOLVED, RELAXED}


def test_against_clarabel_with_letos_deployment_rows() -> None:
    head = QPHead(leto_limits()).eval()
    e, previous = -torch.tanh(torch.randn(6, 42)), torch.rand(6, 7) - 0.5
    with torch.no_grad():
        y, info = head(e, None, previous)
    first = torch.eye(42, dtype=torch.float64)[:6]
    rows = torch.cat([head.constraints.rows, first])  # the continuity limit as rows of its own
    for i in range(6):
        lower = torch.cat([head.constraints.lower, previous[i, :6].double() - 0.1])
        upper = torch.cat([head.constraints.upper, previous[i, :6].double() + 0.1])
        expected, _ = clarabel_solve(head.hessian().detach(), rows, e[i].double(), lower, upper)
        torch.testing.assert_close(y[i].flatten().double(), expected, rtol=0, atol=1e-6)
    assert bool(info.certified.all())


@pytest.mark.parametrize("batch", [1, 4])
def test_a_600_step_rollout_never_leaves_its_limits(batch: int) -> None:
    head, g = QPHead(leto_limits()).eval(), torch.Generator().manual_seed(0)
    last = torch.zeros(batch, 7)
    scale = torch.logspace(-2, 1, 4)[:, None]
    with torch.no_grad():
        for step in range(600):
            size = scale if batch == 4 else scale[step // 10 % 4]
            e = (1e6 if step % 60 == 59 else 1.0) * size * torch.randn(batch, 42, generator=g)
            y, info = head(e, None, last)
            assert bool((info.status == SOLVED).all())
            assert (y[:, 0] - last)[:, :6].abs().max() <= 0.1 + 1e-6
            assert y[..., :6].abs().max() <= 1 + 1e-6
            last = y[:, 0]


def test_a_rollout_with_positions_keeps_the_hard_limits() -> None:
    # Two steps ahead are too few to brake in time: the position limit has to give way, and only by what braking costs.
    head, g = QPHead(box_limits(3, Z_ROW), alpha=0.0025).eval(), torch.Generator().manual_seed(0)
    position, last = torch.full((4, 6), 0.01, dtype=torch.float64), torch.zeros(4, 7)
    seen = set()
    with torch.no_grad():
        for _ in range(100):
            e = torch.randn(4, 21, generator=g)
            e[:, 2::7] -= 5.0  # the network wants to leave through the upper end of the box
            y, info = head(e, position, last)
            assert bool(info.certified.all())
            assert (y[:, 0] - last)[:, :6].abs().max() <= 0.1 + 1e-6
            slowest = last[:, 2].double() - 0.1
            last, position = y[:, 0], position + 0.05 * y[:, 0, :6].double()
            outside = torch.maximum(position[:, 2] - 0.12, -position[:, 2])
            assert bool((outside <= info.slack + 1e-6).all())
            forced = (info.status == RELAXED) & (outside > 1e-6) & (slowest > -0.9)
            torch.testing.assert_close(y[forced, 0, 2].double(), slowest[forced], rtol=0, atol=1e-5)
            seen |= set(info.status.tolist())
    assert seen == {SOLVED, RELAXED}


def test_dtypes_autocast_and_compile() -> None:
    head = QPHead(leto_limits(4), generator=torch.Generator().manual_seed(0))
    e = torch.randn(3, 28)
    exact, _ = head(e.double())
    assert exact.dtype == torch.float64
    single, _ = head(e)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), exact, rtol=0, atol=1e-7)
    net = nn.Sequential(nn.Linear(5, 28), nn.Tanh())
    x = torch.randn(3, 5)

    def policy(x: Tensor) -> Tensor:
        return head(-net(x))[0]

    with torch.autocast("cpu", torch.bfloat16):
        y = policy(x)
        assert y.dtype == torch.bfloat16
        y.float().square().sum().backward()
    assert net[0].weight.grad.isfinite().all() and net[0].weight.grad.abs().sum() > 0
    plain = torch.autograd.grad(policy(x).square().sum(), [*net.parameters(), head.L])
    compiled = torch.compile(policy, backend="aot_eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Dynamo's own, at a graph break
        through = torch.autograd.grad(compiled(x).square().sum(), [*net.parameters(), head.L])
    for a, b in zip(through, plain, strict=True):
        torch.testing.assert_close(a, b)


def test_kept_factors_follow_the_parameters() -> None:
    head = QPHead(leto_limits(4)).eval()
    e = torch.randn(2, 28)
    with torch.no_grad():
        before = head(e)[0]
        assert head._prepared()[1] is head._prepared()[1]
        head.L.data += 0.5 * torch.eye(28)  # as an average of weights does, behind autograd's back
        after = head(e)[0]
    assert not torch.allclose(before, after)
    fresh = QPHead(leto_limits(4))
    fresh.load_state_dict(head.state_dict())
    torch.testing.assert_close(fresh(e)[0], after)
    torch.testing.assert_close(copy.deepcopy(head)(e)[0], after)


def test_training_moves_L_and_fits_reachable_targets() -> None:
    torch.manual_seed(0)
    limits = TrajectoryLimits(3, 4, (0, 1), acceleration_min=-0.3, acceleration_max=0.3)
    head, net = QPHead(limits, init="identity"), nn.Linear(6, 12)
    x = torch.randn(32, 6)
    target = (0.2 * torch.randn(32, 1, 3)).expand(32, 4, 3).clamp(-0.5, 0.5)
    optimizer = torch.optim.Adam([*net.parameters(), *head.parameters()], 1e-2)
    losses = []
    for _ in range(60):
        y, info = head(-torch.tanh(net(x)))
        loss = info.mean((y - target).square().mean((1, 2)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert head.L.detach().triu(1).abs().max() == 0


def test_projection_and_clipping_agree_on_one_step() -> None:
    limits = TrajectoryLimits(7, 1, range(6), acceleration_min=-0.1, acceleration_max=0.1)
    wanted, previous = torch.rand(50, 7, dtype=torch.float64) * 2 - 1, torch.rand(50, 7, dtype=torch.float64) * 2 - 1
    projected, _ = QPHead.projection(limits).eval()(-wanted, None, previous)
    clipped, info = ClipHead(limits)(-wanted, None, previous)
    torch.testing.assert_close(projected, clipped, rtol=0, atol=1e-12)
    change = (wanted - previous)[:, :6].clamp(-0.1, 0.1)  # LeTO's single-clip runner
    torch.testing.assert_close(clipped[:, 0, :6], (previous[:, :6] + change).clamp(-1, 1), rtol=0, atol=1e-12)
    assert torch.equal(clipped[:, 0, 6], wanted[:, 6]) and bool(info.certified.all())


def test_clipping_a_trajectory() -> None:
    head = ClipHead(leto_limits(5))
    e = torch.randn(20, 35)
    y, _ = head(e, previous=torch.zeros(20, 7))
    assert y.shape == (20, 5, 7) and y.dtype == torch.float32
    assert torch.cat([torch.zeros(20, 1, 7), y], 1).diff(dim=1)[..., :6].abs().max() <= 0.1 + 1e-6
    y, info = head(e, previous=torch.full((20, 7), 1.5))
    assert bool((info.status == INFEASIBLE).all()) and y.isnan().all()
    with pytest.raises(ValueError, match="position_matrix is set"):
        ClipHead(box_limits(5, Z_ROW))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2, 41),), r"e has shape \[2, 41\]; it must be \[2, 42\]"),
        ((torch.tensor([[0.0] * 42, [math.nan] * 42, [0.0] * 42]),), "e has NaN or infinity in sample 1"),
        ((torch.zeros(2, 42), None, torch.zeros(1, 7)), r"previous has shape \[1, 7\]; it must be \[2, 7\]"),
        ((torch.zeros(2, 42), torch.zeros(2, 3)), r"position has shape \[2, 3\]"),
    ],
)
def test_bad_input_is_named(arguments: tuple[Tensor, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QPHead(leto_limits())(*arguments)


def test_bad_options_and_parameters_are_named() -> None:
    with pytest.raises(ValueError, match="alpha=-1"):
        QPHead(leto_limits(), alpha=-1.0)
    with pytest.raises(ValueError, match="init='zeros'"):
        QPHead(leto_limits(), init="zeros")
    head = QPHead(leto_limits(), eps=0.0, alpha=0.0)
    nn.init.zeros_(head.L)
    with pytest.raises(ValueError, match="not positive definite"):
        head(torch.zeros(1, 42))


numbers = st.floats(0.01, 2.0)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data(), actions=st.integers(1, 4), horizon=st.integers(1, 6), batch=st.integers(1, 3), seed=st.integers(0, 99))
def test_any_limits_and_dimensions(data: st.DataObject, actions: int, horizon: int, batch: int, seed: int) -> None:
    chosen = data.draw(st.lists(st.integers(0, actions - 1), unique=True))
    each = st.lists(numbers, min_size=len(chosen), max_size=len(chosen))
    v, a = data.draw(each), data.draw(each)
    dt = data.draw(st.floats(0.02, 1.0))
    limits = TrajectoryLimits(
        actions,
        horizon,
        chosen,
        dt=dt,
        velocity_min=[-x for x in v],
        velocity_max=v,
        acceleration_min=[-x for x in a],
        acceleration_max=a,
    )
    g = torch.Generator().manual_seed(seed)
    head = QPHead(limits, generator=g).eval()
    e = 10 * torch.randn(batch, limits.size, generator=g, dtype=torch.float64)
    previous = (2 * torch.rand(batch, actions, generator=g, dtype=torch.float64) - 1) * 0.01
    with torch.no_grad():
        y, info = head(e, None, previous)
        lower, upper = head.constraints.bounds(batch, None, previous)
    assert bool((info.status == SOLVED).all()) and info.kkt.max() <= 1e-9
    for i in range(batch):
        expected, _ = clarabel_solve(head.hessian().detach(), head.constraints.rows, e[i], lower[i], upper[i])
        torch.testing.assert_close(y[i].flatten(), expected, rtol=1e-6, atol=1e-6)


def test_the_example_in_the_docs_runs() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "qp.md").read_text()
    code = page.split("```python\n")[1].split("```")[0]
    names: dict[str, object] = {}
    exec(code, names)
    actions = names["actions"]
    assert isinstance(actions, Tensor) and actions.shape == (1, 10, 7)
    heights = 0.06 + 0.05 * actions[0, :, 2].double().cumsum(0)
    assert heights[:-1].min() >= 0.0475 - 1e-6 and actions[..., :6].abs().max() <= 0.5 + 1e-6
