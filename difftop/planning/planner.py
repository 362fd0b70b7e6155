"""Planning for users of the library: checks what comes in, and chooses who takes the iterations."""

from __future__ import annotations

import torch
from torch import Tensor

from difftop.options import ConfigError, check_ranges
from difftop.planning import lm
from difftop.planning.checks import check_damping, check_problem, check_scale
from difftop.planning.config import LMConfig
from difftop.planning.model import LatentModel
from difftop.types import PlanResult


class LMPlanner:
    """Plans by least squares with Levenberg-Marquardt.

        minimize over a in [-1, 1]^{H x A}, |a - prior| <= radius    1/2 |r(a)|^2 + 1/2 rho |a - prior|^2

    by a <- project(a + alpha delta), with delta the damped Gauss-Newton step on the components that are free: those at a bound
    whose descent direction points out of the box are left out. The rows r are in `difftop.planning.objectives`.
    `config.backend` chooses the loop: ours (`plain`, and `auto`) or Theseus'; plans and gradients are the same.

    Source: DiffTORI, arXiv:2402.05421, section 4; Theseus, arXiv:2207.09442. Differs: rows, projection, trust region, scales,
    starts and the dual solve; `docs/planner.md` has the reasons, and the settings of the paper.
    """

    def __init__(self, config: LMConfig, action_dim: int) -> None:
        check_ranges(config, "LMConfig")
        if action_dim < 1:
            raise ValueError(f"action_dim={action_dim}: must be at least 1.")
        self.config = config
        self.action_dim = action_dim
        self.loop: lm.Loop = _theseus(config) if config.backend == "theseus" else lm.iterate

    def plan(
        self,
        model: LatentModel,
        z0: Tensor,
        prior: Tensor,
        *,
        previous: Tensor | None = None,
        scale: Tensor | float | None = None,
        damping: Tensor | None = None,
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
            damping: lambda of each, positive `[B]`; None: `config.damping` for all.
            generator: source of the random starts.
            differentiable: whether the plan carries gradient. The plan is the same either way, to rounding.
        Returns:
            actions `[B, H, A]` in [-1, 1]. FAILED rows hold the best finite iterate (at worst the prior) and carry no gradient.
        Raises:
            ValueError: an argument or a model output of the wrong shape; on a CPU also non-finite z0, prior or previous, or a bad
                scale or damping (on a GPU, where reading a number waits for the device, such samples are FAILED).
        """
        check_problem(z0, prior, previous, self.action_dim)
        check_scale(scale, z0.shape[0])
        check_damping(damping, z0.shape[0])
        if torch.is_inference_mode_enabled():  # there autograd records nothing, not even for a Jacobian
            with torch.inference_mode(False), torch.no_grad():
                return self.plan(
                    model,
                    z0.clone(),
                    prior.clone(),
                    previous=None if previous is None else previous.clone(),
                    scale=scale.clone() if isinstance(scale, Tensor) else scale,
                    damping=None if damping is None else damping.clone(),
                    generator=generator,
                    differentiable=differentiable,
                )
        return lm.plan(
            model,
            z0,
            prior,
            self.config,
            previous=previous,
            scale=scale,
            damping=damping,
            generator=generator,
            differentiable=differentiable,
            loop=self.loop,
        )


class TheseusPlanner(LMPlanner):
    """`LMPlanner` with `backend=theseus`, whatever the configuration says."""

    def __init__(self, config: LMConfig, action_dim: int) -> None:
        super().__init__(config, action_dim)
        self.loop = _theseus(config)


def plan(
    model: LatentModel,
    z0: Tensor,
    start: Tensor,
    config: LMConfig = LMConfig(),  # noqa: B008  frozen
    *,
    scale: Tensor | float | None = None,
    generator: torch.Generator | None = None,
    differentiable: bool = False,
) -> PlanResult:
    """Optimizes action sequences under a model: `LMPlanner` in one call.

        maximize over a in [-1, 1]^{H x A}    sum_{t<H} gamma^t R(z_t, a_t) + gamma^H V(z_H),    z_{t+1} = f(z_t, a_t)

    near `start`, by damped least squares; docs/planner.md has the exact problem. `examples/plan_point_mass.py` is a whole
    program.

    Args:
        model: `LatentModel(dynamics, reward, terminal, discount)`, functions of tensors.
        z0: states to plan from `[B, Z]`, each a problem of its own.
        start: the plans to start from and to stay near, `[B, H, A]` in [-1, 1]: a policy's, or zeros.
        config: options; `LMConfig(iterations=10, damping=0.1)` searches farther than the default.
        scale: size of one step's reward, positive, a number or `[B]`; None: taken from each sample's start.
        generator: source of random starts.
        differentiable: whether `actions` carries gradient to z0 and to the model's parameters.
    Returns:
        actions `[B, H, A]` in [-1, 1], value `[B]` (the model's return), status `[B]` and iterations `[B]`.
    Raises:
        ValueError: as `LMPlanner.plan`, and for a config that starts from a previous plan, which is not given here.
    """
    if start.dim() != 3 or 0 in start.shape[1:]:
        raise ValueError(f"start: shape {list(start.shape)}; must be [B={len(z0)}, H >= 1, A >= 1].")
    if config.start_previous:
        raise ValueError("start_previous=True: plan() knows no previous plan; give it to LMPlanner(config, action_dim).plan.")
    planner = LMPlanner(config, start.shape[2])
    return planner.plan(model, z0, start, scale=scale, generator=generator, differentiable=differentiable)


def _theseus(config: LMConfig) -> lm.Loop:
    try:
        from difftop.planning.theseus_lm import TheseusLoop
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != "theseus":
            raise
        raise ConfigError(
            "LMConfig.backend=theseus: Theseus is not installed; docs/install.md has the line that adds it, and backend=plain "
            "gives the same plans without it."
        ) from error
    return TheseusLoop(config)
