"""Names of environments in demonstration files, to ours and back; no simulator is loaded."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from difftop.data.demonstrations import EnvInfo
from difftop.options import ConfigError
from envs.registry import canonical_name, find_task, gives, suites
from envs.robosuite.tasks import ROBOMIMIC

_ROBOSUITE, _GYM = 1, 2  # RoboMimic's numbers


def recorded_name(name: str) -> str:
    """What a file recorded in the environment `name` calls it; raises `ConfigError` for an unknown one."""
    task = find_task(name)
    return str(task.module.recorded_name(task.task)) if hasattr(task.module, "recorded_name") else task.task


def env_of(info: EnvInfo, stem: str) -> str:
    """The environment that a data set was recorded in; `data/NAME`, which has no simulator, where it is none of ours.

    Args:
        info: what the data set says.
        stem: of its path, the name where it says none.
    """
    for name in _candidates(info):
        try:
            found = canonical_name(name)
            gives(found)
            return found
        except ConfigError:
            continue
    plain = re.sub(r"[^\w.+-]+", "-", info.name or stem).strip("-")
    return f"data/{plain or 'unnamed'}"


def _candidates(info: EnvInfo) -> list[str]:
    """Names that it may have here, the likeliest first."""
    kind, suite = info.raw.get("type", info.raw.get("env_type")), info.kwargs.get("suite")
    if not info.name:
        return []
    if suite:
        return [f"{suite}/{info.name}"]
    if "env_id" in info.raw:
        return [f"maniskill/{info.name}"]
    if kind == _ROBOSUITE:
        people = [f"robomimic/{ours}" for ours, theirs in ROBOMIMIC.items() if theirs == info.name]
        return [*people, f"robosuite/{info.name}"]
    return [f"maniskill/{info.name}", f"gym/{info.name}"] if kind == _GYM else []


def installed_version(name: str) -> str:
    """Version of the simulator of the environment `name` that is installed; empty where none is, or it has none."""
    task = find_task(name)
    package = suites()[task.suite].package
    if not package or find_spec(package) is None:
        return str(task.module.version()) if task.suite == "toy" else ""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
