"""Demonstration files of every format: the registry, and the two questions that are asked of a file.

A format is one module with a `difftop.data.demonstrations.Format`, and one entry here; in a package of its own, it is one entry
point of the group `difftop.datasets`, as docs/extend.md shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from difftop.data import lerobot, maniskill, robomimic, robosuite, zarr
from difftop.data.demonstrations import DemonstrationError, Demonstrations, EnvInfo, Format
from difftop.data.seal import check_seal
from difftop.data.survey import Survey, survey_of
from difftop.entry_points import Extended

FORMATS: Extended[Format] = Extended(
    {
        "maniskill": maniskill.FORMAT,
        "robosuite": robosuite.FORMAT,
        "robomimic": robomimic.FORMAT,
        "lerobot": lerobot.FORMAT,
        "zarr": zarr.FORMAT,
    },
    "difftop.datasets",
)


def format_of(path: Path) -> Format:
    """The first format that matches.

    Raises:
        DemonstrationError: no such file, no format knows it (the message says which there are), or an entry is no format.
    """
    if not path.exists():
        raise DemonstrationError(f"{path}: no such file or folder.")
    _check_seal(path)
    known = []
    for name, made in FORMATS.items():  # packages of others are imported only if none of ours matches
        if not isinstance(made, Format):
            raise DemonstrationError(f"format {name}: it is {made!r}; it must be a difftop.data.demonstrations.Format.")
        if made.matches(path):
            return made
        known.append(f"{name} ({made.layout})")
    if path.is_dir() and (inside := sorted(f.name for f in path.iterdir() if f.suffix in (".hdf5", ".h5"))):
        more = ", ..." if len(inside) > 3 else ""
        raise DemonstrationError(f"{path}: a folder of files, {', '.join(inside[:3])}{more}; name them, dataset=[A,B].")
    kind = "folder" if path.is_dir() else "file"
    raise DemonstrationError(f"{path}: no format knows this {kind}; there are {', '.join(known)}.")


def _check_seal(path: Path) -> None:
    """Before a library looks into a damaged file, which it may not survive."""
    with suppress(OSError):  # opening it says what is wrong
        if path.is_file():
            check_seal(path)


def survey(path: Path | str) -> Survey:
    """What is in a data set; no image is read. Raises `DemonstrationError`."""
    path = Path(path)
    made = format_of(path)
    if made.survey is not None:
        found: Survey = made.survey(path)
        return found
    name = next(name for name, known in FORMATS.items() if known is made)
    return survey_of(name, open_demonstrations(path, bad="skip"))


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
    action_key: str = "actions",
    boxed: bool = True,
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
        action_key, boxed: name of the actions, and whether they must be in [-1, 1], where a format has several.
    Raises:
        DemonstrationError: the first thing that is wrong with the file.
    """
    path = Path(path)
    made = format_of(path)
    more = {} if action_key == "actions" and boxed else {"action_key": action_key, "boxed": boxed}
    if more and not made.units:
        raise DemonstrationError(
            f"{path}: its actions can't be taken as absolute poses or by another name ({made.layout}); leave dataset.actions and "
            "dataset.poses out, or convert it to RoboMimic's layout."
        )
    return made.open(
        path,
        obs_keys=obs_keys,
        filter_key=filter_key,
        limit=limit,
        cache_bytes=cache_bytes,
        successful_only=successful_only,
        bad=bad,
        **more,
    )
