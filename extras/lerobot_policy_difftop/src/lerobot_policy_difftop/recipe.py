"""All that a network of difftop is built from, in JSON, so that a folder saved by LeRobot needs no other file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from difftop.command import make_factories, make_registry
from difftop.data.demonstrations import Demonstrations
from difftop.options import ConfigError, build, still_known
from difftop.run.checkpoint import Checkpoint
from difftop.run.cli import composed
from difftop.run.imitate import recorded_task
from difftop.run.weights import load_acting
from difftop.types import EnvSpec


@dataclass(frozen=True)
class Recipe:
    """Options and task of a policy.

    Attributes:
        agent: options, its name among them; plain.
        spec: the task.
    """

    agent: Mapping[str, Any]
    spec: EnvSpec

    @property
    def config(self) -> Any:
        """The options as the agent's dataclass."""
        return _built(self.agent)

    def make(self, seed: int, device: str) -> Any:
        """The agent, with first weights.

        Raises:
            ConfigError: it doesn't imitate.
        """
        registry = import_module("agents.registry")
        known, _ = still_known(_kind(self.agent), self.agent)  # another version may have had more options
        return registry.make_agent(known, self.spec, seed=seed, device=device)

    def written(self) -> str:
        """As text, for `read`."""
        return json.dumps({"agent": dict(self.agent), "spec": self.spec.plain()}, sort_keys=True)

    @staticmethod
    def read(text: str) -> Recipe:
        """What `written` wrote."""
        values = json.loads(text)
        return Recipe(values["agent"], EnvSpec.from_plain(values["spec"]))


def agent_options(overrides: Sequence[str]) -> Any:
    """The options of the agent that a command of difftop with these overrides would train, as its dataclass.

    Raises:
        ConfigError: it is unknown or doesn't imitate, or so is an option.
    """
    return _built(composed(make_registry(), overrides).agent)


def from_checkpoint(path: Path | str) -> tuple[Recipe, Checkpoint]:
    """Of what acts of a run's folder; see `difftop.run.weights.load_acting`."""
    saved = load_acting(path)
    return Recipe(saved.config["agent"], saved.spec), saved


def from_data_set(root: Path, overrides: Sequence[str]) -> tuple[Recipe, Demonstrations]:
    """Of a policy that is trained on a data set of LeRobot, which is read for what normalizes."""
    registry = make_registry()
    values = composed(registry, overrides).agent
    _kind(values)
    demonstrations, spec = recorded_task(root, overrides, registry, make_factories())
    return Recipe(values, spec), demonstrations


def _built(values: Mapping[str, Any]) -> Any:
    known, _ = still_known(_kind(values), values)
    return build(_kind(values), known, "agent")


def _kind(values: Mapping[str, Any]) -> type:
    """The dataclass of an agent's options; raises `ConfigError` where it doesn't imitate."""
    registry, name = import_module("agents.registry"), str(values["name"])
    if name not in registry.names("demonstrations"):
        known = ", ".join(registry.names("demonstrations"))
        raise ConfigError(f"agent={name}: learns from rewards; policy.agent must be one of those that imitate: {known}.")
    kind: type = registry.config_class(name)
    return kind
