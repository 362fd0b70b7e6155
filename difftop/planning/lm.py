"""Levenberg-Marquardt over action sequences as a function: batched, bounded and differentiable.

No state between calls, no number read on the host (but for flags of a differentiable plan on a CPU, see `plan`), fixed
shapes: a CUDA graph or a compiler can capture it. `difftop.planning.theseus_lm` drives the same problem and step through Theseus.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from difftop.host import readable
from difftop.planning.config import LMConfig
from difftop.planning.model import LatentModel
from difftop.planning.problem import Problem, all_rows, evaluate, pose, project
from difftop.planning.search import (
    Outcome,
    State,
    begin,
    best_start,
    implicit_end,
    implicit_step,
    judge,
    linearize,
    outcome,
    resume,
    select,
    squared_norm,
    step,
)
from difftop.types import PlanResult, SolveStatus


class Loop(Protocol):
    """Takes searches some iterations further."""

    def __call__(self, problem: Problem, state: State, iterations: int, *, record: bool = False, implicit: bool = False) -> State:
        """The state after `iterations`; gradient is recorded where grad mode is on.

        Args:
            problem: what is minimized.
            state: where the searches stand.
            iterations: at least 1.
            record: also record the last evaluation, from which nothing inside this loop is differentiated.
            implicit: instead, end by one step with constant curvature that doesn't move the plan and carries its gradient.
        """
        ...


def iterate(problem: Problem, state: State, iterations: int, *, record: bool = False, implicit: bool = False) -> State:
    """The plain loop; `Loop` says what it takes.

    a <- project(a + alpha delta),   delta the damped Gauss-Newton step on the components that are free
    """
    if implicit:
        state = linearize(problem, state)
        return implicit_end(state, implicit_step(problem, state))
    alpha = problem.config.step_size
    for left in reversed(range(iterations)):
        state = linearize(problem, state)
        delta = step(problem, state)
        delta = delta if alpha == 1 else delta * alpha
        candidate = project(state.actions + delta, problem.low, problem.high)
        # Nothing is differentiated through the objective of a last iterate, unless more iterations follow in another loop.
        with torch.set_grad_enabled(record if left == 0 else torch.is_grad_enabled()):
            point = evaluate(problem, candidate)
            error = squared_norm(all_rows(problem, point))
        state = judge(problem, state, point, error, delta)
    return state


def plan(
    model: LatentModel,
    z0: Tensor,
    prior: Tensor,
    config: LMConfig,
    *,
    previous: Tensor | None = None,
    scale: Tensor | float | None = None,
    damping: Tensor | None = None,
    generator: torch.Generator | None = None,
    differentiable: bool = False,
    static: bool | None = None,
    loop: Loop = iterate,
) -> PlanResult:
    """Plans for B latents, each a problem of its own. Arguments are not checked: `LMPlanner.plan` does that, and explains them.

        minimize over a in [-1, 1]^{H x A}, |a - prior| <= radius    1/2 |r(a)|^2 + 1/2 rho |a - prior|^2

    Args:
        model, z0, prior, previous, scale, damping, generator, differentiable: as in `LMPlanner.plan`.
        config: options.
        static: read no number on the host. Only a differentiable plan would: whether a sample has failed on the way, which a
            second pass must then leave out. With static, the last iterations are first run without gradient to know it. None:
            not on a CPU, unless the call is captured.
        loop: what takes the iterations.
    """
    static = not readable(z0) if static is None else static
    plain = z0.device.type == "cpu" and not static and not torch.is_autocast_enabled("cpu")
    if plain and not differentiable and not model.needs_autograd:
        with torch.inference_mode():  # a tenth of the time of many small operations
            result = _plan(model, z0, prior, config, previous, scale, damping, generator, False, False, loop)
        return PlanResult(result.actions.clone(), result.value.clone(), result.status.clone(), result.iterations.clone())
    return _plan(model, z0, prior, config, previous, scale, damping, generator, differentiable, static, loop)


def _plan(
    model: LatentModel,
    z0: Tensor,
    prior: Tensor,
    config: LMConfig,
    previous: Tensor | None,
    scale: Tensor | float | None,
    damping: Tensor | None,
    generator: torch.Generator | None,
    differentiable: bool,
    static: bool,
    loop: Loop,
) -> PlanResult:
    prior = prior.detach().clamp(-1, 1)
    starts = _starts(config, prior, previous, generator)
    count = len(starts)
    tail = _last_iterations(config) if differentiable or config.tolerance > 0 else 0
    head = config.iterations - tail
    # With one start, the last rollout before the differentiated iterations is their first one, so it is recorded.
    record = differentiable and count == 1 and tail > 0 and not static
    with torch.set_grad_enabled(record and head == 0):
        repeated = z0 if count == 1 else z0.detach().repeat(count, 1)
        problem, point = pose(config, model, repeated, prior, starts, scale)
    with torch.no_grad():
        state = begin(problem, point, None if damping is None else damping.repeat(count))
        del point  # what its rollout remembers is let go after the first iteration
        if head > 0:
            state = loop(problem, state, head, record=record)
        end = state
        if tail > 0 and (count > 1 or static or not differentiable):
            # The differentiated iterations, without gradient. Samples that have stopped go on there, so they do here.
            end = loop(problem, resume(problem, state), tail)
        rows = best_start(end, count) if count > 1 else None
        known = _rows(outcome(end), rows)
    if differentiable:
        if rows is not None:
            problem, state = select(problem, state, rows, z0)
        known = _differentiate(problem, state, known, tail, loop, static, record)
    actions = known.actions.clamp(-1, 1) if config.bounds == "clamp" else known.actions
    status = torch.where(known.failed, int(SolveStatus.FAILED), int(SolveStatus.SOLVED))
    return PlanResult(actions.view_as(prior), known.value, status, known.spent)


def _starts(config: LMConfig, prior: Tensor, previous: Tensor | None, generator: torch.Generator | None) -> list[Tensor]:
    starts = [prior]
    if config.start_previous and previous is not None:
        starts.append(previous.detach())
    if config.start_zeros:
        starts.append(torch.zeros_like(prior))
    for _ in range(config.start_random):
        starts.append(torch.rand(prior.shape, generator=generator, dtype=prior.dtype, device=prior.device) * 2 - 1)
    return starts


def _last_iterations(config: LMConfig) -> int:
    """Number of last iterations that carry gradient."""
    if config.backward == "implicit":
        return 0
    return config.iterations if config.backward == "unroll" else min(config.backward_iterations, config.iterations)


def _differentiate(
    problem: Problem, state: State, known: Outcome, tail: int, loop: Loop, static: bool, recorded: bool
) -> Outcome:
    """Goes on from `state` with gradient; failed samples get none, and their plan from `known`.

    A non-finite number anywhere in the graph would reach the shared parameters as 0 * nan, so failed samples are computed as
    copies of a sound one and their plans are put back afterwards.
    """
    implicit = problem.config.backward == "implicit"
    if static and implicit:
        with torch.no_grad():
            broken = loop(problem, resume(problem, state), 1, implicit=True).failed
            known = known._replace(failed=known.failed | broken)
    while static or not bool(known.failed.all()):
        some = static or bool(known.failed.any())
        own, begun = _sound_copies(problem, state, known.failed) if some else (problem, state)
        with torch.enable_grad():
            run = loop(own, resume(own, begun, recorded and not some), max(tail, 1), implicit=implicit)
        fresh = run.failed & ~known.failed
        if static or not bool(fresh.any()):
            done = Outcome(run.actions, run.value, run.failed, run.spent)
            known = known._replace(failed=known.failed | fresh)
            return _merge(known.failed, known, done) if some else done
        known = _merge(~fresh, known, outcome(run))
    return known


def _sound_copies(problem: Problem, state: State, failed: Tensor) -> tuple[Problem, State]:
    rows = torch.arange(failed.shape[0], device=failed.device)
    copied = torch.where(failed, (~failed).long().argmax(), rows)
    return select(problem, state, copied, problem.z0.index_select(0, copied))


def _merge(take: Tensor, theirs: Outcome, others: Outcome) -> Outcome:
    """`theirs`, without their graph, in the rows of a mask, `others` elsewhere."""
    return Outcome(
        torch.where(take.unsqueeze(1), theirs.actions.detach(), others.actions),
        torch.where(take, theirs.value, others.value),
        torch.where(take, theirs.failed, others.failed),
        torch.where(take, theirs.spent, others.spent),
    )


def _rows(result: Outcome, rows: Tensor | None) -> Outcome:
    return result if rows is None else Outcome(*(x.index_select(0, rows) for x in result))
