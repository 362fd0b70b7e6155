"""Options of `mode=compare` and `mode=status`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from difftop.options import build, option

_LISTS = ("runs", "references", "tasks", "methods", "frames", "returns", "agents", "seeds")
_COUNTS = {"frames", "seeds"}


@dataclass(frozen=True)
class CompareConfig:
    """What is compared, where, and how carefully."""

    runs: list[str] = option([], "run folders, folders above them, tidy tables of studies, or step,reward,seed tables")
    references: list[str] = option([], "published curves: tidy tables, or folders of <method>/<task>.csv")
    out: str = option("comparison", "folder that gets report.html, report.md, scores.csv and pictures/")
    title: str = option("Comparison", "of the report")
    frames: list[int] = option([], "environment frames to compare at; empty: the most that every curve of ours reaches", low=1)
    returns: list[float] = option([0.5, 0.9], "returns to reach, as shares of the task's scale", above=0)
    scale: float = option(0.0, "return that counts as 1; 0: 1000 on dm_control, else the best published curve's best", low=0)
    tasks: list[str] = option([], "only these tasks; empty: all")
    methods: list[str] = option([], "only these methods, as the report names them; empty: all")
    min_coverage: float = option(
        0.5, "a seed shorter than this share of its curve's longest, and than frames, is left out, and said", low=0, high=1
    )
    max_gap: float = option(
        0.25, "evaluations farther apart than this share of the frames aren't interpolated for a score", low=0
    )
    resamples: int = option(2000, "bootstrap samples", low=100)
    seed: int = option(0, "of the bootstrap", low=0)


@dataclass(frozen=True)
class StatusConfig:
    """Which sweep is looked at."""

    root: str = option("runs", "folder of all runs")
    tasks: list[str] = option([], "tasks the sweep should have (dmc/cup-catch); empty: those found")
    agents: list[str] = option([], "agents it should have, AGENT or AGENT/NAME; empty: those found")
    seeds: list[int] = option([], "seeds it should have; empty: those found", low=0)
    minutes: float = option(30.0, "an unfinished run that wrote nothing for so long counts as stopped", above=0)


def compare_config(values: Mapping[str, Any]) -> CompareConfig:
    """`CompareConfig` of plain values, where a single value may stand for a list of one; raises `ConfigError`."""
    return build(CompareConfig, _listed(values))


def status_config(values: Mapping[str, Any]) -> StatusConfig:
    """`StatusConfig` of plain values, where a single value may stand for a list of one; raises `ConfigError`."""
    return build(StatusConfig, _listed(values))


def _listed(values: Mapping[str, Any]) -> dict[str, Any]:
    lists = {key: value if isinstance(value, list | tuple) else [value] for key, value in values.items() if key in _LISTS}
    whole = {
        key: [int(v) if isinstance(v, float) and v.is_integer() else v for v in lists[key]] for key in _COUNTS & lists.keys()
    }
    return dict(values) | lists | whole
