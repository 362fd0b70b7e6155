"""State and algebra of a batch of independent plan searches; knows the maths of a step, not the library that takes it."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from difftop.planning.config import LMConfig
from difftop.planning.damped import curvature_solve, damped_step
from difftop.planning.model import LatentModel
from difftop.planning.objectives import Objective, Residual
from difftop.planning.trajectory import Trajectory

_ROUNDING = 64  # changes of the objective by so many units in the last place tell nothing
_ACCEPTED_GAIN = 1e-3  # smallest ratio of actual to predicted decrease for which an adaptive step is kept
_DAMPING_UP, _DAMPING_DOWN, _MAX_DAMPING = 4.0, 3.0, 1e7


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


class Problem:
    """N objectives `1/2 |r(a)|^2 + 1/2 rho |a - prior|^2` on boxes.

    Attributes:
        anchor: priors `[N, H*A]`.
        low, high: bounds of the iterates `[N, H*A]`; infinite where the objective clamps instead.
    """

    def __init__(self, config: LMConfig, model: LatentModel, z0: Tensor, anchor: Tensor) -> None:
        """Takes latents `[N, Z]` and priors `[N, H, A]` inside the box."""
        self.config = config
        self.model = model
        self.z0 = z0
        self.horizon = anchor.shape[1]
        self.anchor = anchor.flatten(1)
        self.clamped = config.bounds == "clamp"
        tube = config.radius if config.radius < 2 else torch.inf
        self.low, self.high = self.anchor - tube, self.anchor + tube
        if not self.clamped:
            self.low, self.high = self.low.clamp(min=-1), self.high.clamp(max=1)
        self.objective: Objective | None = None
        self._kept: _Kept | None = None

    def trajectory(self, actions: Tensor) -> Trajectory:
        """The rollout of `actions [N, H*A]`; the last one is kept, so that a Jacobian can follow an error."""
        kept = self._kept
        if kept is None or kept.actions is not actions or (torch.is_grad_enabled() and not kept.graph):
            inside = actions.clamp(-1, 1) if self.clamped else actions
            trajectory = Trajectory(
                self.model, self.z0, inside.view(actions.shape[0], self.horizon, -1), self.config.objective == "cost"
            )
            self._kept = kept = _Kept(actions, torch.is_grad_enabled(), trajectory)
        return kept.trajectory

    def rows(self, actions: Tensor) -> Tensor:
        """Residuals `[N, R]`, followed by the proximal rows `sqrt(rho) (a - prior)` where rho > 0."""
        rows = self._residual(actions)[0]
        if self.config.proximal == 0:
            return rows
        return torch.cat([rows, self.config.proximal**0.5 * (actions - self.anchor)], 1)

    def system(self, actions: Tensor) -> System:
        """The linear model at `actions [N, H*A]`."""
        residual, jacobian_of = self._residual(actions)
        rows, jacobian = residual.double(), jacobian_of().double()
        gap = (self.anchor - actions).double() if self.config.proximal > 0 else None
        with torch.no_grad():
            if self.clamped:
                blocked = actions.abs() > 1
            else:
                downhill = torch.baddbmm(actions.double().unsqueeze(1), rows.unsqueeze(1), jacobian, alpha=-1).squeeze(1)
                if gap is not None:
                    downhill = downhill + self.config.proximal * gap
                # At a bound and pointing out: downhill is somewhere else, but its projection is here.
                blocked = (downhill.clamp(self.low, self.high) == actions) & (downhill != actions)
        if gap is not None and not self.clamped:
            gap = gap.masked_fill(blocked, 0.0)
        return System(rows, jacobian.masked_fill(blocked.unsqueeze(1), 0.0), gap)

    def value(self, actions: Tensor) -> Tensor:
        """Model return (minus the cost) of `actions [N, H*A]`, `[N]`, detached."""
        trajectory = self.trajectory(actions)
        return self._objective().value(trajectory)

    def release(self) -> None:
        """Forgets the kept rollout and its graph."""
        self._kept = None

    def _residual(self, actions: Tensor) -> Residual:
        trajectory = self.trajectory(actions)
        kept = self._kept
        if kept is None:
            raise RuntimeError("a rollout is kept until release().")
        if kept.residual is None:
            with torch.set_grad_enabled(kept.graph):
                kept.residual = self._objective().linearize(trajectory)
        return kept.residual

    def _objective(self) -> Objective:
        if self.objective is None:
            raise RuntimeError("Problem.objective is not set; `prepare` makes it from the prior's trajectory.")
        return self.objective


@dataclass
class _Kept:
    actions: Tensor
    graph: bool
    trajectory: Trajectory
    residual: Residual | None = None


class Search:
    """Progress of N searches.

    Attributes:
        problem: what is minimized.
        actions: current iterates `[N, H*A]`.
        error: objective of the iterates `[N]`, detached; None before the first iteration.
        system: linear model at the iterates; None before the first iteration.
        damping: lambda `[N]`.
        failed: `[N]`, True after numerical trouble.
        stopped: `[N]`, True where the iterate does not move any more.
        spent: iterations `[N]`.
    """

    def __init__(self, problem: Problem, actions: Tensor, damping: Tensor) -> None:
        self.problem = problem
        self.actions = actions
        self.damping = damping
        self.error: Tensor | None = None
        self.system: System | None = None
        self.failed = torch.zeros(actions.shape[0], dtype=torch.bool, device=actions.device)
        self.stopped = self.failed
        self.spent = torch.zeros(actions.shape[0], dtype=torch.int64, device=actions.device)
        self._visited: list[tuple[Tensor, Tensor]] = []
        self._pending: tuple[Tensor, Tensor] | None = None

    def begin(self, error: Tensor) -> None:
        """Takes the objective `[N]` of the starts; a search that goes on after a pause keeps what it has."""
        if self.error is not None:
            return
        self.error = error.detach()
        self.failed = ~torch.isfinite(self.error)
        self.stopped = self.failed
        self._visited = [(self.actions.detach(), self.error)]

    def linearize(self) -> System:
        """The linear model at the iterates; samples whose last step was undone keep the one they had."""
        if self._pending is None or self.system is None:
            self.system = self.problem.system(self.actions)
        else:
            candidate, undone = self._pending
            self.system = _merge(undone, self.system, self.problem.system(candidate))
        self._pending = None
        return self.system

    def step(self) -> Tensor:
        """The damped Gauss-Newton step on the free components, `[N, H*A]`."""
        system = self.system or self.linearize()
        step = damped_step(system.jacobian, system.rows, self.damping, system.gap, self.problem.config.proximal)
        return step.to(self.actions.dtype)

    def implicit_step(self) -> Tensor:
        """As `step`, with the curvature held constant, so that only the gradient of the objective is differentiated."""
        system, rho = self.system or self.linearize(), self.problem.config.proximal
        descent = -torch.bmm(system.rows.unsqueeze(1), system.jacobian).squeeze(1)
        if system.gap is not None:
            descent = descent + rho * system.gap
        return curvature_solve(system.jacobian, descent, self.damping + rho).to(self.actions.dtype)

    def project(self, actions: Tensor) -> Tensor:
        """The nearest point of the box."""
        return actions.clamp(self.problem.low, self.problem.high)

    def offer(self, candidate: Tensor, error: Tensor, delta: Tensor) -> Tensor:
        """Judges the iterates after a step, sample by sample.

        Args:
            candidate: projected iterates `[N, H*A]`.
            error: their objective `[N]`.
            delta: the step before projection.
        Returns:
            objective `[N]` of the iterates that hold now.
        """
        if self.error is None:
            raise RuntimeError("Search.offer comes after Search.begin.")
        config, previous = self.problem.config, self.error
        with torch.no_grad():
            self.spent = self.spent + ~self.stopped
            undone = ~torch.isfinite(error + delta.sum(1))
            self.failed = self.failed | (undone & ~self.stopped)
            undone = undone | self.stopped
            self.stopped = self.stopped | self.failed
            if config.adaptive:
                undone = self._adapt(candidate, previous - error, undone)
            if config.tolerance > 0:
                still = (error - previous).abs() <= config.tolerance * previous.abs()
                self.stopped = self.stopped | (still & ~undone)
            some = bool(undone.any())
            self.error = torch.where(undone, previous, error) if some else error.detach()
        self.actions = torch.where(undone.unsqueeze(1), self.actions, candidate) if some else candidate
        self._pending = (candidate, undone) if some else None
        self._visited.append((self.actions.detach(), self.error))
        return self.error

    def outcome(self) -> tuple[Tensor, Tensor]:
        """Plans `[N, H*A]` and their model returns `[N]`: the last iterate, or the best finite one where a sample failed."""
        actions = self.actions
        if bool(self.failed.any()):
            actions = torch.where(self.failed.unsqueeze(1), self._best_visited()[0], actions)
        with torch.no_grad():
            return actions, self.problem.value(actions)

    def _best_visited(self) -> tuple[Tensor, Tensor]:
        if not self._visited:
            return self.actions.detach(), torch.full_like(self.damping, torch.inf)
        errors = torch.stack([error for _, error in self._visited])
        error, best = torch.where(torch.isfinite(errors), errors, torch.inf).min(0)
        actions = torch.stack([actions for actions, _ in self._visited])
        return actions[best, torch.arange(best.shape[0], device=best.device)], error

    def best_start(self, count: int) -> Tensor:
        """Rows `[B]` of the starts with the smallest objective, of `count` starts in start-major order; ties go to the first.

        Where all starts of a sample have failed, it is the one that saw the best finite iterate.
        """
        if self.error is None:
            raise RuntimeError("Search.best_start comes after Search.begin.")
        error = torch.where(self.failed, torch.inf, self.error).view(count, -1)
        best = error.argmin(0)
        if bool(self.failed.any()):
            best = torch.where(error.isinf().all(0), self._best_visited()[1].view(count, -1).argmin(0), best)
        samples = error.shape[1]
        return best * samples + torch.arange(samples, device=error.device)

    def resume(self, z0: Tensor) -> Search:
        """The same searches on latents `z0` (the same numbers, possibly with a graph); this one stays as it is."""
        resumed = copy.copy(self)
        resumed.problem.z0 = z0
        resumed.stopped, resumed._pending, resumed._visited = self.failed, None, list(self._visited)
        return resumed

    def select(self, rows: Tensor, z0: Tensor) -> Search:
        """The searches of some rows, from where they stand, on their latents `z0`."""
        problem = copy.copy(self.problem)
        problem.release()
        problem.z0, problem.anchor = z0, problem.anchor[rows]
        problem.low, problem.high = problem.low[rows], problem.high[rows]
        problem.objective = None if problem.objective is None else problem.objective.select(rows)
        picked = Search(problem, self.actions[rows], self.damping[rows])
        picked.failed, picked.spent = self.failed[rows], self.spent[rows]
        picked.stopped = picked.failed
        picked.error = None if self.error is None else self.error[rows]
        picked._visited = [(actions[rows], error[rows]) for actions, error in self._visited]
        return picked

    def put_back(self, rows: Tensor, source: Search) -> None:
        """Takes over the best finite iterates of the samples in the mask `rows [N]` from another search, as failed."""
        if not bool(rows.any()):
            return
        self.failed = self.failed | rows
        (own, own_error), (theirs, their_error) = self._best_visited(), source._best_visited()
        self._visited = [(torch.where(rows.unsqueeze(1), theirs, own), torch.where(rows, their_error, own_error))]
        self.spent = torch.where(rows, source.spent, self.spent)

    def _adapt(self, candidate: Tensor, decrease: Tensor, undone: Tensor) -> Tensor:
        if self.system is None:
            raise RuntimeError("Search.offer comes after Search.linearize.")
        moved = (candidate - self.actions).double()
        change = torch.bmm(self.system.jacobian, moved.unsqueeze(2)).squeeze(2)
        predicted = -((self.system.rows + change / 2) * change).sum(1)
        rho = self.problem.config.proximal
        if rho > 0:
            gap = self.problem.anchor - self.actions
            predicted = predicted + rho * ((gap - moved / 2) * moved).sum(1)
        assert self.error is not None
        # Where nothing is left to gain, gain is rounding: to undo such a step would leave the plan no gradient.
        noise = _ROUNDING * torch.finfo(candidate.dtype).eps * self.error.abs()
        still = (predicted.abs() <= noise) & (decrease.abs() <= noise)
        rejected = (~(decrease > _ACCEPTED_GAIN * predicted) | ~(predicted > 0)) & ~still
        damping = torch.where(rejected, self.damping * _DAMPING_UP, self.damping / _DAMPING_DOWN)
        damping = torch.where(still | undone, self.damping, damping)
        self.damping = damping.clamp(self.problem.config.min_damping, _MAX_DAMPING)
        return undone | rejected


def _merge(keep: Tensor, old: System, new: System) -> System:
    column = keep.unsqueeze(1)
    gap = None if old.gap is None or new.gap is None else torch.where(column, old.gap, new.gap)
    return System(
        torch.where(column, old.rows, new.rows),
        torch.where(column.unsqueeze(2), old.jacobian, new.jacobian),
        gap,
    )
