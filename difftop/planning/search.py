"""The state of N plan searches and the algebra of one Levenberg-Marquardt step: values and functions, nothing that changes.

A loop passes a `State` through `linearize`, `step` and `judge`. Every decision is a mask: no number is read on the host, all
shapes are fixed, and no sample knows of another.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from difftop.planning.damped import curvature_solve, damped_step
from difftop.planning.problem import Point, Problem, System, all_rows, evaluate, linear_model

_ROUNDING = 64  # changes of the objective by so many units in the last place tell nothing
_ACCEPTED_GAIN = 1e-3  # smallest ratio of actual to predicted decrease for which an adaptive step is kept
_DAMPING_UP, _DAMPING_DOWN, _MAX_DAMPING = 4.0, 3.0, 1e7


class Visited(NamedTuple):
    """Iterates `[N, H*A]`, their objective `[N]` and model return `[N]`, all detached."""

    actions: Tensor
    error: Tensor
    value: Tensor


@dataclass(frozen=True)
class State:
    """Progress of N searches.

    Attributes:
        actions: current iterates `[N, H*A]`.
        error: their objective `[N]`, detached.
        value: their model return `[N]`, detached.
        point: the point evaluated last; it is at the iterates except where `undone`.
        system: linear model at the iterates; None before the first iteration.
        undone: `[N]`, where the step to `point` was undone; None where no step of a sound sample can be.
        damping: lambda `[N]`.
        failed: `[N]`, True after numerical trouble.
        stopped: `[N]`, True where the iterate does not move any more.
        spent: iterations `[N]`.
        visited: all iterates so far.
    """

    actions: Tensor
    error: Tensor
    value: Tensor
    point: Point
    system: System | None
    undone: Tensor | None
    damping: Tensor
    failed: Tensor
    stopped: Tensor
    spent: Tensor
    visited: tuple[Visited, ...]


class Outcome(NamedTuple):
    """Plans `[N, H*A]`, their model returns `[N]`, where the search failed `[N]`, and iterations `[N]`."""

    actions: Tensor
    value: Tensor
    failed: Tensor
    spent: Tensor


def begin(problem: Problem, point: Point, damping: Tensor | None = None) -> State:
    """Searches that start from a point, with lambda `[N]` or that of the options."""
    error = squared_norm(all_rows(problem, point)).detach()
    failed = ~torch.isfinite(error + point.value)
    return State(
        actions=point.actions,
        error=error,
        value=point.value,
        point=point,
        system=None,
        undone=None,
        damping=torch.full_like(error, problem.config.damping) if damping is None else damping.to(error),
        failed=failed,
        stopped=failed,
        spent=torch.zeros_like(error, dtype=torch.int64),
        visited=(Visited(point.actions.detach(), error, point.value),),
    )


def squared_norm(rows: Tensor) -> Tensor:
    """`1/2 |r|^2` of rows `[N, R]`, as Theseus writes it."""
    total: Tensor = (rows**2).sum(dim=1) / 2
    return total


def linearize(problem: Problem, state: State) -> State:
    """With the linear model at the iterates; samples whose last step was undone keep the one they had."""
    system = linear_model(problem, state.point)
    if state.undone is not None and state.system is not None:
        system = _merge(state.undone, state.system, system)
    return replace(state, system=system)


def step(problem: Problem, state: State) -> Tensor:
    """The damped Gauss-Newton step on the free components, `[N, H*A]`."""
    system = _system(state)
    delta = damped_step(system.jacobian, system.rows, state.damping, system.gap, problem.config.proximal)
    return delta.to(state.actions.dtype)


def implicit_step(problem: Problem, state: State) -> Tensor:
    """As `step`, with the curvature held constant, so that only the gradient of the objective is differentiated."""
    system, rho = _system(state), problem.config.proximal
    descent = -torch.bmm(system.rows.unsqueeze(1), system.jacobian).squeeze(1)
    if system.gap is not None:
        descent = descent + rho * system.gap
    return curvature_solve(system.jacobian, descent, state.damping + rho).to(state.actions.dtype)


def judge(problem: Problem, state: State, point: Point, error: Tensor, delta: Tensor) -> State:
    """Takes the step to `point` or undoes it, sample by sample.

    Args:
        problem: what is minimized.
        state: before the step.
        point: the projected candidates.
        error: their objective `[N]`.
        delta: the step before projection `[N, H*A]`.
    """
    config = problem.config
    with torch.no_grad():
        broken = ~torch.isfinite(error + point.value + delta.sum(1))
        spent = state.spent + ~state.stopped
        undone = broken | state.stopped
        damping = state.damping
        if problem.undoes:
            failed = state.failed | (broken & ~state.stopped)
            stopped = state.stopped | failed
            if config.adaptive:
                undone, damping = _adapt(problem, state, point, error, undone)
            if config.tolerance > 0:
                still = (error - state.error).abs() <= config.tolerance * state.error.abs()
                stopped = stopped | (still & ~undone)
        else:
            failed = stopped = undone
        error = torch.where(undone, state.error, error)
        value = torch.where(undone, state.value, point.value)
    actions = torch.where(undone.unsqueeze(1), state.actions, point.actions)
    return replace(
        state,
        actions=actions,
        error=error,
        value=value,
        point=point,
        undone=undone if problem.undoes else None,
        damping=damping,
        failed=failed,
        stopped=stopped,
        spent=spent,
        visited=(*state.visited, Visited(actions.detach(), error, value)),
    )


def implicit_end(state: State, delta: Tensor) -> State:
    """The plan stays, its derivative is that of the step `delta`; a sample with a bad step has failed."""
    bad = ~torch.isfinite(delta.detach().sum(1))
    moved = torch.where(bad.unsqueeze(1), 0.0, delta - delta.detach())
    return replace(state, actions=state.actions + moved, failed=state.failed | bad)


def resume(problem: Problem, state: State, recorded: bool = False) -> State:
    """The searches for more iterations: samples that stopped go on. `recorded`: `state.point` has a graph already."""
    moved_on = state.undone is not None or (torch.is_grad_enabled() and not recorded)
    point = evaluate(problem, state.actions) if moved_on else state.point
    return replace(state, point=point, system=None, undone=None, stopped=state.failed)


def select(problem: Problem, state: State, rows: Tensor, z0: Tensor) -> tuple[Problem, State]:
    """The searches of some rows, from where they stand, on their latents `z0`; to be resumed."""
    pick = partial(torch.index_select, dim=0, index=rows)
    failed = pick(state.failed)
    picked = replace(
        state,
        actions=pick(state.actions),
        error=pick(state.error),
        value=pick(state.value),
        system=None,
        undone=failed,  # `point` is left behind, so `resume` evaluates anew
        damping=pick(state.damping),
        failed=failed,
        stopped=failed,
        spent=pick(state.spent),
        visited=tuple(Visited(*map(pick, visited)) for visited in state.visited),
    )
    return problem.select(rows, z0), picked


def outcome(state: State) -> Outcome:
    """The last iterates, or the best finite ones where a search has failed."""
    best = best_visited(state)
    return Outcome(
        torch.where(state.failed.unsqueeze(1), best.actions, state.actions),
        torch.where(state.failed, best.value, state.value),
        state.failed,
        state.spent,
    )


def best_visited(state: State) -> Visited:
    """The finite iterate with the smallest objective of each search; the first where none is finite."""
    errors = torch.stack([visited.error for visited in state.visited])
    error, best = torch.where(torch.isfinite(errors), errors, torch.inf).min(0)
    best = best.unsqueeze(0)
    value = torch.stack([visited.value for visited in state.visited]).gather(0, best).squeeze(0)
    actions = torch.stack([visited.actions for visited in state.visited])
    actions = actions.gather(0, best.unsqueeze(2).expand(-1, -1, actions.shape[2])).squeeze(0)
    return Visited(actions.nan_to_num(0.0), error, value)


def best_start(state: State, count: int) -> Tensor:
    """Rows `[B]` of the starts with the smallest objective, of `count` starts in start-major order; ties go to the first.

    Where all starts of a sample have failed, it is the one that saw the best finite iterate.
    """
    error = torch.where(state.failed, torch.inf, state.error).view(count, -1)
    least, best = error.min(0)
    rescued = best_visited(state).error.view(count, -1).argmin(0)
    samples = torch.arange(error.shape[1], device=error.device)
    return torch.where(least.isinf(), rescued, best) * error.shape[1] + samples


def _system(state: State) -> System:
    if state.system is None:
        raise RuntimeError("a step comes after `linearize`.")
    return state.system


def _adapt(problem: Problem, state: State, point: Point, error: Tensor, undone: Tensor) -> tuple[Tensor, Tensor]:
    """Where the step is undone, and the next damping."""
    system, rho, decrease = _system(state), problem.config.proximal, state.error - error
    moved = (point.actions - state.actions).double()
    change = torch.bmm(system.jacobian, moved.unsqueeze(2)).squeeze(2)
    predicted = -((system.rows + change / 2) * change).sum(1)
    if rho > 0:
        gap = problem.anchor - state.actions
        predicted = predicted + rho * ((gap - moved / 2) * moved).sum(1)
    # Where nothing is left to gain, gain is rounding: to undo such a step would leave the plan no gradient.
    noise = _ROUNDING * torch.finfo(point.actions.dtype).eps * state.error.abs()
    still = (predicted.abs() <= noise) & (decrease.abs() <= noise)
    rejected = (~(decrease > _ACCEPTED_GAIN * predicted) | ~(predicted > 0)) & ~still
    damping = torch.where(rejected, state.damping * _DAMPING_UP, state.damping / _DAMPING_DOWN)
    damping = torch.where(still | undone, state.damping, damping)
    return undone | rejected, damping.clamp(problem.config.min_damping, _MAX_DAMPING)


def _merge(keep: Tensor, old: System, new: System) -> System:
    column = keep.unsqueeze(1)
    gap = None if old.gap is None or new.gap is None else torch.where(column, old.gap, new.gap)
    return System(
        torch.where(column, old.rows, new.rows),
        torch.where(column.unsqueeze(2), old.jacobian, new.jacobian),
        gap,
    )
