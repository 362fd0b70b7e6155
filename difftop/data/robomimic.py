"""RoboMimic's HDF5 layout, read and written; h5py is all that is needed.

    data            attrs: env_args (JSON: env_name, type, env_kwargs, env_version), total
    data/demo_<k>   attrs: num_samples, model_file; actions [T, A], states [T, D], rewards [T], dones [T], obs/<key> [T, ...]
    mask/<filter>   names of demonstrations, [N] byte strings

Three generations are in use: v0.1 (no env_version), v141 (robosuite 1.4.1, flat controller_configs) and v15 (robosuite 1.5.1,
controller_configs by body part). Some writers say `env_type` for `type`; both are read.
Source: robomimic 0.2.0 to 0.5.0, `utils/dataset.py`, `utils/file_utils.py`.
Differs: everything is checked on opening; robomimic compares no lengths, and fills missing datasets with zeros.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from difftop.data.demonstrations import Array, DemonstrationError, Demonstrations, EnvInfo, Format, check_actions, check_values
from difftop.data.faults import BEYOND, TOTAL, Faults
from difftop.data.hdf5 import Source, ensure_room, is_hdf5, looked_into, new_hdf5, open_hdf5, read_demonstrations
from difftop.data.robosuite import filter_sizes, looks_absolute, says_absolute
from difftop.data.survey import Survey, Surveyor
from difftop.data.survey_hdf5 import add_source

log = logging.getLogger(__name__)

_NEXT = "next_obs/"
LOW_DIM_KEYS = ("object", "robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")  # the papers'; more of them halve success


@dataclass(frozen=True)
class Recording:
    """One episode to be written.

    Attributes:
        obs: by key `[T, ...]`, observed before each action; images `[T, H, W, C]` uint8, upright.
        actions: `[T, A]`, in [-1, 1].
        rewards: `[T]`.
        dones: `[T]`, None for an episode that is done at its end.
        states: simulator states `[T, D]` to rebuild observations from, if there are any.
        attributes: strings to keep with it: `model_file`, `ep_meta`.
        last_obs: by key `[...]`, observed after the last action; with it `next_obs` is written, what follows each action.
    """

    obs: Mapping[str, Array]
    actions: Array
    rewards: Array
    dones: Array | None = None
    states: Array | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)
    last_obs: Mapping[str, Array] | None = None


def open_robomimic(
    path: str | Path,
    *,
    obs_keys: Sequence[str] | None = None,
    filter_key: str = "",
    limit: int = 0,
    action_key: str = "actions",
    cache_bytes: int = 2**30,
    successful_only: bool = True,
    bad: str = "stop",
    boxed: bool = True,
) -> Demonstrations:
    """Opens, checks and loads a file.

    Args:
        path: the HDF5 file.
        obs_keys: observations to use, in this order (`LOW_DIM_KEYS`, camera images, `next_obs/KEY`); None for all of `obs` that
            are no images.
        filter_key: use the demonstrations of `mask/<filter_key>` only: train, valid, better, 20_percent, ...; empty for all.
        limit: use the first so many of them; 0 for all.
        action_key: dataset of actions.
        cache_bytes: memory for images.
        successful_only: has no effect, the files don't say; see their filters.
        bad: what is done about faults, see `difftop.data.faults`.
        boxed: whether actions must be in [-1, 1].
    Raises:
        DemonstrationError: the first thing that is wrong with the file.
    """
    path, faults = Path(path), Faults(Path(path), bad)
    with open_hdf5(path) as file:
        env, data = read_env(path, file), file["data"]
        names = all_names(path, data, faults)
        if filter_key:
            names = _filtered(path, file, filter_key, names)
        if limit and limit != len(names):
            log.info("%s: %s of its %d demonstrations", path, f"the first {limit}" if limit < len(names) else "all", len(names))
        if not names:
            raise DemonstrationError(
                f"{path}: it has no demonstration{f' of dataset.filter={filter_key}' if filter_key else ''}."
            )
        with_next = any(key.startswith(_NEXT) for key in obs_keys or ())
        sources = (_source(path, data[name], action_key, with_next) for name in names)
        return read_demonstrations(path, file, sources, env, obs_keys, cache_bytes, faults, limit, boxed=boxed)


def write_demonstrations(
    path: str | Path,
    episodes: Iterable[Recording],
    env_args: Mapping[str, Any],
    masks: Mapping[str, Sequence[int]] | None = None,
) -> None:
    """Writes episodes as they come; the file appears under its name only when it is whole.

    Args:
        path: of the file; an existing one is replaced.
        episodes: the k-th becomes `demo_<k>`.
        env_args: `env_name`, `type` (1 robosuite, 2 gym), `env_kwargs`, `env_version`.
        masks: numbers of episodes by filter.
    Raises:
        DemonstrationError: env_args lacks a key, there is no episode, or one is not as `open_robomimic` needs it.
    """
    path = Path(path)
    missing = [key for key in ("env_name", "type", "env_kwargs", "env_version") if key not in env_args]
    if missing:
        raise DemonstrationError(f"{path}: env_args lacks {', '.join(missing)}.")
    partial, total, count = path.with_name(f"{path.name}.{os.getpid()}.part"), 0, 0
    try:
        with new_hdf5(partial, sealed=True) as file:
            data = file.create_group("data")
            for episode in episodes:
                total += write_episode(data.create_group(f"demo_{count}"), episode, f"{path}: demo_{count}")
                count += 1
            if not count:
                raise DemonstrationError(f"{path}: there is no episode to write.")
            data.attrs["total"], data.attrs["env_args"] = total, json.dumps(dict(env_args), indent=4)
            for name, members in (masks or {}).items():
                if not all(0 <= k < count for k in members):
                    raise DemonstrationError(f"{path}: mask {name} = {list(members)} names an episode beyond {count - 1}.")
                file[f"mask/{name}"] = np.array([f"demo_{k}".encode() for k in members], dtype="S")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_episode(group: Any, episode: Recording, where: str) -> int:
    """Writes one episode and returns its number of steps."""
    steps = len(check_actions(f"{where}/actions", np.asarray(episode.actions)))
    dones = np.arange(1, steps + 1) == steps if episode.dones is None else episode.dones
    columns: dict[str, tuple[Array, Any]] = {
        "actions": (episode.actions, np.float64),
        "rewards": (episode.rewards, np.float64),
        "dones": (dones, np.int64),
    }
    columns |= {} if episode.states is None else {"states": (episode.states, np.float64)}
    columns |= {f"obs/{key}": (values, np.asarray(values).dtype) for key, values in episode.obs.items()}
    for key, last in (episode.last_obs or {}).items():
        after = np.concatenate([np.asarray(episode.obs[key])[1:], np.asarray(last)[None]])
        columns[f"{_NEXT}{key}"] = (after, np.asarray(episode.obs[key]).dtype)
    ensure_room(Path(group.file.filename), sum(np.asarray(v).size * np.dtype(dtype).itemsize for v, dtype in columns.values()))
    for name, (values, dtype) in columns.items():
        rows = np.asarray(values)
        if len(rows) != steps:
            raise DemonstrationError(f"{where}/{name} has {len(rows)} rows for {steps} actions; it must have one per action.")
        if rows.dtype.kind != "u":
            check_values(f"{where}/{name}", rows)
        group.create_dataset(name, data=rows.astype(dtype))
    group.attrs["num_samples"] = steps
    for name, text in episode.attributes.items():
        group.attrs[name] = text
    return steps


def matches(path: Path) -> bool:
    """Whether it is an HDF5 file with a group `data`, or one too damaged to tell."""
    if not is_hdf5(path):
        return False
    return looked_into(path, lambda file: isinstance(file.get("data"), h5py.Group)) is not False


def recorded_env(path: Path) -> EnvInfo:
    """The environment that a file was recorded in; raises `DemonstrationError`."""
    with open_hdf5(path) as file:
        return read_env(path, file)


def read_env(path: Path, file: Any) -> EnvInfo:
    """The environment that an open file was recorded in.

    RoboMimic's conversion of robosuite's files leaves `env_name` inside `env_kwargs` too, or only there.

    Raises:
        DemonstrationError: it is no RoboMimic file, or doesn't say.
    """
    data = file.get("data")
    if not isinstance(data, h5py.Group):
        raise DemonstrationError(
            f"{path}: group data is missing; this is no RoboMimic file (ManiSkill: open its .h5 beside its .json)."
        )
    text = data.attrs.get("env_args")
    try:
        raw = json.loads(text.decode() if isinstance(text, bytes) else text)
        kwargs = raw.get("env_kwargs")
        inside = kwargs.pop("env_name", None) if isinstance(kwargs, dict) else None
        name = raw.get("env_name") or inside or raw["env_name"]
        kwargs, _ = raw["env_kwargs"], raw["type"] if "type" in raw else raw["env_type"]
    except (TypeError, ValueError) as error:
        raise DemonstrationError(f"{path}: attribute env_args of data is missing or no JSON ({error}).") from error
    except KeyError as error:
        raise DemonstrationError(f"{path}: env_args lacks {error}; it must have env_name, type and env_kwargs.") from error
    if not isinstance(kwargs, dict):
        raise DemonstrationError(f"{path}: env_args has env_kwargs {kwargs}; they must be a JSON object.")
    return EnvInfo(name=name, kwargs=kwargs, version=raw.get("env_version"), raw=raw)


def all_names(path: Path, data: Any, faults: Faults) -> list[str]:
    """Names of all demonstrations, in numeric order."""
    strange = [name for name in data if not re.fullmatch(r"demo_\d+", name)]
    if strange:
        raise DemonstrationError(f"{path}: data has {strange[0]!r}; demonstrations must be called demo_0, demo_1, ...")
    names = sorted(data, key=_number)
    if "total" in data.attrs:
        total, found = int(data.attrs["total"]), sum(int(data[name].attrs.get("num_samples", 0)) for name in names)
        if total != found:
            faults.ignore(
                TOTAL,
                f"{path}: its demonstrations have {found} samples but its attribute total is {total}; some are missing, or it "
                "was edited: correct data.attrs['total'] if that was meant.",
            )
    return names


def _number(name: str) -> int:
    return int(name.removeprefix("demo_"))


def _filtered(path: Path, file: Any, filter_key: str, names: Sequence[str]) -> list[str]:
    masks = file.get("mask", {})
    if not isinstance(masks.get(filter_key), h5py.Dataset):
        raise DemonstrationError(f"{path}: no filter key {filter_key!r}; it has {', '.join(masks) or 'none'}.")
    chosen = {name.decode() if isinstance(name, bytes) else str(name) for name in masks[filter_key][()]}
    absent = sorted(chosen - set(names))
    if absent:
        raise DemonstrationError(f"{path}: mask/{filter_key} names {absent[0]!r}, which is not in data.")
    return [name for name in names if name in chosen]


def _source(path: Path, group: Any, action_key: str, with_next: bool = False) -> Source:
    name, length = group.name.rsplit("/", 1)[-1], group.attrs.get("num_samples")
    fault = "" if length is not None else f"{path}: {name} has no attribute num_samples; was writing it interrupted?"
    obs: dict[str, str] = {}
    if isinstance(group.get("obs"), h5py.Group):
        obs = {key: f"{group.name}/obs/{key}" for key in group["obs"]}
    elif not fault:
        fault = (
            f"{path}: {name} has no observations, only {', '.join(group)}; make them from the states first: "
            f"mode=convert dataset={path} out=FILE."
        )
    if with_next:
        obs |= {f"{_NEXT}{key}": f"{group.name}/{_NEXT}{key}" for key in group.get("next_obs", ())}
    return Source(name, f"{group.name}/{action_key}", obs, None if length is None else int(length), "num_samples", fault=fault)


def survey(path: Path) -> Survey:
    """See `difftop.data.survey`. An episode counts as solved where its last reward is positive, if any reward is."""
    surveyor = Surveyor()
    with open_hdf5(path) as file:
        env, data = read_env(path, file), file["data"]
        faults = Faults(path, "skip")
        names = all_names(path, data, faults)
        rewarded = any("rewards" in data[name] and bool(np.any(data[name]["rewards"][()] > 0)) for name in names[:20])
        for name in names:
            rewards = data[name].get("rewards")
            solved = bool(np.any(rewards[()] > 0)) if rewarded and rewards is not None and len(rewards) else None
            add_source(surveyor, file, _source(path, data[name], "actions"), rewards=f"data/{name}/rewards", success=solved)
        filters, more = filter_sizes(file), _more(data, names)
        said, alike = says_absolute(env), bool(names) and BEYOND in surveyor.faults and looks_absolute(data[names[0]])
    if said or alike:
        who = "as the file's controller says" if said else "by where the hand was, which the file's controller doesn't say"
        more = (*more, f"actions are absolute poses, {who}: they are learned with rotations of six numbers")
    options = ("dataset.poses=true",) if alike and not said else ()
    found = surveyor.survey(path, "robomimic", env, filters=filters, notes=(*faults.lines(), *more), options=options)
    return replace(found, faults={kind: n for kind, n in found.faults.items() if not ((said or alike) and kind == BEYOND)})


def _more(data: Any, names: Sequence[str]) -> tuple[str, ...]:
    """What the first demonstration has beside what is used."""
    first = data[names[0]] if names else {}
    beside = [key for key in first if key not in ("actions", "obs", "rewards", "dones")]
    found = (f"beside observations: {', '.join(beside)}",) if beside else ()
    absolute = [key for key in beside if key.endswith("_abs")]
    return (*found, *(f"absolute poses: dataset.actions={key} trains on them" for key in absolute))


FORMAT = Format(
    "RoboMimic's HDF5: a group data of demo_0, demo_1, ...", matches, recorded_env, open_robomimic, survey, units=True
)
