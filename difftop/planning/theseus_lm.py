"""The same planner driven through Theseus' Levenberg-Marquardt; the only file that imports theseus.

`TheseusLoop` takes the iterations of `difftop.planning.lm.plan`: the problem, its linear model and the step are those of the
plain loop, and plans and gradients of both are equal bit for bit in float64. What makes it fast goes through the library's
extension points: a cost function that keeps the rollout between its error and its Jacobian, a linearization with the structured
Jacobian, a linear solver in the dual, and layers that are built once.
"""

from __future__ import annotations

import warnings
from typing import Any, NoReturn

import torch
from torch import Tensor

from difftop.planning.config import LMConfig
from difftop.planning.problem import Point, Problem, System, all_rows, evaluate, project
from difftop.planning.search import State, implicit_end, implicit_step, judge, linearize, step

with warnings.catch_warnings():
    # A sparse solver that we don't use and don't install.
    warnings.filterwarnings("ignore", message="Couldn't import skparse.cholmod", category=UserWarning)
    import theseus as th
    from theseus.optimizer import Linearization
    from theseus.optimizer.linear import LinearSolver


class TheseusLoop:
    """A `difftop.planning.lm.Loop` that runs `th.TheseusLayer`; layers are kept, one per shape.

    Source: DiffTORI, arXiv:2402.05421, section 4; Theseus, arXiv:2207.09442. Differs: rows, projection, trust region, scales,
    starts and the dual solve; `docs/planner.md` has the reasons, and the settings of the paper.
    """

    def __init__(self, config: LMConfig) -> None:
        self.config = config
        self.layers: dict[tuple[int, int, torch.dtype, torch.device], th.TheseusLayer] = {}

    def __call__(self, problem: Problem, state: State, iterations: int, *, record: bool = False, implicit: bool = False) -> State:
        """The state after `iterations`; `Loop` says what the arguments are."""
        layer = self._layer(state.actions, all_rows(problem, state.point).shape[1])
        run: _Run = layer.optimizer.run
        run.begin(problem, state, iterations, record)
        layer.optimizer.set_params(max_iterations=iterations)
        try:
            layer.forward({"actions": state.actions}, {"backward_mode": "implicit" if implicit else "unroll"})
            return run.state
        finally:
            layer.optimizer.release()

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles build layers of their own."""
        return self.__dict__ | {"layers": {}}

    def _layer(self, actions: Tensor, rows: int) -> th.TheseusLayer:
        key = (actions.shape[1], rows, actions.dtype, actions.device)
        if key not in self.layers:
            run = _Run()
            box = _Box(run, tensor=torch.zeros_like(actions[:1]), name="actions")
            objective = th.Objective(dtype=actions.dtype)
            objective.add(_Rollout(run, box, rows))
            layer = th.TheseusLayer(_BoxedLM(objective, run, self.config.step_size), vectorize=False)
            layer.to(device=actions.device)
            self.layers[key] = layer
        return self.layers[key]


class _Run:
    """Where the objects that Theseus owns find the problem and the state of the present call."""

    def __init__(self) -> None:
        self._held: tuple[Problem, State, Point] | None = None
        self.left = 0
        self.record = False

    def begin(self, problem: Problem, state: State, iterations: int, record: bool) -> None:
        self._held = problem, state, state.point
        self.left, self.record = iterations, record

    @property
    def problem(self) -> Problem:
        return self._now()[0]

    @property
    def state(self) -> State:
        return self._now()[1]

    @state.setter
    def state(self, state: State) -> None:
        problem, _, point = self._now()
        self._held = problem, state, point

    @property
    def system(self) -> System:
        system = self.state.system
        if system is None:
            raise RuntimeError("a system comes after `linearize`.")
        return system

    def point(self, actions: Tensor) -> Point:
        """The objectives at `actions`; the last ones are kept, so that a Jacobian can follow an error."""
        problem, state, point = self._now()
        if actions is not point.actions and actions is not state.actions:
            point = evaluate(problem, actions)
            self._held = problem, state, point
        return point

    def clear(self) -> None:
        self._held = None

    def _now(self) -> tuple[Problem, State, Point]:
        if self._held is None:
            raise RuntimeError("a planner layer runs inside a plan only.")
        return self._held


class _Box(th.Vector):  # type: ignore[misc]
    """Actions, flat; a step that leaves the box ends at its nearest point."""

    def __init__(self, run: _Run, tensor: Tensor, name: str | None = None) -> None:
        self._run = run
        super().__init__(tensor=tensor, name=name)

    def _retract_impl(self, delta: Tensor) -> _Box:
        problem = self._run.problem
        return _Box(self._run, project(self.tensor + delta, problem.low, problem.high))

    def _copy_impl(self, new_name: str | None = None) -> _Box:
        return _Box(self._run, self.tensor.clone(), new_name)


class _Rollout(th.CostFunction):  # type: ignore[misc]
    """The residual rows of the plans in a `_Box`."""

    def __init__(self, run: _Run, box: _Box, rows: int) -> None:
        super().__init__(th.ScaleCostWeight(torch.ones(1, 1, dtype=box.dtype)), name="rollout")
        self._run = run
        self._rows = rows
        self.box = box
        self.register_optim_vars(["box"])

    def error(self) -> Tensor:
        return all_rows(self._run.problem, self._run.point(self.box.tensor))

    def weighted_error(self) -> Tensor:
        return self.error()

    def jacobians(self) -> NoReturn:
        raise NotImplementedError("the planner's linearization takes Jacobians from its problem.")

    def dim(self) -> int:
        return self._rows

    def _copy_impl(self, new_name: str | None = None) -> NoReturn:
        raise NotImplementedError("a planner layer is not copied; make another TheseusLoop.")


class _Linearization(Linearization):  # type: ignore[misc]
    """The linear model of the problem at the state."""

    def __init__(self, objective: th.Objective, run: _Run) -> None:
        super().__init__(objective)
        self.run = run
        self.implicit = False

    def linearize(self, _detach_hessian: bool = False) -> None:
        self.implicit = _detach_hessian
        self.run.state = linearize(self.run.problem, self.run.state)

    def _linearize_jacobian_impl(self) -> None:
        self.linearize()

    def _linearize_hessian_impl(self, _detach_hessian: bool = False) -> None:
        self.linearize(_detach_hessian)

    def _ata_impl(self) -> Tensor:
        jacobian = self._system().jacobian
        return jacobian.transpose(1, 2) @ jacobian

    def _atb_impl(self) -> Tensor:
        system = self._system()
        return -system.jacobian.transpose(1, 2) @ system.rows.unsqueeze(2)

    def Av(self, v: Tensor) -> Tensor:
        return (self._system().jacobian @ v.unsqueeze(2)).squeeze(2)

    def diagonal_scaling(self, v: Tensor) -> Tensor:
        return v * self._system().jacobian.square().sum(1)

    def _system(self) -> System:
        if self.run.state.system is None:
            self.linearize()
        return self.run.system


class _DualSolver(LinearSolver):  # type: ignore[misc]
    """The damped step in the smaller of both spaces."""

    def solve(self, damping: Any = None, **kwargs: Any) -> Tensor:
        run: _Run = self.linearization.run
        return (implicit_step if self.linearization.implicit else step)(run.problem, run.state)


class _BoxedLM(th.LevenbergMarquardt):  # type: ignore[misc]
    """Theseus' Levenberg-Marquardt with all decisions taken per sample.

    The library stops on the mean error of the batch, repeats an iteration when all samples reject it, and ends for
    all samples when one factorization fails: each would let a sample's plan depend on its batch mates.
    """

    def __init__(self, objective: th.Objective, run: _Run, step_size: float) -> None:
        super().__init__(
            objective,
            linear_solver_cls=_DualSolver,
            linearization_cls=_Linearization,
            linearization_kwargs={"run": run},
            vectorize=False,
            abs_err_tolerance=0.0,
            rel_err_tolerance=0.0,
            step_size=step_size,
        )
        self.run = run

    def reset(self, **kwargs: Any) -> None:
        """The state holds everything."""

    def compute_delta(self, **kwargs: Any) -> Tensor:
        delta: Tensor = self.linear_solver.solve()
        return delta

    def release(self) -> None:
        """Lets go of all tensors of the call."""
        self.run.clear()
        for box in (*self.ordering, *self._tmp_optim_vars):
            box.tensor = torch.zeros_like(box.tensor[:1])

    def _check_convergence(self, err: Tensor, last_err: Tensor) -> Tensor:
        return self.run.state.stopped

    def _step(
        self,
        delta: Tensor,
        previous_err: Tensor,
        converged_indices: Tensor,
        force_update: bool,
        delta_forced_to_gn: bool,
        **kwargs: Any,
    ) -> tuple[Tensor, bool]:
        run = self.run
        if delta_forced_to_gn:  # the implicit step
            run.state = implicit_end(run.state, delta)
            return previous_err, False
        candidate = self.ordering[0].retract(delta).tensor
        self.objective.update({"actions": candidate})
        run.left -= 1
        # As in the plain loop: nothing is differentiated through the objective of a last iterate.
        with torch.set_grad_enabled(run.record if run.left == 0 else torch.is_grad_enabled()):
            error = self.objective.error_metric()
            point = run.point(candidate)
        run.state = judge(run.problem, run.state, point, error, delta)
        self.objective.update({"actions": run.state.actions})
        return run.state.error, False
