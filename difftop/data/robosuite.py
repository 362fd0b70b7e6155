"""Raw teleoperation of robosuite: states, actions and scenes, without observations; to be looked at and converted.

    data            attrs: env and env_info (JSON of the arguments), or env_args as RoboMimic has them; repository_version
    data/demo_<k>   attrs: model_file (MJCF, or the name of a file under models/); states [T, D], actions [T, A]

Source: robosuite 1.0 to 1.5, `collect_human_demonstrations.py`; robomimic's files before `dataset_states_to_obs.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from difftop.data.demonstrations import DemonstrationError, Demonstrations, EnvInfo, Format
from difftop.data.hdf5 import Source, is_hdf5, looked_into, open_hdf5
from difftop.data.survey import Survey, Surveyor
from difftop.data.survey_hdf5 import add_source

HAND = "robot0_eef_pos"  # the first arm's hand in the world, m
NEAR_M = 0.2  # a goal is ahead of the hand by 5 cm an axis at most, and an arm's base is farther away from where it works


def matches(path: Path) -> bool:
    """Whether it is an HDF5 file whose demonstrations have states and no observations."""
    if not is_hdf5(path):
        return False
    return bool(looked_into(path, _raw))


def _raw(file: Any) -> bool:
    data = file.get("data")
    demo = next(iter(data.values()), None) if isinstance(data, h5py.Group) else None
    return isinstance(demo, h5py.Group) and "states" in demo and "obs" not in demo


def recorded_env(path: Path) -> EnvInfo:
    """The environment that a file was recorded in; raises `DemonstrationError`."""
    with open_hdf5(path) as file:
        return read_env(path, file)


def read_env(path: Path, file: Any) -> EnvInfo:
    """As `recorded_env`, of an open file."""
    attributes = file["data"].attrs if "data" in file else {}
    version = attributes.get("repository_version")
    version = None if version is None else text(version)
    try:
        if "env_args" in attributes:
            raw = json.loads(text(attributes["env_args"]))
            kwargs = dict(raw["env_kwargs"])
            name = str(raw.get("env_name") or kwargs["env_name"])
            version = raw.get("env_version") or version
        else:
            kwargs = dict(json.loads(text(attributes["env_info"]))) if "env_info" in attributes else {}
            name = str(kwargs.get("env_name") or text(attributes["env"]))
    except (KeyError, TypeError, ValueError) as error:
        raise DemonstrationError(
            f"{path}: this is no robosuite file: data has neither env_args nor env and env_info, or they are no JSON ({error!r})."
        ) from error
    kwargs.pop("env_name", None)
    return EnvInfo(name, kwargs, version, {"env_name": name, "type": 1, "env_kwargs": kwargs, "env_version": version})


def open_raw(path: Path, **_: Any) -> Demonstrations:
    """Raises `DemonstrationError`: there is nothing to observe yet."""
    raise DemonstrationError(
        f"{path}: raw teleoperation, states and scenes without observations; make them first: mode=convert dataset={path} "
        f"out={path.with_name(path.stem + '-obs.hdf5')}"
    )


def demonstrations(path: Path, file: Any) -> list[str]:
    """Names of the demonstrations, in numeric order; robosuite 1.4 and older leave gaps, 0.3 other names."""
    names = [name for name in file["data"] if re.fullmatch(r"\w*?_?\d+", name) and isinstance(file["data"][name], h5py.Group)]
    if not names:
        raise DemonstrationError(f"{path}: it has no demonstrations; they must be called demo_0, demo_1, ...")
    return sorted(names, key=lambda name: int(re.sub(r"\D", "", name)))


def survey(path: Path) -> Survey:
    """See `difftop.data.survey`."""
    surveyor = Surveyor()
    with open_hdf5(path) as file:
        env = read_env(path, file)
        names = demonstrations(path, file)
        for name in names:
            source = Source(name, f"data/{name}/actions", {}, None, "")
            add_source(surveyor, file, source, more={"states": f"data/{name}/states"})
        filters = filter_sizes(file)
        scenes = {"inside" if "<" in text(file["data"][n].attrs.get("model_file", "")) else "beside" for n in names}
    where = "model files beside it" if scenes == {"beside"} else "model files inside it"
    note = f"raw teleoperation: {where}; observations are made from the states by mode=convert"
    return surveyor.survey(path, "robosuite", env, filters=filters, notes=(note,), raw=True)


def filter_sizes(file: Any) -> dict[str, int]:
    """Episodes by filter key."""
    masks: Sequence[tuple[str, Any]] = list(file.get("mask", {}).items())
    return {key: len(members) for key, members in masks if isinstance(members, h5py.Dataset) and members.shape}


def says_absolute(info: EnvInfo) -> bool:
    """Whether the controller of a file's environment takes absolute poses of hands; absolute angles of joints are none."""
    return bool(_absolute_parts(info))


def absolute_frame(info: EnvInfo) -> str:
    """The frame that absolute poses are in as the controllers say: `world`, `base`, or empty where they differ or take none.

    Where a controller doesn't say it, it is the world until robosuite 1.4, and since 1.5, which describes parts of the body, the
    arm's base.
    """
    default = "base" if any("body_parts" in part for part in _mappings(info.kwargs.get("controller_configs"))) else "world"
    frames = {str(part.get("input_ref_frame", default)) for part in _absolute_parts(info)}
    return frames.pop() if len(frames) == 1 else ""


def looks_absolute(group: Any) -> bool:
    """Whether a demonstration's actions are poses in the world, though nothing says so: the first arm's are where its hand was.

    Files of Diffusion Policy's conversion are so. Displacements are near 0, and no hand is near the world's origin.
    """
    actions, hand = (group.get(key) for key in ("actions", f"obs/{HAND}"))
    if any(not isinstance(x, h5py.Dataset) or x.ndim != 2 for x in (actions, hand)) or len(actions) != len(hand):
        return False
    if not len(actions) or actions.shape[1] % 7 or hand.shape[1] != 3:
        return False
    return bool(np.median(np.linalg.norm(actions[:, :3] - hand[()], axis=1)) < NEAR_M)


def _absolute_parts(info: EnvInfo) -> list[Mapping[str, Any]]:
    return [
        part
        for part in _mappings(info.kwargs.get("controller_configs"))
        if (part.get("input_type") == "absolute" or part.get("control_delta") is False)
        and not str(part.get("type", "")).startswith("JOINT")
    ]


def text(value: Any) -> str:
    """An attribute as a string."""
    return value.decode() if isinstance(value, bytes) else str(value)


def _mappings(value: Any) -> Iterator[Mapping[str, Any]]:
    """A nested value's mappings."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return
    if isinstance(value, Mapping):
        yield value
    inside = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    for item in inside:
        if isinstance(item, Mapping | list):
            yield from _mappings(item)


FORMAT = Format("robosuite's raw teleoperation: states without observations", matches, recorded_env, open_raw, survey)
