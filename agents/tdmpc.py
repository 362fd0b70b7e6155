"""TD-MPC (2022): a latent world model with a value function, acting by sampling-based planning.

    L = mean_i w_i sum_t rho^t [ c1 mean_k (z_{t+1} - h'(s_{t+1}))_k^2 + c2 (R(z_t, a_t) - r_t)^2
                                 + c3 sum_j (Q_j(z_t, a_t) - y_t)^2 ]
    y_t = r_t + gamma min_j Q'_j(h(s_{t+1}), pi(h(s_{t+1})) + noise)
    L_pi = - sum_t rho^t mean_i min_j Q_j(sg(z_t), pi(sg(z_t)) + noise)

where ' marks target networks. The gradient of L is divided by T, as in the official code.

Source: Hansen, Wang, Su, "Temporal Difference Learning for Model Predictive Control", arXiv:2203.04955, equations 7 to 10.
Differs: one crop of each observation per update, where the official code draws a new one for every use; a termination is not
bootstrapped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from agents.latent.acting import ActingConfig
from agents.latent.agent import LatentAgent
from agents.latent.options import LatentAgentConfig
from agents.latent.tdmpc_world import TDMPCWorld
from difftop.options import option
from difftop.types import EnvSpec


@dataclass(frozen=True)
class TDMPCActingConfig(ActingConfig):
    """TD-MPC's: a prior without a spread of its own, and MPPI that follows the exploration schedule."""

    min_std: float = option(
        0.05, "std of the policy prior where it is sampled: TD targets, its own update, MPPI's policy plans", low=0
    )

    def mppi_std(self, agent_steps: int, *, explore: bool) -> float:
        """Exploration's std, but at least `min_std`; also where actions don't explore, as published."""
        return max(self.std(agent_steps), self.min_std)


@dataclass(frozen=True)
class TDMPCConfig(LatentAgentConfig):
    """Options of `agent=tdmpc`."""

    name: str = option("tdmpc", "registry name of the agent")
    acting: TDMPCActingConfig = option(TDMPCActingConfig, "planner, exploration and horizon schedules")


def make_world(config: TDMPCConfig, spec: EnvSpec) -> TDMPCWorld:
    """TD-MPC's world."""
    return TDMPCWorld(spec, config.model, config.loss, discount=config.discount, prior_std=config.acting.min_std)


def make_tdmpc(config: TDMPCConfig, spec: EnvSpec, **how: Any) -> LatentAgent:
    """`agent=tdmpc`: TD-MPC's world, a planner, and no gradient through it; see `LatentAgent`."""
    return LatentAgent(config, spec, lambda: make_world(config, spec), **how)
