"""What the options of all latent agents have; each agent narrows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from agents.latent.acting import ActingConfig
from agents.latent.world import LossConfig
from agents.latent.world_model import WorldModelConfig
from difftop.options import option


def ema_option(default: float) -> Any:
    """The option `ema`, with an agent's own default."""
    help_ = "decay per gradient step of the averaged weights that act, but in acting.raw_episodes; 0: no average"
    return option(default, help_, low=0, high=1)


@dataclass(frozen=True)
class LatentAgentConfig:
    """Options of an agent with a latent world model."""

    name: str = option("", "registry name of the agent")
    discount: float = option(0.99, "discount gamma per agent step", above=0, high=1)
    ema: float = ema_option(0.0)
    model: WorldModelConfig = option(WorldModelConfig, "network sizes")
    loss: LossConfig = option(LossConfig, "loss coefficients")
    acting: ActingConfig = option(ActingConfig, "planner, exploration and horizon schedules")
