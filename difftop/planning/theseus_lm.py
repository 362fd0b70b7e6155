"""The Theseus planner: Levenberg-Marquardt over action sequences, batched, bounded and differentiable.

The only file that imports theseus. What makes it fast, all through the library's extension points: a cost function that keeps the
rollout between its error and its Jacobian, the structured Jacobian, a linear solver in the dual, and layers that are built once.
"""

from __future__ import annotations

import warnings
from typing import Any, NoReturn

import torch
from torch import Tensor

from difftop.options import check_ranges
from difftop.planning.checks import check_problem, check_scale
from difftop.planning.config import LMConfig
from difftop.planning.model import LatentModel
from difftop.planning.objectives import prepare
from difftop.planning.search import Problem, Search
from difftop.types import PlanResult, SolveStatus

with warnings.catch_warnings():
    # A sparse solver that we don't use and don't install.
    warnings.filterwarnings("ignore", message="Couldn't import skparse.cholmod", category=UserWarning)
    import theseus as th
    from theseus.optimizer import Linearization
    from theseus.optimizer.linear import LinearSolver


class TheseusPlanner:
    """Plans by least squares with Theseus' Levenberg-Marquardt.

        minimize over a in [-1, 1]^{H x A}, |a - prior| <= radius    1/2 |r(a)|^2 + 1/2 rho |a - prior|^2

    by a <- project(a + alpha delta), with delta the damped Gauss-Newton step on the components that are free: those at a bound
    whose descent direction points out of the box are left out. The rows r are in `difftop.planning.objectives`.

    Source: DiffTORI, arXiv:2402.05421, section 4; Theseus, arXiv:2207.09442. Differs: rows, projection, trust region, scales,
    starts and the dual solve; `docs/planner.md` has the reasons, and the settings of the paper.
    """

    def __init__(self, config: LMConfig, action_dim: int) -> None:
        check_ranges(config, "LMConfig")
        if action_dim < 1:
            raise ValueError(f"action_dim={action_dim}: must be at least 1.")
        self.config = config
        self.action_dim = action_dim
        self._layers: dict[tuple[int, int, torch.dtype, torch.device], th.TheseusLayer] = {}

    def plan(
        self,
        model: LatentModel,
        z0: Tensor,
        prior: Tensor,
        *,
        previous: Tensor | None = None,
        scale: Tensor | float | None = None,
        generator: torch.Generator | None = None,
        differentiable: bool = False,
    ) -> PlanResult:
        """Plans for B latents, each a problem of its own.

        Args:
            model: callables; gradient reaches their parameters.
            z0: `[B, Z]`; gradient reaches it.
            prior: policy plans `[B, H, A]`, clamped to the box, held constant; H may change between calls.
            previous: shifted previous plans `[B, H, A]` (`shift_plan`), used with `config.start_previous`; zeros where none.
            scale: size of one step's reward, positive, a number or `[B]`; None: taken from each sample's prior.
            generator: source of the random starts.
            differentiable: whether the plan carries gradient. The plan is the same either way, to rounding.
        Returns:
            actions `[B, H, A]` in [-1, 1]. FAILED rows hold the best finite iterate (at worst the prior) and carry no gradient.
        Raises:
            ValueError: an argument or a model output of the wrong shape, non-finite z0, prior or previous, or a bad scale.
        """
        check_problem(z0, prior, previous, self.action_dim)
        check_scale(scale, z0.shape[0])
        if torch.is_inference_mode_enabled():  # there autograd records nothing, not even for a Jacobian
            with torch.inference_mode(False), torch.no_grad():
                return self.plan(
                    model,
                    z0.clone(),
                    prior.clone(),
                    previous=None if previous is None else previous.clone(),
                    scale=scale.clone() if isinstance(scale, Tensor) else scale,
                    generator=generator,
                    differentiable=differentiable,
                )
        prior = prior.detach().clamp(-1, 1)
        starts = self._starts(prior, previous, generator)
        count, batch = len(starts), z0.shape[0]
        tail = self._grad_iterations() if differentiable or self.config.tolerance > 0 else 0
        head = self.config.iterations - tail
        # With one start, the last rollout before the differentiated iterations is their first one, so it is recorded.
        record = differentiable and count == 1 and tail > 0
        problem = Problem(self.config, model, z0 if count == 1 else z0.detach().repeat(count, 1), prior.repeat(count, 1, 1))
        with torch.set_grad_enabled(record and head == 0):
            actions = torch.cat(starts).flatten(1).clamp(problem.low, problem.high)
            problem.objective = prepare(self.config, model.discount, problem.trajectory(actions), batch, count, scale)
        search = Search(problem, actions, actions.new_full((actions.shape[0],), self.config.damping))
        with torch.no_grad():
            self._run(search, head, record)
            if count > 1 or not differentiable:
                # The differentiated iterations, without gradient. Samples that have stopped go on there, so they do here.
                paused, search = search, search.resume(search.problem.z0) if tail else search
                self._run(search, tail)
            if count > 1:
                rows = search.best_start(count)
                search = (paused if differentiable else search).select(rows, z0)
        if differentiable:
            search = self._differentiate(search, z0, tail)
        return _result(search, prior)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles build layers of their own."""
        return self.__dict__ | {"_layers": {}}

    def _starts(self, prior: Tensor, previous: Tensor | None, generator: torch.Generator | None) -> list[Tensor]:
        starts = [prior]
        if self.config.start_previous and previous is not None:
            starts.append(previous.detach())
        if self.config.start_zeros:
            starts.append(torch.zeros_like(prior))
        for _ in range(self.config.start_random):
            starts.append(torch.rand(prior.shape, generator=generator, dtype=prior.dtype, device=prior.device) * 2 - 1)
        return starts

    def _grad_iterations(self) -> int:
        if self.config.backward == "implicit":
            return 0
        return (
            self.config.iterations
            if self.config.backward == "unroll"
            else min(self.config.backward_iterations, self.config.iterations)
        )

    def _differentiate(self, search: Search, z0: Tensor, tail: int) -> Search:
        """Goes on from `search` with gradient; failed samples get none.

        A non-finite number anywhere in the graph would reach the shared parameters as 0 * nan, so failed samples are computed as
        copies of a sound one and their plans are put back afterwards.
        """
        rows = torch.arange(z0.shape[0], device=z0.device)
        while not bool(search.failed.all()):
            bad = search.failed
            if bool(bad.any()):
                copied = torch.where(bad, (~bad).long().argmax(), rows)
                run = search.select(copied, z0[copied])
            else:
                run = search.resume(z0)
            with torch.enable_grad():
                self._run(run, 1 if self.config.backward == "implicit" else tail)
            fresh = run.failed & ~bad
            if not bool(fresh.any()):
                run.put_back(bad, search)
                if run.problem.z0 is not z0:
                    run.problem.z0 = z0
                    run.problem.release()
                return run
            search.put_back(fresh, run)
        return search

    def _run(self, search: Search, iterations: int, record: bool = False) -> None:
        """Runs Theseus for `iterations` more iterations; gradient is recorded where grad mode is on, and for the last rollout."""
        if iterations == 0:
            return
        layer = self._layer(search.actions, search.problem.rows(search.actions).shape[1])
        optimizer = layer.optimizer
        optimizer.slot.search, optimizer.slot.left, optimizer.slot.record = search, iterations, record
        optimizer.set_params(max_iterations=iterations)
        implicit = torch.is_grad_enabled() and self.config.backward == "implicit"
        try:
            layer.forward({"actions": search.actions}, {"backward_mode": "implicit" if implicit else "unroll"})
        finally:
            optimizer.release()

    def _layer(self, actions: Tensor, rows: int) -> th.TheseusLayer:
        key = (actions.shape[1], rows, actions.dtype, actions.device)
        if key not in self._layers:
            slot = _Slot()
            box = _Box(slot, tensor=torch.zeros_like(actions[:1]), name="actions")
            objective = th.Objective(dtype=actions.dtype)
            objective.add(_Rollout(slot, box, rows))
            optimizer = _BoxedLM(objective, slot, self.config.step_size)
            layer = th.TheseusLayer(optimizer, vectorize=False)
            layer.to(device=actions.device)
            self._layers[key] = layer
        return self._layers[key]


def _result(search: Search, prior: Tensor) -> PlanResult:
    actions, value = search.outcome()
    search.problem.release()
    status = torch.where(search.failed, int(SolveStatus.FAILED), int(SolveStatus.SOLVED))
    return PlanResult(actions.clamp(-1, 1).view_as(prior), value, status, search.spent)


class _Slot:
    """Where the objects that Theseus owns find the search of the present call."""

    search: Search | None = None
    left: int = 0
    record: bool = False

    def get(self) -> Search:
        if self.search is None:
            raise RuntimeError("a planner layer runs inside TheseusPlanner.plan only.")
        return self.search


class _Box(th.Vector):  # type: ignore[misc]
    """Actions, flat; a step that leaves the box ends at its nearest point."""

    def __init__(self, slot: _Slot, tensor: Tensor, name: str | None = None) -> None:
        self._slot = slot
        super().__init__(tensor=tensor, name=name)

    def _retract_impl(self, delta: Tensor) -> _Box:
        return _Box(self._slot, self._slot.get().project(self.tensor + delta))

    def _copy_impl(self, new_name: str | None = None) -> _Box:
        return _Box(self._slot, self.tensor.clone(), new_name)


class _Rollout(th.CostFunction):  # type: ignore[misc]
    """The residual rows of the plans in a `_Box`."""

    def __init__(self, slot: _Slot, box: _Box, rows: int) -> None:
        super().__init__(th.ScaleCostWeight(torch.ones(1, 1, dtype=box.dtype)), name="rollout")
        self._slot = slot
        self._rows = rows
        self.box = box
        self.register_optim_vars(["box"])

    def error(self) -> Tensor:
        return self._slot.get().problem.rows(self.box.tensor)

    def weighted_error(self) -> Tensor:
        return self.error()

    def jacobians(self) -> NoReturn:
        raise NotImplementedError("the planner's linearization takes Jacobians from its Search.")

    def dim(self) -> int:
        return self._rows

    def _copy_impl(self, new_name: str | None = None) -> NoReturn:
        raise NotImplementedError("a planner layer is not copied; make another TheseusPlanner.")


class _Linearization(Linearization):  # type: ignore[misc]
    """Hands the library's linearization step to the search."""

    def __init__(self, objective: th.Objective, slot: _Slot) -> None:
        super().__init__(objective)
        self.slot = slot
        self.implicit = False

    def linearize(self, _detach_hessian: bool = False) -> None:
        self.implicit = _detach_hessian
        self.slot.get().linearize()

    def _linearize_jacobian_impl(self) -> None:
        self.slot.get().linearize()

    def _linearize_hessian_impl(self, _detach_hessian: bool = False) -> None:
        self.linearize(_detach_hessian)

    def _ata_impl(self) -> Tensor:
        jacobian = self.slot.get().linearize().jacobian
        return jacobian.transpose(1, 2) @ jacobian

    def _atb_impl(self) -> Tensor:
        system = self.slot.get().linearize()
        return -system.jacobian.transpose(1, 2) @ system.rows.unsqueeze(2)

    def Av(self, v: Tensor) -> Tensor:
        return (self.slot.get().linearize().jacobian @ v.unsqueeze(2)).squeeze(2)

    def diagonal_scaling(self, v: Tensor) -> Tensor:
        return v * self.slot.get().linearize().jacobian.square().sum(1)


