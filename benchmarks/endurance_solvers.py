"""Quadratic programs and plans by the hundred thousand, with degenerate, infeasible and broken ones among them.

What the solvers say is compared with what the definitions say, in numbers that share no code with them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.endurance_rows import Row, Setting, say
from benchmarks.qp_problems import (
    XYZ_ROWS,
    Z_ROW,
    Problem,
    box_limits,
    clarabel_solve,
    duplicated,
    leto_limits,
    make,
    outside,
    pinned,
    residuals,
    with_signs,
)
from difftop.planning import LatentModel, LMConfig, LMPlanner
from difftop.planning.config import MPPIConfig
from difftop.planning.mppi import MPPIPlanner
from difftop.qp import QPHead, TrajectoryLimits
from difftop.qp.solver import prepare, solve
from difftop.types import PlanResult, SolveStatus
from tests.oracles import networks

_BATCH = 256
_VIOLATION = 1e-9  # of a limit by a solution that is called one; the problems' numbers are of order one
_CHECKED = 1 / 64  # of the samples, by solvers that take long
_SOLVED, _RELAXED, _INFEASIBLE, _FAILED = (
    int(status) for status in (SolveStatus.SOLVED, SolveStatus.RELAXED, SolveStatus.INFEASIBLE, SolveStatus.FAILED)
)


def families(batch: int, seed: int) -> Iterator[tuple[str, Problem]]:
    """Kinds of programs: degenerate ones (equal rows, l = u, more active rows than variables) and infeasible ones among them."""
    options = {"batch": batch, "seed": seed}
    yield "T_p 10", make(leto_limits(10), **options)
    yield "acceleration 0.01", make(leto_limits(10, 0.01), **options)
    yield "condition 1e6", make(leto_limits(10), condition=1e6, **options)
    yield "condition 1e8", make(leto_limits(8), condition=1e8, **options)
    yield "e = 0", with_signs(make(leto_limits(10), **options), 0.0)
    yield "bang-bang", with_signs(make(leto_limits(16), **options), 50.0)
    yield "l = u", pinned(make(leto_limits(10), **options))
    yield "duplicated rows", duplicated(make(leto_limits(10), **options))
    yield "no width", _no_width(make(leto_limits(8), **options))
    yield "position and previous action", make(box_limits(10, Z_ROW), position=True, previous=True, **options)
    yield "positions and previous action", make(box_limits(10, XYZ_ROWS), position=True, previous=True, **options)
    yield "outside by 0.5", outside(make(box_limits(10, Z_ROW), position=True, **options))
    yield "limits that contradict", _contradicting(make(leto_limits(8), **options))


def _no_width(p: Problem) -> Problem:
    """Every second sample: all velocities 0, so that every acceleration row is active and redundant."""
    lower, upper = p.lower.clone(), p.upper.clone()
    lower[::2], upper[::2] = lower[::2].clamp_min(0), upper[::2].clamp_max(0)
    return Problem(p.hessian, p.rows, p.e, lower, upper)


def _contradicting(p: Problem) -> Problem:
    """Every second sample: one bound is above the other by between 1e-6 and 1."""
    lower = p.lower.clone()
    count = len(lower[::2])
    lower[::2, 3] = p.upper[::2, 3] + torch.logspace(-6, 0, count, dtype=lower.dtype)
    return Problem(p.hessian, p.rows, p.e, lower, p.upper)


def qps(setting: Setting) -> Iterator[Row]:
    """Every solution inside its limits, every verdict right; then the head, whose position limits may give way."""
    wanted, tried, short, checked, counts = setting.size(100_000, 3_300), 0, 0, 0, torch.zeros(4, dtype=torch.int64)
    seed = 1000 * setting.seed
    while tried < wanted:
        for name, p in families(_BATCH, seed):
            s = solve(prepare(p.hessian, p.rows), p.e, p.lower, p.upper)
            bad = _silent(p, s.y, s.status)
            some = torch.randperm(len(p.e), generator=torch.Generator().manual_seed(seed))[: int(_BATCH * _CHECKED)]
            bad[some] |= _wrong(p, s.y, s.status, s.side, some)
            checked += len(some)
            counts += torch.bincount(s.status, minlength=4)
            tried += len(p.e)
            short += int(bad.sum())
            if bool(bad.any()):
                say(f"  {name}, seed {seed}: samples {bad.nonzero()[:4, 0].tolist()}, status {s.status[bad][:4].tolist()}")
        seed += 1
    note = f"{int(counts[_SOLVED])} solved, {int(counts[_INFEASIBLE])} infeasible, {int(counts[_FAILED])} said to have failed; "
    note += f"{checked} also by least squares or Clarabel"
    promise = f"inside the limits by {_VIOLATION:g}, or said that it isn't, and NaN"
    yield Row("quadratic programs, 13 kinds", tried, promise, short, note)
    yield _heads(setting)


def _silent(p: Problem, y: Tensor, status: Tensor) -> Tensor:
    """`[B]`: called a solution, and outside of its limits; or called none, and not NaN."""
    value = y @ p.rows.mT
    excess = torch.maximum(value - p.upper, p.lower - value).amax(1)
    solved = status == _SOLVED
    return torch.where(solved, ~(excess <= _VIOLATION), ~y.isnan().all(1))


def _wrong(p: Problem, y: Tensor, status: Tensor, side: Tensor, some: Tensor) -> Tensor:
    """Of some samples: a solution that isn't optimal, or a verdict that there is none where Clarabel finds one."""
    found = []
    for i in some.tolist():
        one = p[torch.tensor([i])]
        if int(status[i]) == _SOLVED:
            found.append(not float(residuals(one, y[i : i + 1], side[i : i + 1])[0]) <= 1e-7)
        elif int(status[i]) == _INFEASIBLE:
            other, none = clarabel_solve(p.hessian, p.rows, p.e[i], p.lower[i], p.upper[i], 1e-9)
            value = p.rows @ other
            excess = torch.maximum(value - p.upper[i], p.lower[i] - value).max()
            found.append(not none and bool(excess <= 1e-7))  # Clarabel shows a point inside
        else:
            found.append(False)  # said to have failed, which is no silence
    return torch.tensor(found)


