"""HDF5 data sets written episode by episode, so that a conversion that was stopped goes on.

An episode is a file of its own in `<out>.parts/` until all are there: HDF5 files that a process died over can't be opened again.
At the end they are joined beside the result, which appears under its name only when it is whole.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from difftop.data.demonstrations import DemonstrationError
from difftop.data.exchange import RawEpisode
from difftop.data.hdf5 import ensure_room, new_hdf5
from difftop.data.robomimic import Recording, write_episode
from difftop.types import DEPTH


class Parts:
    """Writes one data set; `add` every episode, then `finish`.

    Args:
        out: the file.
    """

    def __init__(self, out: Path) -> None:
        self.out, self.folder = out, out.with_name(f"{out.name}.parts")
        self.folder.mkdir(parents=True, exist_ok=True)

    @property
    def count(self) -> int:
        """Episodes that are written."""
        number = 0
        while self._part(number).is_file():
            number += 1
        return number

    def add(self, episode: RawEpisode) -> None:
        """Writes one episode."""
        path = self._part(self.count)
        partial = path.with_suffix(".part")
        with new_hdf5(partial) as file:
            ensure_room(partial, episode.actions.nbytes + 2 * sum(rows.nbytes for rows in episode.obs.values()))
            self._write(file.create_group("episode"), episode)
        partial.replace(path)

    def finish(self, env_args: Mapping[str, Any] | None, filters: Mapping[str, Sequence[int]]) -> None:
        """Joins the episodes."""
        partial, count = self.out.with_name(f"{self.out.name}.{os.getpid()}.part"), self.count
        if not count:
            raise DemonstrationError(f"{self.out}: there is no episode to write.")
        try:
            with new_hdf5(partial, sealed=True) as file:
                ensure_room(partial, sum(self._part(number).stat().st_size for number in range(count)))
                for number in range(count):
                    with h5py.File(self._part(number), "r") as part:
                        file.copy(part["episode"], self._name(number))
                self._end(file, count, dict(env_args or {}), filters)
            partial.replace(self.out)
        finally:
            partial.unlink(missing_ok=True)
        shutil.rmtree(self.folder)

    def _part(self, number: int) -> Path:
        return self.folder / f"{number}.hdf5"

    def _name(self, number: int) -> str:
        raise NotImplementedError

    def _write(self, group: Any, episode: RawEpisode) -> None:
        raise NotImplementedError

    def _end(self, file: Any, count: int, env_args: dict[str, Any], filters: Mapping[str, Sequence[int]]) -> None:
        raise NotImplementedError


class RobomimicParts(Parts):
    """RoboMimic's layout; `next_obs` is written where the observation after the last action is known."""

    def _name(self, number: int) -> str:
        return f"data/demo_{number}"

    def _write(self, group: Any, episode: RawEpisode) -> None:
        steps = len(episode.actions)
        rewards = episode.rewards
        if rewards is None:
            rewards = (np.arange(steps) == steps - 1) * float(bool(episode.success))
        recording = Recording(
            episode.obs, episode.actions, rewards, states=episode.states, attributes=episode.attributes, last_obs=episode.last_obs
        )
        write_episode(group, recording, f"{self.out}: {episode.name}")
        if episode.success is not None:
            group.attrs["success"] = int(episode.success)

    def _end(self, file: Any, count: int, env_args: dict[str, Any], filters: Mapping[str, Sequence[int]]) -> None:
        data = file["data"]
        env_args = {"env_name": "", "type": 2, "env_version": None, "env_kwargs": {}} | env_args
        data.attrs["env_args"] = json.dumps(env_args, indent=4)
        data.attrs["total"] = sum(int(data[f"demo_{number}"].attrs["num_samples"]) for number in range(count))
        told = {k: data[f"demo_{k}"].attrs["success"] for k in range(count) if "success" in data[f"demo_{k}"].attrs}
        judged = {"success": [k for k, solved in told.items() if solved]} if len(told) == count else {}
        for name, members in {**judged, **filters}.items():
            file[f"mask/{name}"] = np.array([f"demo_{k}".encode() for k in members if k < count], dtype="S")


class ManiSkillParts(Parts):
    """ManiSkill's layout, its .json beside it; where what follows the last action isn't known, the last row stands for it."""

    def _name(self, number: int) -> str:
        return f"traj_{number}"

    def _write(self, group: Any, episode: RawEpisode) -> None:
        steps = len(episode.actions)
        flat = list(episode.obs) == ["state"]
        for key, rows in episode.obs.items():
            last = np.asarray(episode.last_obs.get(key, rows[-1]))[None]
            image = rows.ndim == 4 and not key.endswith(DEPTH)  # whose millimetres would round ours
            name = "obs" if flat else f"obs/sensor_data/{key.removesuffix('_image')}/rgb" if image else f"obs/{key}"
            group.create_dataset(name, data=np.concatenate([rows, last]))
        ends = np.arange(steps) == steps - 1
        group["actions"], group["truncated"] = episode.actions, ends
        group["terminated"] = np.zeros(steps, bool)
        if episode.rewards is not None:
            group["rewards"] = np.asarray(episode.rewards)
        if episode.success is not None:
            group["success"] = ends & bool(episode.success)
            group.attrs["success"] = bool(episode.success)

    def _end(self, file: Any, count: int, env_args: dict[str, Any], filters: Mapping[str, Sequence[int]]) -> None:
        episodes = []
        for number in range(count):
            group = file[f"traj_{number}"]
            told = {"success": bool(group.attrs["success"])} if "success" in group.attrs else {}
            episodes.append({"episode_id": number, "elapsed_steps": len(group["actions"]), **told})
        kwargs = dict(env_args.get("env_kwargs", {}))
        info = {"env_id": str(env_args.get("env_name", "")), "env_kwargs": kwargs, "env_version": env_args.get("env_version")}
        kept = {key: value for key, value in env_args.items() if key not in ("env_name", "env_kwargs", "env_version")}
        described = {"env_info": {**kept, **info}, "episodes": episodes}
        self.out.with_suffix(".json").write_text(json.dumps(described, indent=2) + "\n")
