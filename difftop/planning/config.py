"""Options of the planners."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from difftop.options import ConfigError, option


def objective_option(default: str) -> Any:
    """The option `objective`; `difftop.planning.objectives` has their rows."""
    return option(default, "rows of the least squares", choices=("stagewise", "return", "cost"))


@dataclass(frozen=True)
class LMConfig:
    """Options of `LMPlanner`. Objectives, scales and the trust region are explained in docs/planner.md."""

    backend: str = option(
        "auto", "who takes the iterations: our loop, or Theseus; same plans and gradients", choices=("auto", "plain", "theseus")
    )
    objective: str = objective_option("stagewise")
    iterations: int = option(5, "Levenberg-Marquardt iterations per plan", low=1)
    damping: float = option(10.0, "lambda, in normalised units: larger means smaller steps, nearer the prior", above=0.0)
    adaptive: bool = option(False, "raise lambda after a bad step, lower it after a good one, per sample; bad steps are undone")
    min_damping: float = option(1e-4, "smallest lambda that adaptive damping may reach", above=0.0)
    step_size: float = option(1.0, "fraction of each step that is taken", above=0.0, high=1.0)
    proximal: float = option(0.0, "weight rho of 1/2 rho |a - prior|^2, in normalised units", low=0.0)
    radius: float = option(
        2.0, "largest distance of any action component from the prior; 2 leaves the whole box", above=0.0, high=2.0
    )
    bounds: str = option(
        "project", "box by projection of the iterates, or by a clamp inside the objective", choices=("project", "clamp")
    )
    tolerance: float = option(0.0, "relative change of the objective below which a sample stops; 0: never", low=0.0)
    start_previous: bool = option(False, "also start from the shifted previous plan")
    start_zeros: bool = option(False, "also start from zeros")
    start_random: int = option(0, "number of further starts, uniform in the box", low=0)
    backward: str = option("truncated", "how a differentiable plan carries gradient", choices=("unroll", "truncated", "implicit"))
    backward_iterations: int = option(2, "last iterations that carry gradient under backward=truncated", low=1)
    scale: float = option(0.0, "size of one step's reward; 0: the scale given to plan(), or one per sample if none is", low=0.0)
    target: str = option("prior", "stagewise targets lie above the prior's own rewards, or are fixed", choices=("prior", "fixed"))
    reward_target: float = option(2.0, "stagewise target (or margin) of each step's reward, in normalised units")
    value_target: float = option(2.0, "stagewise target (or margin) of the terminal value, in normalised units")
    softness: float = option(0.5, "tau of the stagewise softplus, in normalised units", above=0.0)
    return_target: float = option(1000.0, "c of objective 'return', row c - G", above=0.0)


@dataclass(frozen=True)
class MPPIConfig:
    """Options of `MPPIPlanner`; defaults are TD-MPC's (arXiv:2203.04955, table 4)."""

    iterations: int = option(6, "rounds of sampling", low=1)
    samples: int = option(512, "Gaussian plans per round", low=2)
    elites: int = option(64, "best plans that form the next mean and spread", low=1)
    prior_fraction: float = option(
        0.05, "policy plans mixed in, as a fraction of `samples`; agents mix in one at least", low=0.0, high=1.0
    )
    temperature: float = option(0.5, "weight of an elite is exp(temperature (G - G_best))", above=0.0)
    momentum: float = option(0.1, "share of the old mean in the new mean", low=0.0, high=1.0)
    min_std: float = option(0.05, "smallest spread of actions, where plan() is given none", above=0.0)
    max_std: float = option(2.0, "spread of actions in the first round, and the largest later", above=0.0)

    def check(self, where: str) -> None:
        """Raises a ConfigError where there are more elites than samples."""
        if self.elites > self.samples:
            raise ConfigError(f"{where}.elites={self.elites}: must be at most {where}.samples={self.samples}.")

    @property
    def prior_samples(self) -> int:
        """Number of policy plans that the agent hands to `MPPIPlanner.plan`."""
        return int(self.prior_fraction * self.samples)