def _heads(setting: Setting) -> Row:
    """`QPHead` as it acts: velocity and acceleration hold, a position may be left by the slack that is told, or there is NaN."""
    batches, tried, short, relaxed, none = setting.size(80, 4), 0, 0, 0, 0
    head = QPHead(box_limits(8, XYZ_ROWS), generator=torch.Generator().manual_seed(setting.seed)).eval()
    g = torch.Generator().manual_seed(setting.seed + 1)
    for _ in range(batches):
        e = -torch.tanh(3 * torch.randn(_BATCH, head.limits.size, generator=g)).double()
        position = 0.3 * torch.rand(_BATCH, 6, generator=g).double() - 0.1  # the box is [0, 0.12]
        previous = 2.4 * torch.rand(_BATCH, 7, generator=g).double() - 1.2  # beyond the velocity limits too
        with torch.no_grad():
            y, info = head(e, position, previous)
        excess = _excess(head.limits, y, position, previous, info.slack)
        bad = torch.where(info.certified, ~(excess <= 1e-8), ~y.flatten(1).isnan().all(1))
        tried, short = tried + len(e), short + int(bad.sum())
        relaxed, none = relaxed + int((info.status == _RELAXED).sum()), none + int((~info.certified).sum())
    note = f"{relaxed} with position limits widened, {none} said to have none"
    promise = "velocity and acceleration kept, position by the slack told"
    return Row("trajectories of the QP head, states inside and outside of the limits", tried, promise, short, note)


def _excess(limits: TrajectoryLimits, y: Tensor, position: Tensor, previous: Tensor, slack: Tensor) -> Tensor:
    """By how much `[B]` trajectories leave their limits, from the definition in `TrajectoryLimits`."""
    v, last = y[..., list(limits.selected)], previous[:, None, list(limits.selected)]
    acceleration = torch.cat([last, v], 1).diff(dim=1) / limits.dt
    moved = position[:, None] + limits.dt * v[:, :-1].cumsum(1)
    place = moved @ torch.tensor(limits.position_matrix, dtype=y.dtype).mT
    widened = slack.view(-1, 1, 1)
    pairs = (
        (v, limits.velocity_min, limits.velocity_max, 0.0),
        (acceleration * limits.dt, limits.acceleration_min * limits.dt, limits.acceleration_max * limits.dt, 0.0),  # type: ignore[operator]
        (place, limits.position_min, limits.position_max, widened),
    )
    return torch.stack(
        [torch.maximum(x - high - more, low - x - more).flatten(1).amax(1) for x, low, high, more in pairs]  # type: ignore[operator]
    ).amax(0)


