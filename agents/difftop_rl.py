"""DiffTOP / DiffTORI: a latent world model, acting and learning through a differentiable trajectory optimizer.

What the agent is made of, and its options; the update itself is in `agents/latent/agent.py`, L_PG in `agents/latent/gradient.py`.

    a(theta) = plan(h(s), R, d, Q)_0          the first action of the optimized plan, by Levenberg-Marquardt
    L_PG = - mean_s min_j C_j(s, a(theta)) / S

C is a twin critic on raw observations, frozen inside L_PG and trained by its own TD error beside the loss of the world model;
S is the running size of one step's reward. L_PG reaches encoder, dynamics, reward and latent Q; never the policy prior, nor C.
With `mode=replay` it is part of every `every`-th update (the paper's equation 6); with `mode=on_policy` it is summed over the
states of the last episode and takes one step of an optimizer of its own (what the official code does); with `mode=none` the
agent plans by the same optimizer in a world that is trained without L_PG.

`world_model=scaled`, the default, is our own world (`agents/latent/scaled_world.py`), with `mode=none`; `tdmpc`, the papers', and
`tdmpc2` have `mode=replay`.

Source: Wan, Wang, Erickson, Held, "DiffTORI: Differentiable Trajectory Optimization for Deep Reinforcement and Imitation
Learning", arXiv:2402.05421, equations 4 to 6.  Differs: the plan is boxed, S normalizes (`normalize`), the policy prior ends the
plan's value as in TD-MPC.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from agents import tdmpc, tdmpc2
from agents.latent.agent import LatentAgent
from agents.latent.gradient import PolicyGradientConfig, mode_option
from agents.latent.options import LatentAgentConfig, ema_option
from agents.latent.planners import planner_option
from agents.latent.planning import noise_option, share_option
from agents.latent.scaled_model import ScaledModelConfig
from agents.latent.scaled_world import ScaledLossConfig, ScaledWorld
from agents.latent.world import World
from agents.tdmpc import TDMPCActingConfig, TDMPCConfig
from agents.tdmpc2 import TDMPC2ActingConfig, TDMPC2Config
from difftop.options import option
from difftop.types import EnvSpec


@dataclass(frozen=True)
class LMActingConfig(TDMPCActingConfig):
    """As TD-MPC's, with the differentiable planner."""

    planner: str = planner_option("lm")


@dataclass(frozen=True)
class DiffTOPOnTDMPCConfig(TDMPCConfig):
    """Options of `agent=difftop_rl world_model=tdmpc`, the papers' world."""

    name: str = option("difftop_rl", "registry name of the agent")
    world_model: str = option("tdmpc", "set by world_model=tdmpc", choices=("tdmpc",))
    acting: LMActingConfig = option(LMActingConfig, "planner, exploration and horizon schedules")
    policy_gradient: PolicyGradientConfig = option(PolicyGradientConfig, "the loss through the optimizer")


@dataclass(frozen=True)
class LMTDMPC2ActingConfig(TDMPC2ActingConfig):
    """As TD-MPC2's, with the differentiable planner."""

    planner: str = planner_option("lm")


@dataclass(frozen=True)
class DiffTOPOnTDMPC2Config(TDMPC2Config):
    """Options of `agent=difftop_rl world_model=tdmpc2`."""

    name: str = option("difftop_rl", "registry name of the agent")
    world_model: str = option("tdmpc2", "set by world_model=tdmpc2", choices=("tdmpc2",))
    acting: LMTDMPC2ActingConfig = option(LMTDMPC2ActingConfig, "planner, exploration and horizon schedules")
    policy_gradient: PolicyGradientConfig = option(PolicyGradientConfig, "the loss through the optimizer")


@dataclass(frozen=True)
class ScaledActingConfig(LMActingConfig):
    """Plans as long as the model is trained for, from the start; noise of every colour, which stays large."""

    horizon: int = option(3, "longest plan, in agent steps", low=1)
    horizon_start: int = option(3, "plan length at the start of training, in agent steps", low=1)
    std_end: float = option(0.2, "std of exploration at the end", low=0)
    std_steps: int = option(5_000, "agent steps until exploration's std has reached its end", low=0)
    min_std: float = option(
        0.1, "std of the policy prior where it is sampled: TD targets, its own update, MPPI's policy plans", low=0
    )
    noise_colour: str = noise_option("mixed")
    explore_until_reward: bool = option(True, "planner=lm|none: std stays at its start until a reward other than 0 was seen")
    exploring_episodes: float = share_option("exploring_episodes", 0.5)
    random_share: float = share_option("random_share", 0.5)
    bold_share: float = share_option("bold_share", 0.5)

    def mppi_std(self, agent_steps: int, *, explore: bool) -> float:
        """Exploration's std where actions explore: it ends too large to act by."""
        return super().mppi_std(agent_steps, explore=True) if explore else self.mppi.min_std


@dataclass(frozen=True)
class OptionalGradientConfig(PolicyGradientConfig):
    """Off until asked for: see docs/difftop_rl.md for what it was found to give and what it costs."""

    mode: str = mode_option("none")


@dataclass(frozen=True)
class DiffTOPConfig(LatentAgentConfig):
    """Options of `agent=difftop_rl` on its own world."""

    name: str = option("difftop_rl", "registry name of the agent")
    world_model: str = option("scaled", "set by world_model=scaled", choices=("scaled",))
    ema: float = ema_option(0.999)
    model: ScaledModelConfig = option(ScaledModelConfig, "network sizes")
    loss: ScaledLossConfig = option(ScaledLossConfig, "loss coefficients")
    acting: ScaledActingConfig = option(ScaledActingConfig, "planner, exploration and horizon schedules")
    policy_gradient: OptionalGradientConfig = option(OptionalGradientConfig, "the loss through the optimizer")


def make_scaled_world(config: DiffTOPConfig, spec: EnvSpec) -> ScaledWorld:
    """The world of unit-sized errors."""
    return ScaledWorld(spec, config.model, config.loss, discount=config.discount, prior_std=config.acting.min_std)


class OnWorld(NamedTuple):
    """The agent's options on a world model, and what makes that world from them."""

    config: type[DiffTOPConfig | DiffTOPOnTDMPCConfig | DiffTOPOnTDMPC2Config]
    make: Callable[[Any, EnvSpec], World]


WORLDS: Mapping[str, OnWorld] = {
    "scaled": OnWorld(DiffTOPConfig, make_scaled_world),
    "tdmpc": OnWorld(DiffTOPOnTDMPCConfig, tdmpc.make_world),
    "tdmpc2": OnWorld(DiffTOPOnTDMPC2Config, tdmpc2.make_world),
}


def make_difftop_rl(
    config: DiffTOPConfig | DiffTOPOnTDMPCConfig | DiffTOPOnTDMPC2Config, spec: EnvSpec, **how: Any
) -> LatentAgent:
    """`agent=difftop_rl`: a world, a planner, and where asked for the policy gradient through it; see `LatentAgent`."""
    return LatentAgent(config, spec, lambda: WORLDS[config.world_model].make(config, spec), config.policy_gradient, **how)
