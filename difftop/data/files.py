"""Demonstration files of every format: the registry, and the two questions that are asked of a file.

A format is one module with a `difftop.data.demonstrations.Format`, and one entry here; in a package of its own, it is one entry
point of the group `difftop.datasets`, as docs/extend.md shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from difftop.data import maniskill, robomimic
from difftop.data.demonstrations import DemonstrationError, Demonstrations, EnvInfo, Format
from difftop.entry_points import Extended

FORMATS: Extended[Format] = Extended({"maniskill": maniskill.FORMAT, "robomimic": robomimic.FORMAT}, "difftop.datasets")


def format_of(path: Path) -> Format:
    """The first format that matches.

    Raises:
        DemonstrationError: no such file, no format knows it (the message says which there are), or an entry is no format.
    """
    if not path.exists():
        raise DemonstrationError(f"{path}: no such file or folder.")
    known = []
    for name, made in FORMATS.items():  # packages of others are imported only if none of ours matches
        if not isinstance(made, Format):
            raise DemonstrationError(f"format {name}: it is {made!r}; it must be a difftop.data.demonstrations.Format.")
        if made.matches(path):
            return made
        known.append(f"{name} ({made.layout})")
    raise DemonstrationError(f"{path}: no format knows this file; there are {', '.join(known)}.")


def recorded_env(path: Path | str) -> EnvInfo:
    """The environment that a file was recorded in; raises `DemonstrationError`."""
    path = Path(path)
    return format_of(path).recorded_env(path)


def open_demonstrations(
    path: Path | str,
    *,
    obs_keys: Sequence[str] | None = None,
    filter_key: str = "",
    limit: int = 0,
    cache_bytes: int = 2**31,
    successful_only: bool = True,
    bad: str = "stop",
) -> Demonstrations:
    """Opens, checks and loads a file.

    Args:
        path: of the file.
        obs_keys: observations to use, in this order; None for the format's usual ones.
        filter_key: use only the demonstrations of this filter, where the format has filters; empty for all.
        limit: use the first so many; 0 for all.
        cache_bytes: memory for images.
        successful_only: leave out episodes that the file calls failed, where the format says so.
        bad: what is done about faults: stop, skip, or clip; see `difftop.data.faults`.
    Raises:
        DemonstrationError: the first thing that is wrong with the file.
    """
    path = Path(path)
    return format_of(path).open(
        path,
        obs_keys=obs_keys,
        filter_key=filter_key,
        limit=limit,
        cache_bytes=cache_bytes,
        successful_only=successful_only,
        bad=bad,
    )
