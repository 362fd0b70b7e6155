"""Folders of runs and tables for the tests of the comparison."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from difftop.run.logger import RunLogger

RUN = {"frames": 200, "seed_steps": 0, "updates_per_step": 1.0, "num_envs": 1, "eval_episodes": 2}


def make_run(
    root: Path,
    *,
    task: str = "dmc-walker-walk",
    agent: str = "tdmpc",
    name: str = "default",
    seed: int = 1,
    frames: Sequence[int] = (0, 100, 200),
    scale: float = 1.0,
    repeat: int = 2,
    config: dict[str, Any] | None = None,
) -> Path:
    """A run folder whose return is scale times frames."""
    folder = root / task / agent / name / f"seed{seed}"
    logger = RunLogger(folder, seed=seed, tensorboard=False)
    for f in frames:
        where: dict[str, Any] = {"env_frames": f, "agent_steps": f // repeat, "wall_s": f / 10}
        logger.training(**where, episode_return=scale * f * 0.9, metrics={"loss": 1.0})
        logger.evaluation(**where, return_mean=scale * f, return_std=5.0, success_mean=None, episodes=2)
    logger.close()
    env, _, bare = task.partition("-")
    plain = {"top": {"seed": seed}, "run": RUN | (config or {}), "env": {"name": f"{env}/{bare}"}, "agent": {"name": agent}}
    (folder / "config.json").write_text(json.dumps(plain))
    return folder


def table(path: Path, text: str | bytes) -> Path:
    """A file with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def curve_table(path: Path, seeds: dict[int, Sequence[tuple[float, float]]]) -> Path:
    """A `step,reward,seed` table."""
    rows = [f"{step:g},{value:g},{seed}" for seed, points in seeds.items() for step, value in points]
    return table(path, "\n".join(["step,reward,seed", *rows]) + "\n")
