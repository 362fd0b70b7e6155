"""What a batch of plans minimizes, as a value: evaluated at actions, and linearized around them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from difftop.planning.config import LMConfig
from difftop.planning.model import LatentModel
from difftop.planning.objectives import Objective, prepare
from difftop.planning.trajectory import Trajectory


@dataclass(frozen=True)
class Problem:
    """N objectives `1/2 |r(a)|^2 + 1/2 rho |a - prior|^2` on boxes.

    Attributes:
        config: options.
        model: callables.
        z0: latents `[N, Z]`.
        anchor: priors `[N, H*A]`, inside the box.
        horizon: H.
        low, high: bounds of the iterates, numbers or `[N, H*A]`; infinite where the objective clamps instead.
        objective: the rows r.
    """

    config: LMConfig
    model: LatentModel
    z0: Tensor
    anchor: Tensor
    horizon: int
    low: Tensor | float
    high: Tensor | float
    objective: Objective

    def select(self, rows: Tensor, z0: Tensor) -> Problem:
        """The problems of some rows, on their latents `z0`."""
        return replace(
            self,
            z0=z0,
            anchor=self.anchor.index_select(0, rows),
            low=self.low.index_select(0, rows) if isinstance(self.low, Tensor) else self.low,
            high=self.high.index_select(0, rows) if isinstance(self.high, Tensor) else self.high,
            objective=self.objective.select(rows),
        )

    @property
    def undoes(self) -> bool:
        """Whether a step of a sound sample may be undone."""
        return self.config.adaptive or self.config.tolerance > 0


@dataclass(frozen=True)
class Point:
    """The objectives at N iterates.

    Attributes:
        actions: the iterates `[N, H*A]`.
        rows: residuals r `[N, R]`, without the proximal rows.
        jacobian_of: gives the Jacobian of r, `[N, R, H*A]`.
        value: model return (minus the cost) `[N]`, detached.
    """

    actions: Tensor
    rows: Tensor
    jacobian_of: Callable[[], Tensor]
    value: Tensor


@dataclass(frozen=True)
class System:
    """The linear model of N objectives around their iterates, in float64 (it is small, and autocast leaves it alone).

    Attributes:
        rows: r `[N, R]`.
        jacobian: J `[N, R, H*A]`, columns of blocked components zero.
        gap: prior - a `[N, H*A]`, zero where blocked; None without a proximal weight.
    """

    rows: Tensor
    jacobian: Tensor
    gap: Tensor | None


def pose(
    config: LMConfig, model: LatentModel, z0: Tensor, prior: Tensor, starts: list[Tensor], scale: Tensor | float | None
) -> tuple[Problem, Point]:
    """The problems of all starts, and the objectives there.

    Args:
        config: options.
        model: callables.
        z0: latents `[N, Z]`, N = S * B, start-major.
        prior: priors `[B, H, A]`, inside the box.
        starts: S plans `[B, H, A]`, of which the first is the prior.
        scale: s of plan(), a positive number or `[B]`; None: one per sample.
    """
    batch, horizon, _ = prior.shape
    anchor = prior.flatten(1).repeat(len(starts), 1) if len(starts) > 1 else prior.flatten(1)
    low, high = _bounds(config, anchor)
    actions = project((torch.cat(starts) if len(starts) > 1 else starts[0]).flatten(1), low, high)
    trajectory = _roll_out(config, model, z0, actions, horizon)
    objective = prepare(config, model.discount, trajectory, batch, len(starts), scale)
    problem = Problem(config, model, z0, anchor, horizon, low, high, objective)
    return problem, _point(problem, actions, trajectory)


def evaluate(problem: Problem, actions: Tensor) -> Point:
    """The objectives at `actions [N, H*A]`, with a graph where grad mode is on."""
    return _point(problem, actions, _roll_out(problem.config, problem.model, problem.z0, actions, problem.horizon))


def all_rows(problem: Problem, point: Point) -> Tensor:
    """Residuals `[N, R]`, followed by the proximal rows `sqrt(rho) (a - prior)` where rho > 0."""
    if problem.config.proximal == 0:
        return point.rows
    return torch.cat([point.rows, problem.config.proximal**0.5 * (point.actions - problem.anchor)], 1)


def linear_model(problem: Problem, point: Point) -> System:
    """The linear model at a point, on the components that are free to move."""
    rows, jacobian, actions = point.rows.double(), point.jacobian_of().double(), point.actions
    gap = (problem.anchor - actions).double() if problem.config.proximal > 0 else None
    clamped = problem.config.bounds == "clamp"
    with torch.no_grad():
        if clamped:
            blocked = actions.abs() > 1
        else:
            downhill = torch.baddbmm(actions.double().unsqueeze(1), rows.unsqueeze(1), jacobian, alpha=-1).squeeze(1)
            if gap is not None:
                downhill = downhill + problem.config.proximal * gap
            # At a bound and pointing out: downhill is somewhere else, but its projection is here.
            blocked = (project(downhill, problem.low, problem.high) == actions) & (downhill != actions)
    if gap is not None and not clamped:
        gap = gap.masked_fill(blocked, 0.0)
    return System(rows, jacobian.masked_fill(blocked.unsqueeze(1), 0.0), gap)


def project(actions: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """The nearest point of the box."""
    if isinstance(low, float) and low == -torch.inf:
        return actions
    return actions.clamp(low, high)  # type: ignore[arg-type]


def _bounds(config: LMConfig, anchor: Tensor) -> tuple[Tensor | float, Tensor | float]:
    clamped = config.bounds == "clamp"
    if config.radius >= 2:
        return (-torch.inf, torch.inf) if clamped else (-1.0, 1.0)
    low, high = anchor - config.radius, anchor + config.radius
    return (low, high) if clamped else (low.clamp(min=-1), high.clamp(max=1))


def _roll_out(config: LMConfig, model: LatentModel, z0: Tensor, actions: Tensor, horizon: int) -> Trajectory:
    inside = actions.clamp(-1, 1) if config.bounds == "clamp" else actions
    return Trajectory(model, z0, inside.view(actions.shape[0], horizon, -1), config.objective == "cost")


def _point(problem: Problem, actions: Tensor, trajectory: Trajectory) -> Point:
    rows, jacobian_of = problem.objective.linearize(trajectory)
    return Point(actions, rows, jacobian_of, problem.objective.value(trajectory))
