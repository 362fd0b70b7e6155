"""Demonstration files of any layout that we read: RoboMimic's HDF5, or ManiSkill's .h5 beside its .json."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from difftop.data.demonstrations import DemonstrationError, Demonstrations, EnvInfo, open_hdf5
from difftop.data.maniskill import open_maniskill, read_metadata
from difftop.data.robomimic import open_robomimic, read_env


def is_maniskill(path: Path | str) -> bool:
    """Whether the file has a ManiSkill trajectory's .json beside it."""
    return Path(path).with_suffix(".json").is_file()


def recorded_env(path: Path | str) -> EnvInfo:
    """The environment that a file was recorded in; raises `DemonstrationError`."""
    path = Path(path)
    if is_maniskill(path):
        return read_metadata(path.with_suffix(".json"))[0]
    with open_hdf5(path) as file:
        return read_env(path, file)


def open_demonstrations(
    path: Path | str,
    *,
    obs_keys: Sequence[str] | None = None,
    filter_key: str = "",
    limit: int = 0,
    cache_bytes: int = 2**31,
) -> Demonstrations:
    """Opens, checks and loads a file.

    Args:
        path: of the file.
        obs_keys: observations to use, in this order; None for the reader's usual ones.
        filter_key: use only the demonstrations of this filter (RoboMimic's layout); empty for all.
        limit: use the first so many; 0 for all.
        cache_bytes: memory for images.
    Raises:
        DemonstrationError: the first thing that is wrong with the file.
    """
    path = Path(path)
    if is_maniskill(path):
        if filter_key:
            raise DemonstrationError(f"{path}: a ManiSkill file has no filters; leave run.filter_key={filter_key} out.")
        return open_maniskill(path, obs_keys=obs_keys, limit=limit or None, cache_bytes=cache_bytes)
    return open_robomimic(path, obs_keys=obs_keys, filter_key=filter_key or None, limit=limit or None, cache_bytes=cache_bytes)
