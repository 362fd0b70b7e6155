"""What an evaluation of an imitation policy leaves: a table of episodes, a summary, a video and a picture of one episode."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from difftop.metrics import trajectory_metrics
from difftop.poses import LEARNED
from difftop.run.episodes import write_episodes
from difftop.run.protocols import PROTOCOLS
from difftop.run.rollouts import Rollouts
from difftop.run.session import save_video
from difftop.types import EnvSpec
from difftop.written import write_whole


def action_groups(action_dim: int, free: Sequence[int], poses: int = 0) -> Mapping[str, Sequence[int]]:
    """Which actions count as translation and which as rotation, in the suites' usual layouts.

    Args:
        action_dim: 7 and 14: one or two arms of 3 translations, 3 rotations and a gripper; 4: 3 translations and a gripper;
            else all that aren't free, as translations.
        free: actions that don't count (grippers).
        poses: arms whose learned poses actions are; their positions count.
    """
    if poses:
        return {"lin": [a + i for a in range(0, action_dim, LEARNED) for i in range(3)]}
    if action_dim in (7, 14):
        arms = range(0, action_dim, 7)
        return {"lin": [a + i for a in arms for i in range(3)], "rot": [a + i for a in arms for i in range(3, 6)]}
    if action_dim == 4:
        return {"lin": [0, 1, 2]}
    return {"lin": [i for i in range(action_dim) if i not in free] or list(range(action_dim))}


def write_report(
    folder: Path, rollouts: Rollouts, policy: Any, spec: EnvSpec, protocol: str, step: int, head: str | None
) -> list[str]:
    """Writes episodes.csv, summary.json, episode0.mp4 and actions.png.

    Args:
        folder: where.
        rollouts: the episodes.
        policy: whose `limits` (None for a policy without any) the trajectories are compared with.
        spec: of the task.
        protocol: its name.
        step: gradient steps of the checkpoint.
        head: that acted in place of the trained one, None for that.
    Returns:
        lines to say.
    """
    from difftop.plot_trajectory import plot_actions

    limits = None if spec.poses else getattr(policy, "limits", None)  # of displacements
    chosen = list(range(spec.action_dim)) if limits is None else list(limits.selected)
    groups = action_groups(spec.action_dim, [i for i in range(spec.action_dim) if i not in chosen], spec.poses)
    folder.mkdir(parents=True, exist_ok=True)
    positions = _positions(rollouts, policy, limits)
    forces = rollouts.padded("forces_n") if all(episode.forces_n for episode in rollouts.episodes) else None
    actions = rollouts.padded("actions")
    metrics = trajectory_metrics(
        np.diff(actions, axis=1, prepend=actions[:, :1]) if spec.poses else actions,  # how far each goal is from the last
        rollouts.success_steps,
        groups=groups,
        limits=limits if positions is not None or limits is None or limits.position_matrix is None else None,
        positions=positions,
        forces=forces,
        lengths=rollouts.lengths,
    )
    if positions is not None:
        metrics = in_metres(metrics, policy.config.limits.metres_per_action)
    ended = {"success_end": rollouts.success_end, "return_mean": rollouts.return_mean, "return_std": rollouts.return_std}
    metrics |= ended | {"reward_max": rollouts.reward_max, "episodes": len(rollouts.episodes)} | rollouts.metrics
    if not rollouts.judged:  # a number would read as failure
        metrics = {key: value for key, value in metrics.items() if "success" not in key}
    text = f"{protocol}: {PROTOCOLS[protocol].text}; played: {len(rollouts.episodes)} episodes of {spec.episode_steps} actions"
    summary = {"task": spec.name, "protocol": text, "grad_steps": step, "head": head or getattr(policy.config, "head", "none")}
    plot_actions(
        folder / "actions.png", np.asarray(rollouts.episodes[0].actions), limits, spec, rollouts.episodes[0].success_step
    )
    if rollouts.frames:
        save_video(folder / "episode0.mp4", rollouts.frames, spec)
    write_episodes(folder / "episodes.csv", rollouts, chosen)
    # The last, because it says that the report is whole: a run that is killed before it writes everything again.
    write_whole(folder / "summary.json", json.dumps(summary | {"metrics": metrics}, indent=2) + "\n")
    return _lines(metrics, groups, text, folder)


def in_metres(metrics: Mapping[str, float], metres_per_action: float) -> dict[str, float]:
    """The metrics with the excess over position limits in m, which is counted in actions of `metres_per_action`."""
    scale = {key: metres_per_action for key in metrics if key.startswith("excess_position")}
    return {key: value * scale.get(key, 1) for key, value in metrics.items()}


def _positions(rollouts: Rollouts, policy: Any, limits: Any) -> np.ndarray[Any, Any] | None:
    """Measured positions of the limited actions `[N, T, c]` in the unit of the limits; None where none are limited."""
    if limits is None or limits.position_matrix is None:
        return None
    import torch

    key = policy.config.limits.position_key
    kept = rollouts.padded("positions")
    n, t = kept.shape[:2]
    flat = torch.from_numpy(kept.reshape(n * t, -1))
    found = policy.config.limits.positions({key: flat}, limits)
    return np.asarray(found.reshape(n, t, -1).numpy())


def _lines(metrics: Mapping[str, float], groups: Mapping[str, Sequence[int]], protocol: str, folder: Path) -> list[str]:
    """Success with its interval, and the rows of LeTO's tables II and III (and V)."""
    n = int(metrics["episodes"])
    judged, returned = "success" in metrics, f"return {metrics['return_mean']:.1f} +- {metrics['return_std']:.1f}"
    returned += f", largest reward of an episode {metrics['reward_max']:.3f}"
    solved = f"{returned} over {n} episodes; the environment doesn't say what success is"
    if judged:
        solved = (
            f"success {metrics['success']:.1%} of {n} episodes, 95 % Wilson interval {metrics['success_low']:.1%} to "
            f"{metrics['success_high']:.1%}; at the end {metrics['success_end']:.1%}; {returned}"
        )
    columns = " ".join(f"{name:>8s}" for name in ("mean", "max", "std"))
    lines = [f"protocol {protocol}", solved, f"{'acceleration, 1e-2':22s} {columns}" + f"   to success: {columns}" * judged]
    for group in groups:
        suffixes = ("", "_to_success") if judged else ("",)
        cells = [
            " ".join(f"{100 * metrics[f'acc_{name}_{group}{end}']:8.2f}" for name in ("mean", "max", "std")) for end in suffixes
        ]
        lines.append(f"  {group:20s} " + (" " * 15).join(cells))
    kinds = [
        key.removeprefix("violations_") for key in metrics if key.startswith("violations_") and not key.endswith("_to_success")
    ]
    if kinds:
        units = {"position": " m"}
        counts = [f"{kind} {metrics[f'violations_{kind}']:.0f}" for kind in kinds]
        worst = [f"(worst {metrics[f'excess_{kind}']:.2g}{units.get(kind, '')})" for kind in kinds]
        found = ", ".join(f"{count} {most}" for count, most in zip(counts, worst, strict=True))
        lines.append(f"steps outside the limits: {found}")
    if "contact_peak" in metrics:
        lines.append(f"contact force: mean of maxima {metrics['contact_avg_max']:.1f} N, peak {metrics['contact_peak']:.1f} N")
    return [*lines, f"episodes, summary, video and picture: {folder}"]
