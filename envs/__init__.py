"""Simulators behind one Gymnasium API, registered with Gymnasium as `difftop/<suite>-<task>-v0`. Knows difftop, never agents."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from envs.base import SimulatedEnv
from envs.config import EnvConfig
from envs.errors import EnvError, RenderError, WorkerDiedError
from envs.registry import (
    canonical_name,
    env_spec,
    gives,
    list_envs,
    make_env,
    make_expert,
    make_simulator,
    recorded_as,
    register_all,
    table,
)
from envs.vector import VectorEnv, make_vector_env

register_all()

_WITH_TORCH = {  # which no worker of an environment needs
    "record": "envs.demos",
    "env_of": "envs.recorded",
    "installed_version": "envs.recorded",
    "recorded_name": "envs.recorded",
}


def __getattr__(name: str) -> Any:
    if name in _WITH_TORCH:
        return getattr(import_module(_WITH_TORCH[name]), name)
    raise AttributeError(f"module 'envs' has no attribute {name!r}")


__all__ = [
    "EnvConfig",
    "EnvError",
    "RenderError",
    "SimulatedEnv",
    "VectorEnv",
    "WorkerDiedError",
    "canonical_name",
    "env_of",
    "env_spec",
    "gives",
    "installed_version",
    "list_envs",
    "make_env",
    "make_expert",
    "make_simulator",
    "make_vector_env",
    "record",
    "recorded_as",
    "recorded_name",
    "register_all",
    "table",
]
