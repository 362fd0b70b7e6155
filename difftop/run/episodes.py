"""The table of an evaluation's episodes, of any agent."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from difftop.metrics import accelerations
from difftop.run.rollouts import RolloutEpisode, Rollouts
from difftop.written import write_whole

EPISODE_COLUMNS = ("episode", "env_seed", "success", "success_end", "success_step", "steps", "return")
QUALITY_COLUMNS = ("acc_mean", "acc_std", "acc_max", "contact_max_n")


def write_episodes(path: Path, rollouts: Rollouts, dims: Sequence[int]) -> None:
    """One row per episode: how it ended, and mean, standard deviation and maximum of |acceleration| over the actions `dims`.

    Cells that the environment doesn't fill are empty: success where it isn't judged, forces where they aren't measured.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow([*EPISODE_COLUMNS, *QUALITY_COLUMNS])
    for number, episode in enumerate(rollouts.episodes):
        writer.writerow([number, *_row(episode, dims)])
    write_whole(path, table.getvalue())


def _row(episode: RolloutEpisode, dims: Sequence[int]) -> list[int | str]:
    size = np.abs(accelerations(np.asarray(episode.actions)[None]))[0][:, list(dims)]
    quality = [size.mean(), size.std(axis=0).mean(), size.max(axis=0).mean()]
    judged = bool(episode.success)
    solved: list[int | str] = [int(episode.success_step >= 0), int(episode.success[-1])] if judged else ["", ""]
    force = f"{max(episode.forces_n):.6g}" if episode.forces_n else ""
    ended = [*solved, episode.success_step, len(episode.actions), f"{episode.total:.8g}"]
    return [episode.seed, *ended, *(f"{x:.8g}" for x in quality), force]
