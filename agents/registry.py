"""Agents by name, resolved lazily."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch

from agents.base import Agent
from agents.policies.training import ImitationAgent, TrainingConfig
from difftop.options import ConfigError, build, suggest
from difftop.types import EnvSpec, EnvSpec


@dataclass(frozen=True)
class Entry:
    """Where an agent's class and its options live, one line for `--help`, and which loop trains it.

    Attributes:
        kind: `rl`, from an environment; or `il`, from demonstrations (then `agent` is a `Policy`).
        worlds: the world models it can be given, by name: names of its class and its options class on that model.
    """

    module: str
    agent: str
    config: str
    summary: str
    kind: str = "rl"
    worlds: Mapping[str, tuple[str, str]] = field(default_factory=dict)


AGENTS: Mapping[str, Entry] = {
    "tdmpc": Entry("agents.tdmpc", "TDMPC", "TDMPCConfig", "TD-MPC (2022): latent world model, MPPI planner"),
    "tdmpc2": Entry("agents.tdmpc2", "TDMPC2", "TDMPC2Config", "TD-MPC2 (2023): normalized world model, MPPI planner"),
    "difftop_rl": Entry(
        "agents.difftop_rl",
        "DiffTOP",
        "DiffTOPConfig",
        "DiffTOP: policy gradient through a Theseus planner",
        worlds={"tdmpc": ("DiffTOP", "DiffTOPConfig"), "tdmpc2": ("DiffTOPOnTDMPC2", "DiffTOPOnTDMPC2Config")},
    ),
    "leto": Entry("agents.leto", "Leto", "LetoConfig", "LeTO: recurrent policy with a constrained trajectory head", "il"),
    "bc": Entry("agents.bc", "BC", "BCConfig", "behavior cloning by an MLP, with or without a mixture of Gaussians", "il"),
    "rnn_gmm": Entry("agents.rnn_gmm", "RnnGmm", "RnnGmmConfig", "BC-RNN-GMM: recurrent mixture of Gaussians", "il"),
    "ibc": Entry("agents.ibc", "IBC", "IBCConfig", "implicit behavior cloning: an energy, minimized by sampling", "il"),
    "diffusion": Entry("agents.diffusion", "Diffusion", "DiffusionConfig", "Diffusion Policy: 1D U-Net, DDPM or DDIM", "il"),
    "residual": Entry("agents.residual", "Residual", "ResidualConfig", "a trained policy's actions, corrected by an MLP", "il"),
    "difftop_il": Entry("agents.difftop_il", "DiffTOPIL", "DiffTOPILConfig", "DiffTOP: a CVAE with a planner as decoder", "il"),
}


def names(kind: str) -> list[str]:
    """Agents of one kind, `rl` or `il`."""
    return [name for name, entry in AGENTS.items() if entry.kind == kind]


def config_class(name: str, world_model: str = "auto") -> type:
    """The options of agent `name` on `world_model` (auto: its own); raises `ConfigError` for an unknown one."""
    return _classes(name, world_model)[1]


def world_models(name: str) -> dict[str, type]:
    """The world models that agent `name` can be given (auto: its own), and its options on each; empty where it has no choice."""
    worlds = AGENTS[name].worlds
    return {world: config_class(name, world) for world in (["auto", *worlds] if worlds else [])}


def make_agent(values: Mapping[str, Any], spec: EnvSpec, *, seed: int, device: str = "cpu", precision: str = "fp32") -> Agent:
    """Builds the agent that `values["name"]` names, on the world model that `values["world_model"]` names, if it is there.

    Args:
        values: options of the agent, a plain mapping; missing ones take their defaults.
        spec: the environment it is for.
        seed: of its initial weights and its generator.
        device: `cpu` or `cuda`.
        precision: `fp32`, or `bf16` for matrix products in bfloat16.
    """
    cls, options = _classes(str(values.get("name")), str(values.get("world_model", "auto")))
    config: Any = build(options, values, "agent")
    made: Agent = cls(spec, config, seed=seed, device=torch.device(device), bf16=precision == "bf16")
    return made


def make_policy(values: Mapping[str, Any], spec: EnvSpec, *, seed: int) -> Any:
    """Builds the policy that `values["name"]` names, on the CPU; see `agents.policies.training.Policy`."""
    config, cls = _imitation(values)
    return cls(config, spec, seed=seed)


def make_imitation_agent(
    values: Mapping[str, Any], spec: EnvSpec, *, seed: int, device: str = "cpu", precision: str = "fp32", total_steps: int
) -> ImitationAgent:
    """Builds the policy that `values["name"]` names, and what trains it.

    Args:
        values: options of the agent, a plain mapping; missing ones take their defaults.
        spec: the task it is for.
        seed: of its initial weights and its generator.
        device, precision: see `make_agent`.
        total_steps: length of the training in gradient steps, for the learning rate's schedule.
    """
    config, cls = _imitation(values)
    training: TrainingConfig = config.training
    return ImitationAgent(
        cls(config, spec, seed=seed),
        training,
        total_steps=total_steps,
        seed=seed,
        device=torch.device(device),
        bf16=precision == "bf16",
    )


def _imitation(values: Mapping[str, Any]) -> tuple[Any, Any]:
    """Options and class of a policy."""
    name = str(values.get("name"))
    cls, options = _classes(name, "auto")
    if AGENTS[name].kind != "il":
        raise ConfigError(f"agent={name} learns from rewards, not from demonstrations; choose one of {', '.join(names('il'))}.")
    return build(options, values, "agent"), cls


def _classes(name: str, world_model: str) -> tuple[Any, type]:
    """Agent and options."""
    if name not in AGENTS:
        raise ConfigError(f"agent={name}: unknown agent.{suggest(name, list(AGENTS))} Agents: {', '.join(AGENTS)}.")
    entry = AGENTS[name]
    names = (entry.agent, entry.config)
    if world_model != "auto":
        if world_model not in entry.worlds:
            known = (
                f"unknown; agent={name} can be given: {', '.join(entry.worlds)}" if entry.worlds else f"agent={name} has its own"
            )
            raise ConfigError(f"world_model={world_model}: {known}.")
        names = entry.worlds[world_model]
    module = import_module(entry.module)
    return getattr(module, names[0]), getattr(module, names[1])
