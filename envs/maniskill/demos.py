"""ManiSkill demonstrations by its own motion planner.

Its solution of a task plans joint positions; `replay_trajectory`, also ManiSkill's, plays them in a second environment with the
wanted control mode and records the observations. Episodes that either of them fails are left out, and counted.
"""

from __future__ import annotations

import json
import logging
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from difftop.data.hdf5 import ensure_room, new_hdf5
from difftop.run.seeding import stream
from envs.config import EnvConfig
from envs.errors import EnvError
from envs.maniskill.observations import chosen_points
from envs.maniskill.package import version
from envs.maniskill.tasks import CONTROL, TASKS, obs_mode

log = logging.getLogger(__name__)

_CONTROLS = (CONTROL, "pd_ee_delta_pos", "pd_joint_delta_pos")  # that replay_trajectory converts to, normalized
_START_S, _EPISODE_S = 120.0, 60.0  # time limit of a process: to start, with cameras, and per episode
_MARGIN = 1.2  # attempts beyond those that the success rate so far lets expect
_LOWEST_RATE = 0.1  # of success; a task that stays below is given up
_BLOCK_ROWS = 16  # images are read in blocks of so many rows


@dataclass(frozen=True)
class DemonstrationReport:
    """What became of the attempts.

    Attributes:
        path: the .h5 file; its .json is beside it.
        episodes: in the file.
        attempts: initial states that the planner was given.
        planned: that it solved.
        converted: of those, solved again in the wanted control mode.
        seconds: that all of it took; 0 where the file was there already.
    """

    path: Path
    episodes: int
    attempts: int
    planned: int
    converted: int
    seconds: float


def make_demonstrations(task: str, episodes: int, out: Path | str, seed: int, config: EnvConfig) -> DemonstrationReport:
    """Writes `episodes` successful episodes in ManiSkill's layout; `difftop.data.maniskill.open_maniskill` reads them.

    Observations have the keys and shapes of the simulator that is loaded with the same `config`, all cameras included. Initial
    states are those of the seeds stream(seed, "demonstration", attempt).

    Args:
        task: one of `TASKS` with a planner.
        episodes: how many, at least 1.
        out: the .h5 file to write; one that the same arguments made is kept.
        seed: of the initial states.
        config: `obs`, `image_size`, `depth` and `control` (pd_ee_delta_pose, pd_ee_delta_pos or pd_joint_delta_pos) are used.
    Raises:
        EnvError: no planner for this task, another file is at `out`, package or driver are missing, a process failed, or the
            planner solves hardly any.
    """
    started, out, control = time.monotonic(), Path(out), config.control or CONTROL
    _check_request(task, episodes, control)
    request = {"task": task, "episodes": episodes, "seed": seed, "obs": config.obs, "control": control, "version": version()}
    request |= {} if config.obs in ("low_dim", "state") else {"image_size": config.image_size}
    request |= {"depth": True} if config.depth else {}
    if out.exists():
        return _kept(out, request)
    attempts = planned = converted = 0
    described: list[dict[str, Any]] = []
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f"{out.name}.{os.getpid()}.part")
    try:
        with new_hdf5(partial, sealed=True) as file:
            while len(described) < episodes:
                if attempts >= episodes / _LOWEST_RATE + 10:
                    raise EnvError(f"maniskill/{task}: {attempts} attempts gave only {len(described)} of {episodes} episodes.")
                rate = max(converted / attempts, _LOWEST_RATE) if attempts else 1.0
                count = math.ceil(_MARGIN * (episodes - len(described)) / rate)
                with tempfile.TemporaryDirectory() as folder:
                    seeds = [stream(seed, "demonstration", attempts + k) for k in range(count)]
                    solved = _plan(task, seeds, folder, config.image_size)
                    attempts, planned = attempts + count, planned + solved
                    if solved:
                        path = _convert(Path(folder), obs_mode(config), control, solved)
                        info = json.loads(path.with_suffix(".json").read_text())
                        converted += len(info["episodes"])
                        _append(file, described, path, info["episodes"], episodes)
        counts = {"attempts": attempts, "planned": planned, "converted": converted}
        _describe(out.with_suffix(".json"), info, described, request, counts)
        os.replace(partial, out)
    finally:
        partial.unlink(missing_ok=True)
    log.info("maniskill/%s: %d demonstrations; of %d attempts %d were planned, %d converted", task, episodes, *counts.values())
    return DemonstrationReport(out, episodes, **counts, seconds=time.monotonic() - started)


def _check_request(task: str, episodes: int, control: str) -> None:
    planners = [name for name, known in TASKS.items() if "expert" in known.gives]
    if task not in planners:
        raise EnvError(
            f"maniskill/{task}: ManiSkill has no motion planner for it, only for {', '.join(planners)}; give demonstrations of "
            "your own."
        )
    if episodes < 1:
        raise EnvError(f"maniskill/{task}: episodes={episodes} must be at least 1.")
    if control not in _CONTROLS:
        raise EnvError(f"maniskill/{task}: control={control!r} can't be converted to; take one of {', '.join(_CONTROLS)}.")
    if int(np.__version__.split(".")[0]) >= 2:
        raise EnvError(f"maniskill/{task}: mplib crashes with numpy {np.__version__}; run `pip install 'numpy<2'`.")


