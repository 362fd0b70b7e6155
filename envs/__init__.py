"""Simulators behind one Gymnasium API. Knows difftop, never agents."""

from envs.base import SimulatedEnv
from envs.config import EnvConfig
from envs.errors import EnvError, RenderError
from envs.registry import canonical_env, canonical_name, env_spec, list_envs, make_env, register_all
from envs.vector import VectorEnv, make_vector_env

__all__ = [
    "EnvConfig",
    "EnvError",
    "RenderError",
    "SimulatedEnv",
    "VectorEnv",
    "canonical_env",
    "canonical_name",
    "env_spec",
    "list_envs",
    "make_env",
    "make_vector_env",
    "register_all",
]