class _DualSolver(LinearSolver):  # type: ignore[misc]
    """The damped step in the smaller of both spaces."""

    def solve(self, damping: Any = None, **kwargs: Any) -> Tensor:
        search: Search = self.linearization.slot.get()
        return search.implicit_step() if self.linearization.implicit else search.step()


class _BoxedLM(th.LevenbergMarquardt):  # type: ignore[misc]
    """Theseus' Levenberg-Marquardt with all decisions taken per sample.

    The library stops on the mean error of the batch, repeats an iteration when all samples reject it, and ends for
    all samples when one factorization fails: each would let a sample's plan depend on its batch mates.
    """

    def __init__(self, objective: th.Objective, slot: _Slot, step_size: float) -> None:
        super().__init__(
            objective,
            linear_solver_cls=_DualSolver,
            linearization_cls=_Linearization,
            linearization_kwargs={"slot": slot},
            vectorize=False,
            abs_err_tolerance=0.0,
            rel_err_tolerance=0.0,
            step_size=step_size,
        )
        self.slot = slot

    def reset(self, **kwargs: Any) -> None:
        """The search holds all state."""

    def compute_delta(self, **kwargs: Any) -> Tensor:
        step: Tensor = self.linear_solver.solve()
        return step

    def release(self) -> None:
        """Lets go of all tensors of the call."""
        self.slot.search = None
        for box in (*self.ordering, *self._tmp_optim_vars):
            box.tensor = torch.zeros_like(box.tensor[:1])

    def _init_info(self, *args: Any) -> Any:
        info = super()._init_info(*args)
        self.slot.get().begin(info.last_err)
        return info

    def _check_convergence(self, err: Tensor, last_err: Tensor) -> Tensor:
        return self.slot.get().stopped

    def _step(
        self,
        delta: Tensor,
        previous_err: Tensor,
        converged_indices: Tensor,
        force_update: bool,
        delta_forced_to_gn: bool,
        **kwargs: Any,
    ) -> tuple[Tensor, bool]:
        search = self.slot.get()
        if delta_forced_to_gn:  # the implicit step: the plan stays, its derivative is the step's
            bad = ~torch.isfinite(delta.detach().sum(1))
            search.failed = search.failed | bad
            search.actions = search.actions + torch.where(bad.unsqueeze(1), 0.0, delta - delta.detach())
            return previous_err, False
        candidate = self.ordering[0].retract(delta).tensor
        self.objective.update({"actions": candidate})
        self.slot.left -= 1
        # Nothing is differentiated through the objective of a last iterate, unless more iterations follow in another run.
        with torch.set_grad_enabled(self.slot.record if self.slot.left == 0 else torch.is_grad_enabled()):
            error = self.objective.error_metric()
        error = search.offer(candidate, error, delta)
        if search.actions is not candidate:
            self.objective.update({"actions": search.actions})
        return error, False
