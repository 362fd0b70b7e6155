"""Agents by name, resolved lazily."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch

from agents.base import Agent
from difftop.options import ConfigError, build, suggest
from difftop.types import EnvSpec


@dataclass(frozen=True)
class Entry:
    """Where an agent's class and its options live, and one line for `--help`."""

    module: str
    agent: str
    config: str
    summary: str


AGENTS: Mapping[str, Entry] = {
    "tdmpc": Entry("agents.tdmpc", "TDMPC", "TDMPCConfig", "TD-MPC (2022): latent world model, MPPI planner"),
    "difftop_rl": Entry("agents.difftop_rl", "DiffTOP", "DiffTOPConfig", "DiffTOP: policy gradient through a Theseus planner"),
}


def config_class(name: str) -> type:
    """The options of agent `name`; raises `ConfigError` for an unknown one."""
    if name not in AGENTS:
        raise ConfigError(f"agent={name}: unknown agent.{suggest(name, list(AGENTS))} Agents: {', '.join(AGENTS)}.")
    cls: type = getattr(import_module(AGENTS[name].module), AGENTS[name].config)
    return cls


def make_agent(values: Mapping[str, Any], spec: EnvSpec, *, seed: int, device: str = "cpu", precision: str = "fp32") -> Agent:
    """Builds the agent that `values["name"]` names.

    Args:
        values: options of the agent, a plain mapping; missing ones take their defaults.
        spec: the environment it is for.
        seed: of its initial weights and its generator.
        device: `cpu` or `cuda`.
        precision: `fp32`, or `bf16` for matrix products in bfloat16.
    """
    name = str(values.get("name"))
    config: Any = build(config_class(name), values, "agent")
    cls = getattr(import_module(AGENTS[name].module), AGENTS[name].agent)
    made: Agent = cls(spec, config, seed=seed, device=torch.device(device), bf16=precision == "bf16")
    return made
