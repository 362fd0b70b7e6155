"""RoboMimic's and ManiSkill's files as they are stored, episode by episode, to be converted; see `difftop.data.exchange`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from difftop.data import maniskill, robomimic
from difftop.data.exchange import RawEpisode
from difftop.data.faults import Array, Faults
from difftop.data.hdf5 import open_hdf5
from difftop.data.robosuite import text


class RobomimicReader:
    """A RoboMimic file; see `difftop.data.exchange.Reader`."""

    notes: tuple[str, ...] = ()

    def __init__(self, path: Path) -> None:
        """Raises `DemonstrationError`."""
        self.path = path
        with open_hdf5(path) as file:
            self.env = robomimic.read_env(path, file)
            self.names = robomimic.all_names(path, file["data"], Faults(path))
            self.filters = self._filters(file)
        self.count, self.rate_hz = len(self.names), float(self.env.kwargs.get("control_freq") or 20.0)

    def _filters(self, file: Any) -> Mapping[str, list[int]]:
        found: dict[str, list[int]] = {}
        for key, members in file.get("mask", {}).items():
            names = [text(name) for name in members[()]]
            found[key] = [self.names.index(name) for name in names if name in self.names]
        return found

    def episodes(self, start: int = 0) -> Iterator[RawEpisode]:
        """See `difftop.data.exchange.Reader`."""
        for name in self.names[start:]:
            with open_hdf5(self.path) as file:
                group = file["data"][name]
                obs = _datasets(group.get("obs", {}))
                after = _datasets(group.get("next_obs", {}))
                rewards = group["rewards"][()] if "rewards" in group else None
                solved = True if rewards is not None and len(rewards) and np.max(rewards) > 0 else None  # zeros may be no rewards
                yield RawEpisode(
                    name,
                    group["actions"][()],
                    obs,
                    last_obs={key: rows[-1] for key, rows in after.items() if key in obs},
                    rewards=rewards,
                    success=solved,
                    task=self.env.name,
                    states=group["states"][()] if "states" in group else None,
                    attributes={key: text(value) for key, value in group.attrs.items() if key in ("model_file", "ep_meta")},
                )


class ManiSkillReader:
    """A ManiSkill file; see `difftop.data.exchange.Reader`."""

    notes: tuple[str, ...] = ()

    def __init__(self, path: Path) -> None:
        """Raises `DemonstrationError`."""
        self.path, self.filters = path, dict[str, list[int]]()
        self.env, described = maniskill.read_metadata(path.with_suffix(".json"))
        self.described = sorted(described, key=lambda episode: int(episode["episode_id"]))
        self.count, self.rate_hz = len(self.described), float(self.env.kwargs.get("control_freq") or 20.0)

    def episodes(self, start: int = 0) -> Iterator[RawEpisode]:
        """See `difftop.data.exchange.Reader`."""
        for episode in self.described[start:]:
            with open_hdf5(self.path) as file:
                source = maniskill.source_of(self.path, file, episode)
                rows = {key: file[name][()] for key, name in source.obs.items()}
                group = file[source.name]
                yield RawEpisode(
                    source.name,
                    group["actions"][()],
                    {key: values[:-1] for key, values in rows.items()},
                    last_obs={key: values[-1] for key, values in rows.items()},
                    rewards=group["rewards"][()] if "rewards" in group else None,
                    success=maniskill.succeeded(episode),
                    task=self.env.name,
                )


def _datasets(group: Any) -> dict[str, Array]:
    return {key: values[()] for key, values in group.items() if isinstance(values, h5py.Dataset)}
