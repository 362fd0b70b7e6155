"""Agents by name, resolved lazily; packages of others add theirs under the entry point group `difftop.agents`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import nn

from agents.policies.training import ImitationAgent
from difftop.contract import Agent
from difftop.entry_points import Extended
from difftop.nn.encoders import half_images
from difftop.options import ConfigError, build, suggest
from difftop.products import has_bf16
from difftop.types import EnvSpec

LEARNS_FROM = ("rewards", "demonstrations")


@dataclass(frozen=True)
class Entry:
    """Where an agent and its options live, one line for `--help`, and what it learns from.

    Attributes:
        module: to import when the agent is wanted.
        agent: name in it of what makes the agent, `(config, spec, *, seed, device, bf16) -> Agent`; for one that learns from
            demonstrations, of its `agents.policies.training.Policy`, which `ImitationAgent` trains.
        config: name in it of the options, a dataclass of `difftop.options.option` fields; those of a policy have `training`.
        summary: one line.
        learns_from: `rewards` of an environment, or `demonstrations`.
        worlds: name in it of a table of the world models that the agent can be given, to objects with the `config` on each; empty
            for an agent without that choice.
    """

    module: str
    agent: str
    config: str
    summary: str
    learns_from: str = "rewards"
    worlds: str = ""

    def __post_init__(self) -> None:
        if self.learns_from not in LEARNS_FROM:
            raise ValueError(f"Entry.learns_from={self.learns_from!r}: must be one of {', '.join(LEARNS_FROM)}.")

    def find(self, name: str) -> Any:
        """`name` of the module."""
        return getattr(import_module(self.module), name)


def _imitates(name: str, policy: str, summary: str) -> Entry:
    return Entry(f"agents.{name}", policy, f"{policy}Config", summary, "demonstrations")


AGENTS: Extended[Entry] = Extended(
    {
        "tdmpc": Entry("agents.tdmpc", "make_tdmpc", "TDMPCConfig", "TD-MPC (2022): latent world model, MPPI planner"),
        "tdmpc2": Entry("agents.tdmpc2", "make_tdmpc2", "TDMPC2Config", "TD-MPC2 (2023): normalized world model, MPPI planner"),
        "difftop_rl": Entry(
            "agents.difftop_rl",
            "make_difftop_rl",
            "DiffTOPConfig",
            "DiffTOP: plans by differentiable Levenberg-Marquardt; optionally a loss through the plan",
            worlds="WORLDS",
        ),
        "leto": _imitates("leto", "Leto", "LeTO: recurrent policy with a constrained trajectory head"),
        "bc": _imitates("bc", "BC", "behavior cloning by an MLP, with or without a mixture of Gaussians"),
        "rnn_gmm": _imitates("rnn_gmm", "RnnGmm", "BC-RNN-GMM: recurrent mixture of Gaussians"),
        "ibc": _imitates("ibc", "IBC", "implicit behavior cloning: an energy, minimized by sampling"),
        "diffusion": _imitates("diffusion", "Diffusion", "Diffusion Policy: 1D U-Net, DDPM or DDIM"),
        "act": _imitates("act", "ACT", "ACT: chunks by a transformer and a CVAE, ensembled over time"),
        "residual": _imitates("residual", "Residual", "a trained policy's actions, corrected by an MLP"),
        "difftop_il": _imitates("difftop_il", "DiffTOPIL", "DiffTOP: a CVAE with a planner as decoder"),
    },
    "difftop.agents",
)


def names(learns_from: str) -> list[str]:
    """Agents that learn from `rewards`, or from `demonstrations`."""
    return [name for name, entry in AGENTS.items() if entry.learns_from == learns_from]


def config_class(name: str, world_model: str = "auto") -> type:
    """The options of agent `name` on `world_model` (auto: its own); raises `ConfigError` for an unknown one."""
    entry = _entry(name)
    if world_model == "auto":
        found: type = entry.find(entry.config)
        return found
    worlds = entry.find(entry.worlds) if entry.worlds else {}
    if world_model not in worlds:
        known = f"unknown; agent={name} can be given: {', '.join(worlds)}" if worlds else f"agent={name} has its own"
        raise ConfigError(f"world_model={world_model}: {known}.")
    config: type = worlds[world_model].config
    return config


def world_models(name: str) -> dict[str, type]:
    """The world models that agent `name` can be given (auto: its own), and its options on each; empty where it has no choice."""
    entry = _entry(name)
    return {world: config_class(name, world) for world in ["auto", *entry.find(entry.worlds)]} if entry.worlds else {}


def make_agent(
    values: Mapping[str, Any],
    spec: EnvSpec,
    *,
    seed: int,
    device: str = "cpu",
    precision: str = "auto",
    total_steps: int = 0,
    capture: str = "auto",
) -> Agent:
    """Builds the agent that `values["name"]` names, on the world model that `values["world_model"]` names, if it is there.

    An agent made from the options in a checkpoint and the spec it was trained for takes the checkpoint's weights by
    `load_state_dict`; nothing else is needed, neither a base policy's run nor a simulator.

    Args:
        values: options of the agent, a plain mapping; missing ones take their defaults.
        spec: the environment it is for.
        seed: of its initial weights and its generator.
        device: `cpu` or `cuda`.
        precision: `fp32`, `bf16` for all matrix products in bfloat16, or `auto`: convolutions of images in bfloat16 where an
            agent that learns from rewards runs on a CPU that has such products, all else in float32.
        total_steps: length of the training in gradient steps, for a learning rate's schedule.
        capture: `auto`, `true` or `false`: updates and plans of an agent that learns from rewards as CUDA graphs.
    Returns:
        a `difftop.contract.OnlineAgent` where it learns from rewards, else an `agents.policies.training.ImitationAgent`.
    Raises:
        ConfigError: an unknown agent, a bad option, observations that the agent can't take, or capture=true where it can't be.
    """
    entry, config = _configured(values)
    make, where, bf16 = entry.find(entry.agent), torch.device(device), precision == "bf16"
    if entry.learns_from == "rewards":
        made: Any = make(config, spec, seed=seed, device=where, bf16=bf16)
        if precision == "auto" and where.type == "cpu" and isinstance(made, nn.Module) and has_bf16():
            half_images(made)
        if hasattr(made, "capture_graphs"):
            made.capture_graphs(capture)
        elif capture == "true":
            raise ConfigError(f"capture=true: agent={values['name']} can't be captured; use capture=auto.")
        agent: Agent = made
        return agent
    if capture == "true":
        raise ConfigError(f"capture=true: is for agents that learn from rewards, and agent={values['name']} imitates.")
    policy = make(config, spec, seed=seed)
    return ImitationAgent(policy, config.training, total_steps=total_steps, seed=seed, device=where, bf16=bf16)


def make_policy(values: Mapping[str, Any], spec: EnvSpec, *, seed: int) -> Any:
    """Builds the policy that `values["name"]` names, on the CPU and without what trains it; see `Policy`."""
    entry, config = _configured(values)
    if entry.learns_from != "demonstrations":
        known = ", ".join(names("demonstrations"))
        raise ConfigError(f"agent={values['name']} learns from rewards, not from demonstrations; choose one of {known}.")
    return entry.find(entry.agent)(config, spec, seed=seed)


def _configured(values: Mapping[str, Any]) -> tuple[Entry, Any]:
    """The entry, and the options as a dataclass."""
    name, world = str(values.get("name")), str(values.get("world_model", "auto"))
    kind = config_class(name, world)
    given = {key: value for key, value in values.items() if (key, value) != ("world_model", "auto")}
    return AGENTS[name], build(kind, given, "agent")


def _entry(name: str) -> Entry:
    if name not in AGENTS:
        raise ConfigError(f"agent={name}: unknown agent.{suggest(name, list(AGENTS))} Agents: {', '.join(AGENTS)}.")
    return AGENTS[name]
