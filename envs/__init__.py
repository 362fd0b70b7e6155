"""Simulators behind one Gymnasium API, registered with Gymnasium as `difftop/<suite>-<task>-v0`. Knows difftop, never agents."""

from __future__ import annotations

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


def __getattr__(name: str) -> Any:
    if name == "record":  # it takes torch with it, which no worker of an environment needs
        from envs.demos import record

        return record
    raise AttributeError(f"module 'envs' has no attribute {name!r}")


__all__ = [
    "EnvConfig",
    "EnvError",
    "RenderError",
    "SimulatedEnv",
    "VectorEnv",
    "WorkerDiedError",
    "canonical_name",
    "env_spec",
    "gives",
    "list_envs",
    "make_env",
    "make_expert",
    "make_simulator",
    "make_vector_env",
    "record",
    "recorded_as",
    "register_all",
    "table",
]
