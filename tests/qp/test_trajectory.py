"""The constraint rows against the paper's sums and against the rows of LeTO's code."""

from __future__ import annotations

import math

import pytest
import torch

from difftop.qp import QPHead, TrajectoryLimits
from difftop.qp.trajectory import TrajectoryRows
from tests.qp.problems import XYZ_ROWS, Z_ROW, box_limits, leto_limits


def leto_inequalities(limit: float, past: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """G y <= h as LeTO's code states it for T_p = 6, entry by entry."""
    rows, right = [], []
    for sign in (1.0, -1.0):
        for t in range(5):
            for i in range(6):
                row = torch.zeros(42, dtype=torch.float64)
                row[7 * t + i], row[7 * (t + 1) + i] = sign, -sign
                rows.append(row)
                right.append(limit)
    for sign in (1.0, -1.0):
        for t in range(6):
            for i in range(6):
                rows.append(sign * torch.eye(42, dtype=torch.float64)[7 * t + i])
                right.append(1.0)
    for sign in (1.0, -1.0) if past is not None else ():
        for i in range(6):
            rows.append(sign * torch.eye(42, dtype=torch.float64)[i])
            right.append(limit + sign * float(past[i]))
    return torch.stack(rows), torch.tensor(right, dtype=torch.float64)


@pytest.mark.parametrize("with_past", [False, True])
def test_rows_say_what_letos_rows_say(with_past: bool) -> None:
    past = torch.rand(7, dtype=torch.float64) - 0.5 if with_past else None
    g, h = leto_inequalities(0.1, past)
    assert g.shape == ((144, 42) if with_past else (132, 42))
    assert g.view(-1, 6, 7)[..., 6].abs().max() == 0
    rows = TrajectoryRows(leto_limits())
    assert rows.rows.shape == (66, 42) and rows.rows.view(66, 6, 7)[..., 6].abs().max() == 0
    lower, upper = rows.bounds(1, None, None if past is None else past[None])
    one_sided = torch.cat([rows.rows / 1.0, -rows.rows])
    right = torch.cat([upper[0], -lower[0]])
    y = torch.rand(500, 42, dtype=torch.float64) * 2.4 - 1.2
    y[250:] = 0.9 * y[250:, :7].repeat(1, 6) + 0.2 * y[250:]
    worst = (y @ g.mT - h).amax(1), (y @ one_sided.mT - right).amax(1)
    torch.testing.assert_close(worst[0], worst[1], rtol=0, atol=1e-14)


def test_difference_and_smoothing() -> None:
    rows = TrajectoryRows(leto_limits())
    d = rows.difference @ rows.selection
    gram = (d @ d.mT).view(5, 6, 5, 6)
    for s in range(5):
        for t in range(5):
            expected = 2.0 if s == t else -1.0 if abs(s - t) == 1 else 0.0
            assert torch.equal(gram[s, :, t], expected * torch.eye(6, dtype=torch.float64))
    assert (d @ torch.rand(7, dtype=torch.float64).repeat(6)).abs().max() < 1e-15
    one, three = (QPHead(leto_limits(), alpha=a, init="identity").hessian().view(6, 7, 6, 7) for a in (1.0, 3.0))
    change = (three - one).detach()
    assert change[:, 6].abs().max() == 0 and change[:, :, :, 6].abs().max() == 0 and change[:, :6, :, :6].abs().max() > 1


@pytest.mark.parametrize("horizon", [2, 5])
def test_bounds_follow_the_papers_sums(horizon: int) -> None:
    limits = TrajectoryLimits(
        4,
        horizon,
        (0, 1, 3),
        dt=0.1,
        velocity_min=[-1, -2, -3],
        velocity_max=[1, 2, 4],
        acceleration_min=-5,
        acceleration_max=[5, 6, math.inf],
        position_matrix=[[1, 0, 0], [1, -1, 2]],
        position_min=[-0.5, -math.inf],
        position_max=0.25,
    )
    rows = TrajectoryRows(limits)
    g = torch.Generator().manual_seed(0)
    y, p, last = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((horizon, 4), (1, 3), (1, 4)))
    lower, upper = rows.bounds(1, p, last)
    value = rows.rows @ y.flatten()
    v = y[:, [0, 1, 3]]
    signed = []  # distance to every limit, as the paper writes it, in the units of the rows
    for j in range(horizon):
        low, high = torch.tensor([-1.0, -2, -3]).double(), torch.tensor([1.0, 2, 4]).double()
        if j == 0:
            low = torch.maximum(low, last[0, [0, 1, 3]] - 0.5)
            high = torch.minimum(high, last[0, [0, 1, 3]] + torch.tensor([0.5, 0.6, math.inf], dtype=torch.float64))
        signed += list(zip(v[j] - low, high - v[j], strict=True))
    for j in range(horizon - 1):
        a = (v[j + 1] - v[j]) / 0.1
        signed += list(zip((a + 5) * 0.1, (torch.tensor([5.0, 6, math.inf]).double() - a) * 0.1, strict=True))
    for i in range(1, horizon):
        q = p[0] + 0.1 * v[:i].sum(0)
        signed += [(q[0] + 0.5, 0.25 - q[0]), (torch.tensor(math.inf), 0.25 - (q[0] - q[1] + 2 * q[2]))]
    torch.testing.assert_close(value - lower[0], torch.stack([s[0].double() for s in signed]), rtol=0, atol=1e-12)
    torch.testing.assert_close(upper[0] - value, torch.stack([s[1].double() for s in signed]), rtol=0, atol=1e-12)
    assert rows.soft.tolist() == [-1] * (3 * horizon + 3 * (horizon - 1)) + [0, 1] * (horizon - 1)
    torch.testing.assert_close(rows.difference @ v.flatten(), (v.diff(dim=0) / 0.1).flatten())
    torch.testing.assert_close(rows.integration @ v.flatten(), 0.1 * v.cumsum(0)[:-1].flatten())
    torch.testing.assert_close(rows.selection @ y.flatten(), v.flatten())


