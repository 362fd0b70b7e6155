"""ManiSkill's trajectory files: an .h5 and, beside it, a .json of the same name; h5py is all that is needed.

    json            env_info {env_id, env_kwargs, max_episode_steps}, episodes [{episode_id, elapsed_steps, success, ...}]
    traj_<id>       actions [T, A]; obs [T+1, D] (state) or groups of them (state_dict, rgb, ...); env_states, success, ...

An observation more than actions: the last one, after the last action, is not used. A flat state is called `state`, keys of nested
groups are joined by '/' (`agent/qpos`), and a camera's colours are `base_camera_image`; these are the keys of envs/maniskill.py.
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
from difftop.data.hdf5 import Source, open_hdf5, read_demonstrations


def open_maniskill(
    path: str | Path,
    *,
    obs_keys: Sequence[str] | None = None,
    filter_key: str = "",
    successful_only: bool = False,
    limit: int = 0,
    cache_bytes: int = 2**30,
) -> Demonstrations:
    """Opens, checks and loads a file.

    Args:
        path: the .h5 file.
        obs_keys: observations to use, in this order; None for all that are no images.
        filter_key: must be empty; these files have no filters.
        successful_only: leave out episodes that the .json doesn't call successful.
        limit: use the first so many; 0 for all.
        cache_bytes: memory for images.
    Raises:
        DemonstrationError: the first thing that is wrong with either file. Raw files (control mode pd_joint_pos, no
            observations) have to be replayed before.
    """
    path = Path(path)
    if filter_key:
        raise DemonstrationError(f"{path}: a ManiSkill file has no filters; leave run.filter_key={filter_key} out.")
    env, episodes = read_metadata(path.with_suffix(".json"))
    with open_hdf5(path) as file:
        sources = [
            _source(path, file, episode)
            for episode in sorted(episodes, key=lambda e: int(e["episode_id"]))
            if not successful_only or bool(episode.get("success"))
        ]
        if not sources:
            raise DemonstrationError(f"{path}: no episode is left of {len(episodes)} (successful_only={successful_only}).")
        return read_demonstrations(path, file, sources[: limit or None], env, obs_keys, cache_bytes)


def matches(path: Path) -> bool:
    """Whether it is called .h5 or .hdf5 and a .json of the same name is beside it."""
    return path.suffix in (".h5", ".hdf5") and path.with_suffix(".json").is_file()


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


def _source(path: Path, file: Any, episode: Mapping[str, Any]) -> Source:
    name = f"traj_{int(episode['episode_id'])}"
    group = file.get(name)
    if not isinstance(group, h5py.Group):
        raise DemonstrationError(f"{path}: {name} is in the .json but not in the .h5; they don't belong together.")
    obs = dict(_observations(group))
    if not obs:
        raise DemonstrationError(
            f"{path}: {name} has no observations, only {', '.join(group)}; make them with "
            "`python -m mani_skill.trajectory.replay_trajectory --traj-path FILE -o state -c pd_ee_delta_pose --save-traj`."
        )
    elapsed = episode.get("elapsed_steps")
    return Source(name, f"{name}/actions", obs, None if elapsed is None else int(elapsed), "elapsed_steps", extra_rows=1)


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
    """`base_camera_image` for `sensor_data/base_camera/rgb`; other paths are keys already."""
    parts = path.split("/")
    return f"{parts[1]}_image" if len(parts) == 3 and parts[0] == "sensor_data" and parts[2] == "rgb" else path


FORMAT = Format("ManiSkill's .h5 with its .json beside it", matches, recorded_env, open_maniskill)
