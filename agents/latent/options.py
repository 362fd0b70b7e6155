"""What the options of all latent agents have; each agent narrows it."""

from __future__ import annotations

from dataclasses import dataclass

from agents.latent.acting import ActingConfig
from agents.latent.world import LossConfig
from agents.latent.world_model import WorldModelConfig
from difftop.options import option


@dataclass(frozen=True)
class LatentAgentConfig:
    """Options of an agent with a latent world model."""

    name: str = option("", "registry name of the agent")
    discount: float = option(0.99, "discount gamma per agent step", above=0, high=1)
    model: WorldModelConfig = option(WorldModelConfig, "network sizes")
    loss: LossConfig = option(LossConfig, "loss coefficients")
    acting: ActingConfig = option(ActingConfig, "planner, exploration and horizon schedules")
