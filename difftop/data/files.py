"""Demonstration files of every format: the registry, and the two questions that are asked of a file.

A format is one module with a `difftop.data.demonstrations.Format`, and one entry in `FORMATS`; in a package of its own, it is one
entry point of the group `difftop.datasets`, as docs/extend.md shows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from difftop.data.demonstrations import DemonstrationError, Demonstrations, EnvInfo, Format

GROUP = "difftop.datasets"

FORMATS: Mapping[str, str] = {
    "maniskill": "difftop.data.maniskill:FORMAT",
    "robomimic": "difftop.data.robomimic:FORMAT",
}


def formats() -> Iterator[tuple[str, Format]]:
    """Name and format, those of this package first; the modules of others are imported only when one asks that far.

    Raises:
        DemonstrationError: a package's entry can't be imported, or is no `Format`.
    """
    own = [EntryPoint(name, where, GROUP) for name, where in FORMATS.items()]
    for entry in [*own, *sorted(entry_points(group=GROUP), key=lambda entry: entry.name)]:
        try:
            made = entry.load()
        except (ImportError, AttributeError) as error:
            raise DemonstrationError(
                f"format {entry.name}: {entry.value} can't be imported ({error}); repair or remove it."
            ) from error
        if not isinstance(made, Format):
            raise DemonstrationError(
                f"format {entry.name}: {entry.value} is a {type(made).__name__}; it must be a difftop.data.demonstrations.Format."
            )
        yield entry.name, made


def format_of(path: Path) -> Format:
    """The first format that matches.

    Raises:
        DemonstrationError: there is no such file, or no format knows it; the message says which there are.
    """
    if not path.exists():
        raise DemonstrationError(f"{path}: no such file.")
    known = []
    for name, made in formats():
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
) -> Demonstrations:
    """Opens, checks and loads a file.

    Args:
        path: of the file.
        obs_keys: observations to use, in this order; None for the format's usual ones.
        filter_key: use only the demonstrations of this filter, where the format has filters; empty for all.
        limit: use the first so many; 0 for all.
        cache_bytes: memory for images.
    Raises:
        DemonstrationError: the first thing that is wrong with the file.
    """
    path = Path(path)
    return format_of(path).open(path, obs_keys=obs_keys, filter_key=filter_key, limit=limit, cache_bytes=cache_bytes)
