"""A picture of one episode: actions, velocities and accelerations against their limits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from difftop.metrics import accelerations
from difftop.plot import COLOURS
from difftop.types import EnvSpec

if TYPE_CHECKING:
    from difftop.qp.trajectory import TrajectoryLimits


def plot_actions(
    path: Path, actions: np.ndarray[Any, Any], limits: TrajectoryLimits | None, spec: EnvSpec, success_step: int = -1
) -> Path:
    """Draws an episode's commanded path (sums of actions), velocities (the actions) and accelerations (their changes).

    Args:
        path: the image.
        actions: `[T, A]`, executed.
        limits: drawn as shaded bounds; None draws none, and all actions.
        spec: of the task, for the time axis.
        success_step: marked if it isn't negative.
    """
    from matplotlib.figure import Figure

    chosen = list(range(actions.shape[1])) if limits is None else list(limits.selected)
    time_s = np.arange(len(actions)) * spec.control_dt_s
    rows = {
        "path [sum of actions]": np.cumsum(actions, axis=0),
        "velocity [action]": actions,
        "acceleration [action per step]": accelerations(actions[None])[0],
    }
    figure = Figure(figsize=(8, 6.4), dpi=120, layout="constrained")
    for axes, (title, values) in zip(figure.subplots(3, 1, sharex=True), rows.items(), strict=True):
        for number, i in enumerate(chosen):
            turn, hue = divmod(number, len(COLOURS))  # actions of two arms are more than there are colours
            style = ("-", "--", ":")[turn % 3]
            axes.plot(time_s, values[:, i], style, color=COLOURS[hue], linewidth=1.2, label=f"action {i}")
        kind = title.split()[0]
        if limits is not None and kind != "path" and chosen:
            for name in (f"{kind}_min", f"{kind}_max"):
                for bound in sorted(set(np.asarray(limits.vector(name), dtype=float).tolist())):
                    if np.isfinite(bound):
                        axes.axhline(bound, color="#888888", linestyle="--", linewidth=1)
        if success_step >= 0:
            axes.axvline(time_s[success_step], color="#009E73", linewidth=1, alpha=0.6)
        axes.set_ylabel(title, fontsize=8)
        axes.grid(alpha=0.2)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_title(
        f"{spec.name}: one episode" + (", solved at the green line" if success_step >= 0 else ""), fontsize=10
    )
    figure.legend(*figure.axes[0].get_legend_handles_labels(), frameon=False, fontsize=8, loc="outside right upper")
    figure.axes[-1].set_xlabel("time [s]")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path
