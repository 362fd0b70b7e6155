"""A survey in numbers: lengths, actions, idle steps, and what a run would use of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from difftop.data.survey import Survey
from difftop.datasets.entries import ActionSummary, summarize_actions

_HELD_OUT = 0.1  # run.valid_fraction's default


@dataclass(frozen=True)
class Summary:
    """What `mode=data` tells of a data set.

    Attributes:
        survey: what it is made from.
        actions: one for each entry of the action.
        idle: share of the steps in which nothing but the gripper is commanded, or, of absolute actions, changes; NaN if unknown.
        used, held_out: episodes that a run without options trains on, and holds out.
        command: that trains on it, or converts it.
        warnings: sentences.
    """

    survey: Survey
    actions: Sequence[ActionSummary]
    idle: float
    used: int
    held_out: int
    command: str
    warnings: Sequence[str] = field(default_factory=tuple)

    @property
    def steps(self) -> int:
        """Of all episodes."""
        return int(self.survey.lengths.sum())

    def plain(self) -> dict[str, Any]:
        """As JSON types."""
        survey, lengths = self.survey, self.survey.lengths
        successes, rewards = survey.successes, survey.rewards
        return {
            "path": str(survey.path),
            "format": survey.format,
            "environment": survey.env.name,
            "environment_version": survey.env.version,
            "environment_kwargs": dict(survey.env.kwargs),
            "episodes": len(survey.names),
            "steps": self.steps,
            "lengths": {"min": int(lengths.min()), "median": float(np.median(lengths)), "max": int(lengths.max())},
            "rate_hz": survey.rate_hz,
            "observations": {
                key: {"shape": list(c.shape), "dtype": c.dtype, "kind": c.kind} for key, c in survey.columns.items()
            },
            "successes": None if successes is None else int((successes == 1).sum()),
            "successes_unknown": None if successes is None else int((successes < 0).sum()),
            "rewards": None if rewards is None else {"mean": float(np.nanmean(rewards)), "max": float(np.nanmax(rewards))},
            "filters": dict(survey.filters),
            "actions": [vars(action) for action in self.actions],
            "idle_share": None if np.isnan(self.idle) else self.idle,
            "faults": {kind: list(names) for kind, names in survey.faults.items()},
            "used": self.used,
            "held_out": self.held_out,
            "notes": list(survey.notes),
            "warnings": list(self.warnings),
            "command": self.command,
        }


def summarize(survey: Survey, env: str, installed: str) -> Summary:
    """A survey in numbers.

    Args:
        survey: of the data set.
        env: our name of its environment; `data/NAME` where there is no simulator.
        installed: version of that simulator here, empty where it isn't installed.
    """
    actions, idle = summarize_actions(survey.actions)
    whole = _whole(survey)
    held = min(round(_HELD_OUT * whole), max(whole - 1, 0))
    warnings = list(_warnings(survey, actions, idle, env, installed))
    return Summary(survey, actions, idle, whole - held, held, _command(survey, env, installed), tuple(warnings))


def _whole(survey: Survey) -> int:
    """Episodes that a run without options uses: none of those with faults, which stop it, nor of those that failed."""
    left_out = {name for names in survey.faults.values() for name in names}
    if survey.successes is not None and survey.format == "maniskill":
        left_out |= {name for name, solved in zip(survey.names, survey.successes, strict=True) if solved == 0}
    return len(survey.names) - len(left_out)


def _warnings(survey: Survey, actions: Sequence[ActionSummary], idle: float, env: str, installed: str) -> Sequence[str]:
    found = []
    if survey.faults and not survey.raw:
        counted = ", ".join(f"{kind} in {len(names)}" for kind, names in survey.faults.items())
        found.append(f"{counted} of {len(survey.names)} episodes: dataset.bad=skip leaves them out, dataset.bad=clip mends them")
    if idle > 0.5:
        found.append(f"{idle:.0%} of the steps are idle: a policy that imitates them mostly waits")
    failed = 0 if survey.successes is None else int((survey.successes == 0).sum())
    if failed and survey.format == "maniskill":
        found.append(f"{failed} failed episodes are left out (dataset.successful_only=false takes them)")
    elif failed:
        found.append(f"{failed} episodes end without a reward; they are trained on like the others")
    recorded = survey.env.version
    if installed and not survey.env.same_version(installed):
        found.append(
            f"recorded with version {recorded or '(unknown)'} of its simulator, {installed} is installed here: it can be trained "
            "on, and evaluation needs the recorded version, or mode=convert playback=true"
        )
    if env.startswith("data/"):
        found.append("no simulator of it is known here: policies are trained on it, and not evaluated")
    if any(action.kind == "constant" for action in actions):
        which = [str(i) for i, action in enumerate(actions) if action.kind == "constant"]
        found.append(f"entries {', '.join(which)} of the action never change")
    return found


def _command(survey: Survey, env: str, installed: str) -> str:
    path = str(survey.path)
    if survey.raw:
        return f"difftop mode=convert dataset={path} out={survey.path.with_name(survey.path.stem + '-obs.hdf5')}"
    vectors = [key for key, column in survey.columns.items() if column.kind == "vector"]
    obs = "" if vectors else " obs=image"
    bad = "".join(f" {option}" for option in survey.options) + " dataset.bad=skip" * bool(survey.faults)
    off = " run.select_episodes=0 run.eval_episodes=0" if not installed and not env.startswith("data/") else ""
    return f"difftop agent=leto env={env} dataset={path}{obs}{bad}{off}"


def shares(summary: Summary) -> Mapping[str, float]:
    """Of the action's entries that move: at their limits and beyond them, over all steps."""
    moving = [action for action in summary.actions if action.kind == "motion"] or list(summary.actions)
    return {
        "at the limits": max((action.at_limit for action in moving), default=0.0),
        "beyond them": max((action.beyond for action in summary.actions), default=0.0),
    }