def test_rows_without_bounds_are_left_out() -> None:
    limits = TrajectoryLimits(2, 5, velocity_min=-math.inf, velocity_max=math.inf, acceleration_max=[1.0, math.inf])
    assert TrajectoryRows(limits).rows.shape == (
        2 + 4,
        10,
    )  # v_0, in case a previous action is given, and one action's accelerations
    assert TrajectoryRows(TrajectoryLimits(3, 4, ())).rows.shape == (0, 12)
    assert TrajectoryRows(TrajectoryLimits(3, 1)).rows.shape == (3, 3)


def test_casts_do_not_move_the_limits() -> None:
    head = QPHead(leto_limits()).to(torch.float32).half()
    assert head.constraints.rows.dtype == torch.float64
    assert torch.equal(head.constraints.upper, TrajectoryRows(leto_limits()).upper)
    assert head.L.dtype == torch.float16
    assert set(head.state_dict()) == {"L"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"velocity_min": 1.0, "velocity_max": 0.5}, "velocity_min=1 must not be above velocity_max=0.5"),
        ({"velocity_max": [1.0, float("nan"), 1.0]}, "neither may be NaN"),
        ({"acceleration_max": [1.0]}, "acceleration_max=.* has 1 entries; it needs one number, or 3"),
        ({"acceleration_min": math.inf}, "allow no value"),
        ({"position_matrix": [[1.0]]}, "a row of 1 entries; it needs one per constrained action, 3"),
        ({"position_matrix": [[1.0, 0, 0]], "position_min": [0.0, 1.0]}, "position_min"),
        ({"constrained": [0, 3]}, "3 is no action"),
        ({"constrained": [1, 1]}, "twice"),
        ({"dt": 0.0}, "dt=0.0"),
        ({"horizon": 0}, "horizon=0"),
        ({"horizon": 1, "position_matrix": [[1.0, 0, 0]]}, "horizon of at least 2"),
    ],
)
def test_impossible_limits(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrajectoryLimits(**{"action_dim": 3, "horizon": 4, **options})  # type: ignore[arg-type]


def test_bad_tensors_are_named() -> None:
    rows = TrajectoryRows(box_limits(5, Z_ROW))
    with pytest.raises(ValueError, match="position is missing"):
        rows.bounds(2, None, None)
    with pytest.raises(ValueError, match=r"position has shape \[2, 3\]; it must be \[2, 6\]"):
        rows.bounds(2, torch.zeros(2, 3), None)
    with pytest.raises(ValueError, match=r"previous has NaN or infinity in sample 1"):
        rows.bounds(2, torch.zeros(2, 6), torch.tensor([[0.0] * 7, [0.0] * 6 + [math.nan]]))
    assert rows.bounds(3, torch.zeros(3, 6), torch.zeros(3, 7))[0].shape == (3, 30 + 24 + 4)
    assert len(TrajectoryRows(box_limits(5, XYZ_ROWS)).rows) == 30 + 24 + 12


def test_demonstrations_outside_of_the_position_limits_are_refused() -> None:
    limits = box_limits(5, Z_ROW)
    positions = torch.full((10, 6), 0.05)
    positions[:, 0] = 9.0  # x is free
    limits.check_positions(positions)
    positions[3, 2], positions[7, 2] = 0.13, -0.2
    with pytest.raises(ValueError, match=r"demo_3: 2 of 10 are outside of the position limits, first row 3, worst row 7 by 0.2"):
        limits.check_positions(positions, "demo_3")
    leto_limits().check_positions(positions)
    with pytest.raises(ValueError, match=r"positions has shape \[10, 3\]"):
        limits.check_positions(positions[:, :3])
