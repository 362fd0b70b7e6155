"""ManiSkill's trajectory files: an .h5 and, beside it, a .json of the same name; h5py is all that is needed.

    json            env_info {env_id, env_kwargs, max_episode_steps}, episodes [{episode_id, elapsed_steps, success, ...}]
    traj_<id>       actions [T, A]; obs [T+1, D] (state) or groups of them (state_dict, rgb, ...); env_states, success, ...

An observation more than actions: the last one, after the last action, is not used. A flat state is called `state`, keys of nested
groups are joined by '/' (`agent/qpos`), and a camera's colours are `base_camera_image`, its depths (16 bits, mm)
`base_camera_depth` (float32, m); these are the keys of envs/maniskill.py.
Left out are parameters of cameras, and point clouds of all pixels: policies get a fixed number of points, dataset obs/pointcloud.
Source: ManiSkill 3.0.1, documentation "Trajectory format" and `mani_skill/trajectory/dataset.py`.
Differs: episodes in numeric order (ManiSkill 2 tools sort as text), everything is checked on opening.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py

from difftop.data.demonstrations import DemonstrationError, Demonstrations, EnvInfo, Format
from difftop.data.faults import Faults
from difftop.data.hdf5 import Source, looked_into, open_hdf5, read_demonstrations
from difftop.data.survey import Survey, Surveyor
from difftop.data.survey_hdf5 import add_source
from difftop.types import DEPTH


def open_maniskill(
    path: str | Path,
    *,
    obs_keys: Sequence[str] | None = None,
    filter_key: str = "",
    successful_only: bool = True,
    limit: int = 0,
    cache_bytes: int = 2**30,
    bad: str = "stop",
) -> Demonstrations:
    """Opens, checks and loads a file.

    Args:
        path: the .h5 file.
        obs_keys: observations to use, in this order; None for all that are no images.
        filter_key: must be empty; these files have no filters.
        successful_only: leave out episodes that the .json calls failed.
        limit: use the first so many; 0 for all.
        cache_bytes: memory for images.
        bad: what is done about faults, see `difftop.data.faults`.
    Raises:
        DemonstrationError: the first thing that is wrong with either file. Raw files (control mode pd_joint_pos, no
            observations) have to be replayed before.
    """
    path = Path(path)
    if filter_key:
        raise DemonstrationError(f"{path}: a ManiSkill file has no filters; leave dataset.filter={filter_key} out.")
    env, episodes = read_metadata(path.with_suffix(".json"))
    episodes = sorted(episodes, key=lambda e: int(e["episode_id"]))
    failed = [f"traj_{int(e['episode_id'])}" for e in episodes if successful_only and succeeded(e) is False]
    kept = [e for e in episodes if f"traj_{int(e['episode_id'])}" not in failed]
    faults = Faults(path, bad)
    if failed:
        faults.left_out["failed episodes (dataset.successful_only=false takes them)"] = failed
    with open_hdf5(path) as file:
        if not kept:
            raise DemonstrationError(
                f"{path}: no episode is left of {len(episodes)}, all failed; dataset.successful_only=false takes failed ones."
            )
        sources = (source_of(path, file, episode) for episode in kept)
        return read_demonstrations(path, file, sources, env, obs_keys, cache_bytes, faults, limit)


def succeeded(episode: Mapping[str, Any]) -> bool | None:
    """Whether the .json calls an episode successful; ManiSkill 2 says it under `info`. None where it says nothing."""
    info = episode.get("info")
    found = episode.get("success", info.get("success") if isinstance(info, dict) else None)
    return None if found is None else bool(found)


def matches(path: Path) -> bool:
    """Whether it is called .h5 or .hdf5, isn't RoboMimic's, and a .json of its name that describes trajectories is beside it."""
    if path.suffix not in (".h5", ".hdf5") or not path.with_suffix(".json").is_file():
        return False
    if looked_into(path, lambda file: "data" in file):
        return False
    if looked_into(path, lambda file: any(name.startswith("traj_") for name in file)):
        return True
    try:
        raw = json.loads(path.with_suffix(".json").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(raw, dict) and bool({"env_info", "episodes"} & raw.keys())


def recorded_env(path: Path) -> EnvInfo:
    """The environment that a file was recorded in; raises `DemonstrationError`."""
    return read_metadata(path.with_suffix(".json"))[0]


def read_metadata(path: Path) -> tuple[EnvInfo, list[Mapping[str, Any]]]:
    """Environment and episodes of the .json file."""
    try:
        raw = json.loads(path.read_text())
        info, episodes = raw["env_info"], raw["episodes"]
        version = info.get("env_version") or _generation(info["env_id"])
        env = EnvInfo(name=info["env_id"], kwargs=info.get("env_kwargs", {}), version=version, raw=info)
        for episode in episodes:
            int(episode["episode_id"])
    except OSError as error:
        raise DemonstrationError(
            f"{path}: can't be read ({error.strerror}); a trajectory .h5 needs its .json beside it."
        ) from error
    except KeyError as error:
        raise DemonstrationError(f"{path}: lacks {error}; it must have env_info.env_id and episodes with episode_id.") from error
    except (TypeError, ValueError) as error:
        raise DemonstrationError(f"{path}: not the JSON of a ManiSkill trajectory ({error}).") from error
    return env, episodes


def _generation(env_id: str) -> str | None:
    """Version of the package where the file tells none, as ManiSkill's own tools do: -v0 are tasks of ManiSkill 2, -v1 of 3."""
    return {"v0": "0.5", "v1": "3.0"}.get(env_id.rpartition("-")[2])


