"""TD-MPC2 (2023): TD-MPC with a normalized latent space, classified rewards and values, and a maximum-entropy policy prior.

    L = mean_i w_i 1/T sum_t rho^t [ c1 mean_k (z_{t+1} - sg h(s_{t+1}))_k^2 + c2 CE(R(z_t, a_t), r_t)
                                     + c3 mean_j CE(Q_j(z_t, a_t), y_t) ]
    y_t = r_t + gamma min_{j in P} Q'_j(h(s_{t+1}), a'),   a' ~ pi(h(s_{t+1}))
    L_pi = - mean_t rho^t mean_i [ mean_{j in P'} Q_j(sg z_t, a) / S - c4 A log pi(a) ],   a ~ pi(sg z_t)

where CE is the cross-entropy of two-hot symlog targets, Q' moving averages of Q, P and P' two members drawn anew in each update,
and S the running spread of values at t = 0, at least 1. Replay is uniform: no priorities are handed back.

Source: Hansen, Su, Wang, "TD-MPC2: Scalable, Robust World Models for Continuous Control", arXiv:2310.16828, equations 3 to 6.
Differs: a termination is not bootstrapped; the entropy is that of the squashed action.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from agents.latent.acting import ActingConfig
from agents.latent.agent import LatentAgent
from agents.latent.options import LatentAgentConfig
from agents.latent.tdmpc2_model import TDMPC2ModelConfig
from agents.latent.tdmpc2_world import TDMPC2LossConfig, TDMPC2World
from difftop.options import option
from difftop.planning.config import MPPIConfig
from difftop.types import EnvSpec

MANY_ACTIONS = 20  # from this action dimension on MPPI has two more rounds


@dataclass(frozen=True)
class TDMPC2MPPIConfig(MPPIConfig):
    """MPPI as TD-MPC2 runs it."""

    prior_fraction: float = option(
        24 / 512, "policy plans mixed in, as a fraction of `samples`; agents mix in one at least", low=0.0, high=1.0
    )
    momentum: float = option(0.0, "share of the old mean in the new mean", low=0.0, high=1.0)


@dataclass(frozen=True)
class TDMPC2ActingConfig(ActingConfig):
    """TD-MPC2's: short plans from the start; MPPI explores by the spread it has found, the other planners by the schedule."""

    horizon: int = option(3, "longest plan, in agent steps", low=1)
    horizon_start: int = option(3, "plan length at the start of training, in agent steps", low=1)
    std_start: float = option(0.5, "planner=lm|none: std of exploration at the start, in action units", low=0)
    std_end: float = option(0.05, "planner=lm|none: std of exploration at the end", low=0)
    std_steps: int = option(25_000, "planner=lm|none: agent steps until it has reached its end", low=0)
    mppi: TDMPC2MPPIConfig = option(TDMPC2MPPIConfig, "settings of planner=mppi")

    def mppi_for(self, action_dim: int) -> MPPIConfig:
        """Two more rounds where there are many actions."""
        more = 2 if action_dim >= MANY_ACTIONS else 0
        return replace(self.mppi, iterations=self.mppi.iterations + more)


@dataclass(frozen=True)
class TDMPC2Config(LatentAgentConfig):
    """Options of `agent=tdmpc2`."""

    name: str = option("tdmpc2", "registry name of the agent")
    discount: float = option(
        0.0, "discount gamma per agent step; 0: 1 - 5/L within [0.95, 0.995], for episodes of L agent steps", low=0, high=1
    )
    model: TDMPC2ModelConfig = option(TDMPC2ModelConfig, "network sizes")
    loss: TDMPC2LossConfig = option(TDMPC2LossConfig, "loss coefficients")
    acting: TDMPC2ActingConfig = option(TDMPC2ActingConfig, "planner, exploration and horizon schedules")


def discount(config: TDMPC2Config, spec: EnvSpec) -> float:
    """gamma per agent step: the option, or by the length of an episode.

    Source: TD-MPC2, arXiv:2310.16828, appendix H.
    """
    return config.discount if config.discount > 0 else min(max(1 - 5 / spec.episode_steps, 0.95), 0.995)


def make_world(config: TDMPC2Config, spec: EnvSpec) -> TDMPC2World:
    """TD-MPC2's world."""
    return TDMPC2World(spec, config.model, config.loss, discount=discount(config, spec))


def make_tdmpc2(config: TDMPC2Config, spec: EnvSpec, **how: Any) -> LatentAgent:
    """`agent=tdmpc2`: TD-MPC2's world, a planner, and no gradient through it; see `LatentAgent`."""
    return LatentAgent(config, spec, lambda: make_world(config, spec), **how)