def _kept(out: Path, request: Mapping[str, Any]) -> DemonstrationReport:
    """The report of a file that is there already; raises where something else made it."""
    try:
        made = json.loads(out.with_suffix(".json").read_text())["made"]
    except (OSError, ValueError, KeyError):
        made = {"request": None}
    if made["request"] != dict(request):
        raise EnvError(f"{out}: this file was not made by the same arguments; delete it, or write to another name.")
    return DemonstrationReport(out, int(request["episodes"]), **made["counts"], seconds=0.0)


def _plan(task: str, seeds: list[int], folder: str, sensor_size: int) -> int:
    """Plans the episodes of `seeds` to `folder`; how many were solved."""
    arguments = {"task": task, "seeds": seeds, "folder": folder, "sensor_size": sensor_size}
    printed = _run(["envs.maniskill.planner", json.dumps(arguments)], folder, len(seeds))
    lines = [json.loads(line) for line in printed.splitlines() if line.startswith('{"seed"')]
    for line in lines:
        if line["reason"]:
            log.info("%s, seed %d: not planned (%s)", task, line["seed"], line["reason"])
    return sum(line["success"] for line in lines)


def _convert(folder: Path, shown: str, control: str, episodes: int) -> Path:
    """Plays the planned episodes in the wanted control mode; the new file."""
    options = ["-o", shown, "-c", control, "-b", "physx_cpu", "--save-traj"]
    module = "mani_skill.trajectory.replay_trajectory"
    _run([module, "--traj-path", str(folder / "planned.h5"), *options], str(folder), 2 * episodes)
    return folder / f"planned.{shown}.{control}.physx_cpu.h5"


def _run(module_and_arguments: list[str], folder: str, episodes: int) -> str:
    """Runs a Python module; what it printed.

    Raises:
        EnvError: it failed or took too long; with the last thing that it said.
    """
    here = str(Path(__file__).resolve().parents[2])
    paths = [here, *filter(None, [os.environ.get("PYTHONPATH")])]
    environ = os.environ | {"GIT_PYTHON_REFRESH": "quiet", "PYTHONPATH": os.pathsep.join(paths), "PYTHONWARNINGS": "ignore"}
    limit_s, name = _START_S + _EPISODE_S * episodes, module_and_arguments[0]
    try:
        done = subprocess.run(
            [sys.executable, "-m", *module_and_arguments],
            cwd=folder,
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=limit_s,
        )
    except subprocess.TimeoutExpired as error:
        raise EnvError(f"{name} was still at work after {limit_s:.0f} s, and was ended.") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise EnvError(f"{name} failed with exit code {done.returncode} ({last}).")
    return done.stdout


def _append(file: Any, described: list[dict[str, Any]], path: Path, episodes: list[dict[str, Any]], wanted: int) -> None:
    """Copies episodes to the end of `file` until it has as many as wanted, without what a policy has no use for."""
    ensure_room(Path(file.filename), path.stat().st_size)
    with h5py.File(path, "r") as source:
        for episode in episodes[: wanted - len(described)]:
            number = len(described)
            group = file.create_group(f"traj_{number}")
            old = source[f"traj_{episode['episode_id']}"]
            for name in set(old) - {"obs"}:
                old.copy(name, group)
            _copy_observations(old["obs"], group)
            described.append(episode | {"episode_id": number})


def _copy_observations(obs: Any, group: Any) -> None:
    if isinstance(obs, h5py.Dataset):
        group["obs"] = obs[()]
        return
    for name in set(obs) - {"sensor_param", "sensor_data", "pointcloud"}:
        obs.copy(name, group.require_group("obs"))
    if "pointcloud" in obs:
        clouds = np.stack([chosen_points(xyzw) for xyzw in obs["pointcloud/xyzw"]])
        group.create_dataset("obs/pointcloud", data=clouds, compression="gzip", compression_opts=1)
        return
    for camera, textures in obs.get("sensor_data", {}).items():
        for texture in [name for name in ("rgb", "depth") if name in textures]:
            images = textures[texture][()]
            chunks = (min(_BLOCK_ROWS, len(images)), *images.shape[1:])
            name = f"obs/sensor_data/{camera}/{texture}"
            group.create_dataset(name, data=images, chunks=chunks, compression="gzip", compression_opts=1)


def _describe(
    path: Path, info: dict[str, Any], episodes: list[dict[str, Any]], request: Mapping[str, Any], counts: Mapping[str, int]
) -> None:
    """Writes the .json: what `replay_trajectory` wrote, with all episodes, the package's version, and how the file was made."""
    info["env_info"]["env_version"] = version()
    info |= {"episodes": episodes, "made": {"request": dict(request), "counts": dict(counts)}}
    info.setdefault("source_type", "motionplanning")
    path.write_text(json.dumps(info, indent=1) + "\n")