def source_of(path: Path, file: Any, episode: Mapping[str, Any]) -> Source:
    """Where an episode of the .json is in the file."""
    name = f"traj_{int(episode['episode_id'])}"
    group = file.get(name)
    if not isinstance(group, h5py.Group):
        fault = f"{path}: {name} is in the .json but not in the .h5; they don't belong together, or a copy was cut off."
        return Source(name, f"{name}/actions", {}, None, "elapsed_steps", fault=fault)
    obs, elapsed, fault = dict(_observations(group)), episode.get("elapsed_steps"), ""
    if not obs:
        fault = (
            f"{path}: {name} has no observations, only {', '.join(group)}; make them with "
            "`python -m mani_skill.trajectory.replay_trajectory --traj-path FILE -o state -c pd_ee_delta_pose --save-traj`."
        )
    length = None if elapsed is None else int(elapsed)
    return Source(name, f"{name}/actions", obs, length, "elapsed_steps", extra_rows=1, fault=fault)


def _observations(group: Any) -> Iterator[tuple[str, str]]:
    """Pairs of key and dataset."""
    obs = group.get("obs")
    if isinstance(obs, h5py.Dataset):
        yield "state", obs.name
    elif isinstance(obs, h5py.Group):
        found: list[str] = []
        obs.visititems(lambda key, item: found.append(key) if isinstance(item, h5py.Dataset) else None)
        kept = [key for key in found if not key.startswith(("sensor_param/", "pointcloud/"))]
        yield from ((_key(key), f"{obs.name}/{key}") for key in kept)


def _key(path: str) -> str:
    """`base_camera_image` for `sensor_data/base_camera/rgb`, `..._depth` for its depth; other paths are keys already."""
    parts = path.split("/")
    ending = {"rgb": "_image", "depth": DEPTH}.get(parts[2], "") if len(parts) == 3 and parts[0] == "sensor_data" else ""
    return f"{parts[1]}{ending}" if ending else path


def survey(path: Path) -> Survey:
    """See `difftop.data.survey`."""
    surveyor = Surveyor()
    env, episodes = read_metadata(path.with_suffix(".json"))
    with open_hdf5(path) as file:
        for episode in sorted(episodes, key=lambda e: int(e["episode_id"])):
            source = source_of(path, file, episode)
            add_source(surveyor, file, source, rewards=f"{source.name}/rewards", success=succeeded(episode))
    controls = sorted({str(e["control_mode"]) for e in episodes if "control_mode" in e})
    notes = (f"control mode: {', '.join(controls)}",) if controls else ()
    return surveyor.survey(path, "maniskill", env, notes=notes)


FORMAT = Format("ManiSkill's .h5 with its .json beside it", matches, recorded_env, open_maniskill, survey)