CONFIGS = (
    LMConfig(),
    LMConfig(adaptive=True, damping=0.01),
    LMConfig(start_zeros=True),
    LMConfig(start_random=2, tolerance=0.05),
    LMConfig(objective="return", return_target=1000.0),
)
_LATENT, _ACTION, _HORIZON = 5, 2, 3
_MARK = 100.0  # first number of a latent of which the model breaks


def plans(setting: Setting) -> Iterator[Row]:
    """Batches in which a model breaks for some rows: the others are the plans of a batch in which it doesn't, to the bit."""
    for name, wanted in (("LM", setting.size(90_000, 3_000)), ("MPPI", setting.size(10_000, 500))):
        tried = short = broken = 0
        number = 0
        while tried < wanted:
            chance = setting.random("plans", name, number)
            batch = chance.choice((1, 2, 7, 64, 250)) if name == "LM" else chance.choice((2, 25))
            share, bad = chance.choice((0.02, 0.3, 0.9)), chance.choice((torch.nan, torch.inf, -torch.inf, 1e38))
            where, late = chance.choice(("dynamics", "reward", "terminal")), chance.random() < 0.3
            g = torch.Generator().manual_seed(chance.randrange(2**31))
            hit = torch.rand(batch, generator=g) < share
            z, prior = torch.randn(batch, _LATENT, generator=g), torch.rand(batch, _HORIZON, _ACTION, generator=g) * 2 - 1
            marked = z.clone()
            marked[hit, 0] = _MARK
            model = _breaking(networks(_LATENT, _ACTION, 12, torch.float32, number % 10).plain, bad, where, late)
            plan = _planner(name, number)
            good, found = plan(model, z, prior, number), plan(model, marked, prior, number)
            keep, equal = ~hit, (found.actions == good.actions).flatten(1).all(1) & (found.value == good.value)
            wrong = torch.where(keep, ~equal | (found.status != good.status), ~_honest(found))
            tried, short, broken, number = tried + batch, short + int(wrong.sum()), broken + int(hit.sum()), number + 1
            if bool(wrong.any()):
                say(f"  {name} {number - 1}: batch {batch}, {where} {bad} late {late}: rows {wrong.nonzero()[:4, 0].tolist()}")
        promise = "neighbours equal to the bit, broken ones inside the box"
        yield Row(f"plans by {name}, {broken:,} of them of a broken model", tried, promise, short)


def _planner(name: str, number: int) -> Callable[[LatentModel, Tensor, Tensor, int], PlanResult]:
    planner = (
        LMPlanner(CONFIGS[number % len(CONFIGS)], _ACTION)
        if name == "LM"
        else MPPIPlanner(MPPIConfig(iterations=3, samples=64, elites=8), _ACTION)
    )
    return lambda model, z, prior, seed: planner.plan(model, z, prior, generator=torch.Generator().manual_seed(seed))


def _breaking(model: LatentModel, bad: float, where: str, late: bool) -> LatentModel:
    """The model, but where the first number of a latent is `_MARK`, which then stays there, outputs are multiplied by `bad`;
    `late`: only where an action's first component is positive."""

    def dynamics(z: Tensor, a: Tensor) -> Tensor:
        return torch.cat([z[:, :1], model.dynamics(z, a)[:, 1:]], 1)

    def spoiled(name: str, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(z: Tensor, *a: Tensor) -> Tensor:
            out = function(z, *a)
            rows = z[:, 0] > _MARK / 2
            if late and a:
                rows = rows & (a[0][:, 0] > 0)
            return out * torch.where(rows, bad, 1.0).view(-1, *[1] * (out.dim() - 1))

        return call if name == where else function

    assert model.reward is not None and model.terminal is not None
    return replace(
        model,
        dynamics=spoiled("dynamics", dynamics),
        reward=spoiled("reward", model.reward),
        terminal=spoiled("terminal", model.terminal),
    )


def _honest(found: PlanResult) -> Tensor:
    """Whether the rows hold finite actions inside the box, whatever else is said of them."""
    inside = found.actions.abs().flatten(1).amax(1) <= 1
    return inside & found.actions.flatten(1).isfinite().all(1)
