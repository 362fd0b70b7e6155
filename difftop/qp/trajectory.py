"""Limits on a predicted action trajectory, written as rows l <= A y <= u of a quadratic program."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Limit = float | Sequence[float]


@dataclass(frozen=True)
class TrajectoryLimits:
    """What a trajectory of actions y = (y_0, ..., y_{T_p-1}), y_j in R^A, has to satisfy.

    Constrained actions v_j = S y_j are velocities. With the step dt and the current position p_t,

        velocity_min     <= v_j                           <= velocity_max          j = 0 .. T_p-1
        acceleration_min <= (v_{j+1} - v_j) / dt          <= acceleration_max      j = 0 .. T_p-2
        position_min     <= A_pos (p_t + dt sum_{k<i} v_k) <= position_max         i = 1 .. T_p-1
        acceleration_min <= (v_0 - v_{t-1}) / dt          <= acceleration_max      where the previous action is given

    LeTO's robomimic runs use dt = 1 and actions normalized to [-1, 1]: velocity 1 and acceleration 0.1 per step.

    Attributes:
        action_dim: A.
        horizon: T_p.
        constrained: indices of the constrained actions, None for all; a gripper is usually left out.
        dt: time between actions, in s (or 1, for limits per step).
        velocity_min, velocity_max: per constrained action, or one number for all; in action units, infinite for none.
        acceleration_min, acceleration_max: likewise, in action units per s.
        position_matrix: A_pos, r rows over the constrained actions' positions; None for no position limits.
        position_min, position_max: b_min and b_max, per row of A_pos or one number; in the unit of position, action unit times s.
    Source: LeTO, arXiv:2401.17500, section III-C, eqs. 1 to 3, 6 to 8 and 11.
    Differs: limits per dimension, any of them may be absent.
    """

    action_dim: int
    horizon: int
    constrained: Sequence[int] | None = None
    dt: float = 1.0
    velocity_min: Limit = -1.0
    velocity_max: Limit = 1.0
    acceleration_min: Limit = -math.inf
    acceleration_max: Limit = math.inf
    position_matrix: Sequence[Sequence[float]] | None = None
    position_min: Limit = -math.inf
    position_max: Limit = math.inf

    def __post_init__(self) -> None:
        if self.action_dim < 1 or self.horizon < 1:
            raise ValueError(f"action_dim={self.action_dim} and horizon={self.horizon} must both be at least 1.")
        if not (self.dt > 0 and math.isfinite(self.dt)):
            raise ValueError(f"dt={self.dt} must be a positive number of seconds (1 for limits per step).")
        for i in self.constrained or ():
            if not 0 <= i < self.action_dim:
                raise ValueError(
                    f"constrained={list(self.constrained or ())}: {i} is no action; use indices from 0 to {self.action_dim - 1}."
                )
        if len(set(self.selected)) != len(self.selected):
            raise ValueError(f"constrained={list(self.selected)} names an action twice.")
        self._check_matrix()
        for kind in ("velocity", "acceleration", "position"):
            self._check_order(kind)

    @property
    def selected(self) -> tuple[int, ...]:
        """Indices of the constrained actions."""
        return tuple(range(self.action_dim)) if self.constrained is None else tuple(self.constrained)

    @property
    def size(self) -> int:
        """n = T_p A, the length of y."""
        return self.horizon * self.action_dim

    def check_positions(self, positions: Tensor, name: str = "positions") -> None:
        """Refuses demonstrations that leave the position limits; to be called when they are loaded.

        LeTO's Remark 1: without a previous action, every training problem is feasible if p_t is inside the limits.

        Args:
            positions: `[N, c]`, of the constrained actions.
            name: what to call them in the message.
        Raises:
            ValueError: wrong shape, NaN, or positions outside, with their number, the first and the worst.
        """
        check_rows(name, positions, (len(positions), len(self.selected)))
        outside = self._excess(positions)
        if bool((outside > 0).any()):
            worst, first = int(outside.argmax()), int((outside > 0).nonzero()[0])
            raise ValueError(
                f"{name}: {int((outside > 0).sum())} of {len(positions)} are outside of the position limits, first row {first}, "
                f"worst row {worst} by {float(outside[worst]):.3g}; widen the limits or leave these demonstrations out."
            )

    def outside(self, positions: Tensor) -> Tensor:
        """Which of the positions `[N, c]` leave the position limits, `[N]` bool."""
        return self._excess(positions) > 0

    def _excess(self, positions: Tensor) -> Tensor:
        """By how much positions leave their limits `[N]`, at most 0 inside; float64."""
        if self.position_matrix is None:
            return torch.zeros(len(positions), dtype=torch.float64, device=positions.device)
        value = positions.double() @ torch.tensor(self.position_matrix, dtype=torch.float64, device=positions.device).mT
        low, high = (
            torch.tensor(self.vector(end), dtype=torch.float64, device=value.device) for end in ("position_min", "position_max")
        )
        return torch.maximum(low - value, value - high).amax(1)

    def _check_matrix(self) -> None:
        if self.position_matrix is not None and self.horizon < 2:
            raise ValueError(
                "position_matrix with horizon=1 constrains nothing (positions 1 .. T_p-1); use a horizon of at least 2."
            )
        for row in self.position_matrix or ():
            if len(row) != len(self.selected):
                raise ValueError(
                    f"position_matrix has a row of {len(row)} entries; it needs one per constrained action, {len(self.selected)}."
                )

    def _check_order(self, kind: str) -> None:
        low, high = self.vector(f"{kind}_min"), self.vector(f"{kind}_max")
        for i, (a, b) in enumerate(zip(low, high, strict=True)):
            if not a <= b:
                raise ValueError(f"{kind}_min={a:g} must not be above {kind}_max={b:g} (entry {i}), and neither may be NaN.")
            if a == math.inf or b == -math.inf:
                raise ValueError(f"{kind}_min={a:g} and {kind}_max={b:g} (entry {i}) allow no value.")

    def vector(self, name: str) -> list[float]:
        """A limit by name (`velocity_min`), one number per constrained action, or per row of A_pos."""
        size = len(self.position_matrix or ()) if name.startswith("position") else len(self.selected)
        value = getattr(self, name)
        if isinstance(value, int | float):
            return [float(value)] * size
        if len(value) != size:
            raise ValueError(f"{name}={list(value)} has {len(value)} entries; it needs one number, or {size}.")
        return [float(x) for x in value]


class TrajectoryRows(nn.Module):
    """The rows l <= A y <= u of `TrajectoryLimits`.

    They come in the order velocity (T_p c), acceleration ((T_p-1) c), position ((T_p-1) r) for c constrained actions and r rows
    of A_pos; inside each block time is the slower index. Rows without any finite bound are left out. The continuity limit is no
    row of its own: with a previous action it tightens the velocity limits of v_0.

    The buffers are float64 whatever the module is cast to, and not in the state dict: limits belong to the configuration.
        selection: S `[T_p c, n]`, v = S y.
        difference: A_diff `[(T_p-1) c, T_p c]`, accelerations; 1/dt is in it.
        integration: A_inte `[(T_p-1) c, T_p c]`, displacements; dt is in it.
        rows: A `[m, n]`; acceleration rows are differences of velocities, without 1/dt.
        lower, upper: l and u `[m]` for p_t = 0 and no previous action.
        soft: `[m]` int64, the row of A_pos that a position row comes from, -1 for velocity and acceleration rows.
        start: `[c, m]`, p_t -> A_pos p_t in every position row.
        first: `[A, m]`, v_{t-1} -> the velocity rows of v_0; first_min, first_max `[m]`: how far these may be from it.
        chosen: `[c]`, indices of the constrained actions.
        velocity_min, velocity_max, jump_min, jump_max: `[c]`; jumps are changes of action per step, a_min dt and a_max dt.
    """

    selection: Tensor
    difference: Tensor
    integration: Tensor
    rows: Tensor
    lower: Tensor
    upper: Tensor
    soft: Tensor
    start: Tensor
    first: Tensor
    first_min: Tensor
    first_max: Tensor
    chosen: Tensor
    velocity_min: Tensor
    velocity_max: Tensor
    jump_min: Tensor
    jump_max: Tensor

    def __init__(self, limits: TrajectoryLimits) -> None:
        super().__init__()
        self.limits = limits
        for name, tensor in _matrices(limits).items():
            self.register_buffer(name, tensor, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TrajectoryRows:
        device = fn(self.rows).device
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, tensor in _matrices(self.limits).items():  # a cast to float32 would move the limits
            setattr(self, name, tensor.to(device))
        return self

    def bounds(self, batch: int, position: Tensor | None, previous: Tensor | None) -> tuple[Tensor, Tensor]:
        """Bounds of B samples; differentiable in both tensors.

        Args:
            batch: B.
            position: p_t `[B, c]`, positions that the constrained actions are velocities of; needed if there are position limits.
            previous: v_{t-1} as the whole last executed action `[B, A]`, or None for no continuity limit.
        Returns:
            l and u `[B, m]`, float64.
        Raises:
            ValueError: a tensor of the wrong shape or with NaN, or no position where it is needed.
        """
        c = len(self.limits.selected)
        lower, upper = self.lower.expand(batch, -1), self.upper.expand(batch, -1)
        if position is not None:
            check_rows("position", position, (batch, c))
        if self.limits.position_matrix is not None:
            if position is None:
                raise ValueError(
                    f"position is missing; these limits have position rows, so pass the current positions [{batch}, {c}]."
                )
            shift = position.double() @ self.start
            lower, upper = lower - shift, upper - shift
        if previous is not None:
            check_rows("previous", previous, (batch, self.limits.action_dim))
            last = previous.double()
            lower = torch.maximum(lower, torch.addmm(self.first_min, last, self.first))
            upper = torch.minimum(upper, torch.addmm(self.first_max, last, self.first))
        return lower, upper


def check_rows(name: str, value: Tensor, shape: tuple[int, int]) -> None:
    """Raises ValueError, naming the argument and the first bad sample, unless `value` is finite and has this shape."""
    if tuple(value.shape) != shape:
        raise ValueError(f"{name} has shape {list(value.shape)}; it must be {list(shape)}.")
    if math.isfinite(value.sum().item()):
        return  # the sum is finite only if all entries are (or overflows), and costs a fifth of looking at each
    if not bool(torch.isfinite(value).all()):
        sample = int((~torch.isfinite(value).all(1)).nonzero()[0])
        raise ValueError(f"{name} has NaN or infinity in sample {sample}; all entries must be finite: look at what computed it.")


def _matrices(limits: TrajectoryLimits) -> dict[str, Tensor]:
    """The buffers of `TrajectoryRows`, on the CPU."""
    c, steps, f64 = len(limits.selected), limits.horizon, torch.float64
    eye = torch.eye(c, dtype=f64)
    selection = torch.kron(torch.eye(steps, dtype=f64), torch.eye(limits.action_dim, dtype=f64)[list(limits.selected)])
    jump = torch.kron(torch.eye(steps, dtype=f64).diff(dim=0), eye)
    integration = limits.dt * torch.kron(torch.ones(steps - 1, steps, dtype=f64).tril(), eye)
    position_map = torch.tensor(limits.position_matrix or [], dtype=f64).reshape(len(limits.position_matrix or ()), c)
    r = position_map.shape[0]
    position = torch.kron(torch.eye(steps - 1, dtype=f64), position_map) @ integration
    rows = torch.cat([torch.eye(steps * c, dtype=f64), jump, position]) @ selection
    bounds = []
    for end in ("min", "max"):
        velocity, acceleration, place = (
            torch.tensor(limits.vector(f"{kind}_{end}"), dtype=f64) for kind in ("velocity", "acceleration", "position")
        )
        bounds.append(
            (
                velocity.repeat(steps),
                acceleration.repeat(steps - 1) * limits.dt,
                place.repeat(steps - 1),
                velocity,
                acceleration * limits.dt,
            )
        )
    lower, upper = (torch.cat(b[:3]) for b in bounds)
    kept = torch.isfinite(lower) | torch.isfinite(upper)
    kept[:c] = True  # a previous action may bound v_0
    soft = torch.cat([torch.full((len(kept) - r * (steps - 1),), -1), torch.arange(r).repeat(steps - 1)])
    start = torch.cat([torch.zeros(c, len(soft) - r * (steps - 1), dtype=f64), position_map.mT.repeat(1, steps - 1)], 1)
    none = torch.full((int(kept.sum()) - c,), math.inf, dtype=f64)
    return {
        "selection": selection,
        "difference": jump / limits.dt,
        "integration": integration,
        "rows": rows[kept],
        "lower": lower[kept],
        "upper": upper[kept],
        "soft": soft[kept],
        "start": start[:, kept],
        "first": selection[:c, : limits.action_dim].mT @ torch.eye(c, int(kept.sum()), dtype=f64),
        "first_min": torch.cat([bounds[0][4], -none]),
        "first_max": torch.cat([bounds[1][4], none]),
        "chosen": torch.tensor(limits.selected, dtype=torch.int64),
        "velocity_min": bounds[0][3],
        "velocity_max": bounds[1][3],
        "jump_min": bounds[0][4],
        "jump_max": bounds[1][4],
    }
