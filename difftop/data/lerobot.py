"""LeRobot data sets, version 3, read as they are: Parquet by pyarrow; mp4 by PyAV, which images alone need.

    meta/info.json                            codebase_version, fps, features {key: dtype, shape, names}, data_path, video_path
    meta/episodes/chunk-000/file-000.parquet  a row per episode: length, tasks, data/file_index, videos/<key>/from_timestamp, ...
    meta/tasks.parquet                        task_index of each task
    data/chunk-000/file-000.parquet           a row per step: action, observation.*, episode_index, next.reward, ...
    videos/<key>/chunk-000/file-000.mp4       frames of several episodes, one after another
    meta/difftop.json                         of data sets written here: env_args, filters, our name of each feature, checksums

Observations are called as here: `observation.state` is `state`, `observation.images.top` is `top_image`. Actions that leave
[-1, 1] are scaled to it by their range, see `difftop.data.scaling`.
Source: lerobot 0.4 and 0.6, `datasets/dataset_metadata.py`, `datasets/dataset_writer.py`, `datasets/utils.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from difftop.data.demonstrations import DemonstrationError, Demonstrations, EnvInfo, Format
from difftop.data.exchange import RawEpisode
from difftop.data.faults import Array, Columns, Faults
from difftop.data.lerobot_images import Clip, LeRobotImages, Stored
from difftop.data.lerobot_tables import ACTION, EPISODE, Tables, rows_by_episode
from difftop.data.scaling import gathered
from difftop.data.seal import check_sum, json_sum
from difftop.data.survey import Column, Survey, Surveyor

OURS = "meta/difftop.json"
SEAL = "seal"  # of the rest of it
_KEYS = {"env_args", "filters", "keys", "sha256"}
REWARD, SUCCESS = "next.reward", "next.success"
_SHOWN = "observation."
_IMAGES = "observation.images."


class LeRobotReader:
    """A whole data set; see `difftop.data.exchange.Reader`.

    Attributes:
        info: of meta/info.json.
        table: rows of meta/episodes, by name of the column.
        keys: our name of each feature that is observed, to the feature.
    """

    notes: tuple[str, ...] = ()

    def __init__(self, path: Path) -> None:
        """Raises `DemonstrationError`: another version, or something is missing."""
        self.path, self.info = path, read_info(path)
        self.env, self.rate_hz = recorded_env(path), float(self.info.get("fps") or 0.0)
        self.features: Mapping[str, Any] = self.info["features"]
        if ACTION not in self.features:
            raise DemonstrationError(f"{path}: it has no feature {ACTION!r}; it has {', '.join(self.features)}.")
        ours = _ours(path)
        sums: Mapping[str, str] = ours.get("sha256", {})
        self._tables = Tables(path, self.features, sums, path / OURS)
        for name in sums:
            if name.startswith("meta/"):  # LeRobot's own programs read these too
                self._tables.check(path / name)
        named = {feature: key for key, feature in ours.get("keys", {}).items()}
        self.keys = {named.get(f, key_of(f)): f for f in self.features if f.startswith(_SHOWN)}
        self.table = self._episodes()
        self.count = len(self.table[EPISODE])
        self.filters: Mapping[str, list[int]] = ours.get("filters", {})
        self.tasks = self._tasks()

    def _episodes(self) -> dict[str, list[Any]]:
        """Rows of meta/episodes, in order, without statistics."""
        files = sorted((self.path / "meta" / "episodes").glob("*/*.parquet"))
        if not files:
            raise DemonstrationError(f"{self.path}: meta/episodes has no Parquet file; a download may be incomplete.")
        found: dict[str, list[Any]] = {}
        for file in files:
            columns = self._tables.table(file, lambda name: not name.startswith("stats/"))
            for name in columns.column_names:
                found.setdefault(name, []).extend(columns[name].to_pylist())
        order = sorted(range(len(found[EPISODE])), key=found[EPISODE].__getitem__)
        return {name: [values[i] for i in order] for name, values in found.items()}

    def _tasks(self) -> dict[int, str]:
        path = self.path / "meta" / "tasks.parquet"
        if not path.is_file():
            return {}
        table = self._tables.table(path)
        text = next((name for name in ("task", "__index_level_0__") if name in table.column_names), "")
        return dict(zip(table["task_index"].to_pylist(), table[text].to_pylist(), strict=True)) if text else {}

    def is_image(self, key: str) -> bool:
        """Whether an observation, by our name, is a camera's."""
        return self.features[self.keys[key]]["dtype"] in ("image", "video")

    def in_order(self, features: Sequence[str], numbers: Sequence[int]) -> Iterator[tuple[int, dict[str, Array]]]:
        """Episodes by number with their features by name `[T, ...]`, each of the type that is stored.

        They are views of a whole file's columns: valid until the next episode is asked for, but the actions stay.
        """
        by_file = [(file, list(some)) for file, some in groupby(numbers, self._file)]
        columns = self._tables.ahead([file for file, _ in by_file], {EPISODE, *features})
        for (_, some), rows in zip(by_file, columns, strict=True):
            rows_of = rows_by_episode(rows[EPISODE])
            for number in some:
                mine = rows_of.get(int(self.table[EPISODE][number]), slice(0))
                yield number, {name: rows[name][mine] for name in features}

    def _file(self, number: int) -> Path:
        """Where the vectors of an episode are."""
        chunk, file = (self.table[f"data/{part}"][number] for part in ("chunk_index", "file_index"))
        return self.path / str(self.info["data_path"]).format(chunk_index=chunk, file_index=file)

    def stored(self, key: str) -> Stored:
        """Where the images of an observation are."""
        feature = self.keys[key]
        height, width, channels = image_shape(self.features[feature])
        clips = []
        for number in range(self.count):
            where = "videos/" + feature if self.features[feature]["dtype"] == "video" else "data"
            pattern = str(self.info["video_path"] if where != "data" else self.info["data_path"])
            chunk, file = (self.table[f"{where}/{part}"][number] for part in ("chunk_index", "file_index"))
            path = self.path / pattern.format(video_key=feature, chunk_index=chunk, file_index=file)
            begins = float(self.table[f"{where}/from_timestamp"][number]) if where != "data" else 0.0
            self._tables.check(path)
            clips.append(Clip(path, begins, int(self.table[EPISODE][number]), self.length(number)))
        return Stored(feature, self.features[feature]["dtype"] == "video", (channels, height, width), self.rate_hz, tuple(clips))

    def length(self, number: int) -> int:
        """Steps of an episode, as the metadata say."""
        return int(self.table["length"][number])

    def name(self, number: int) -> str:
        """Of an episode."""
        return f"episode_{self.table[EPISODE][number]}"

    def episodes(self, start: int = 0) -> Iterator[RawEpisode]:
        """See `difftop.data.exchange.Reader`."""
        vectors = [key for key in self.keys if not self.is_image(key)]
        images = {key: LeRobotImages(self.stored(key), 2**26) for key in self.keys if self.is_image(key)}
        more = [name for name in (REWARD, SUCCESS, "task_index") if name in self.features]
        wanted = [ACTION, *(self.keys[key] for key in vectors), *more]
        for number, seen in self.in_order(wanted, range(start, self.count)):
            rows = {name: np.array(values) for name, values in seen.items()}
            obs = {key: rows[self.keys[key]] for key in vectors}
            obs |= {key: shown.episode(number) for key, shown in images.items()}
            success = bool(rows[SUCCESS].any()) if SUCCESS in rows else None
            task = self.tasks.get(int(rows["task_index"].flat[0]), "") if "task_index" in rows else ""
            rewards = rows[REWARD].reshape(-1) if REWARD in rows else None
            yield RawEpisode(self.name(number), rows[ACTION], obs, rewards=rewards, success=success, task=task)


def key_of(feature: str) -> str:
    """Our name of a feature: `top_image` for `observation.images.top`, `state` for `observation.state`."""
    if feature.startswith(_IMAGES):
        return f"{feature.removeprefix(_IMAGES).replace('.', '_')}_image"
    return feature.removeprefix(_SHOWN).replace(".", "_")


def image_shape(feature: Mapping[str, Any]) -> tuple[int, int, int]:
    """Height, width and channels of a camera's feature, which may be stored in either order."""
    shape = tuple(int(size) for size in feature["shape"])
    names = list(feature.get("names") or [])
    channels_first = names[:1] in (["channels"], ["channel"]) or (not names and shape[0] in (1, 3, 4) and shape[2] > 4)
    return (shape[1], shape[2], shape[0]) if channels_first else (shape[0], shape[1], shape[2])


def read_info(path: Path) -> dict[str, Any]:
    """meta/info.json; raises `DemonstrationError` where it is missing, or of another version."""
    file = path / "meta" / "info.json"
    said = _ours(path).get("sha256", {}).get("meta/info.json")
    if said is not None:
        check_sum(file, said, f"{path / OURS}")
    try:
        info: dict[str, Any] = json.loads(file.read_text())
        version = str(info["codebase_version"])
        _ = info["features"], info["data_path"]
    except OSError as error:
        raise DemonstrationError(f"{file}: can't be read ({error.strerror}).") from error
    except (KeyError, TypeError, ValueError) as error:
        raise DemonstrationError(f"{file}: not the description of a LeRobot data set ({error!r}).") from error
    if not version.startswith("v3"):
        raise DemonstrationError(
            f"{path}: a LeRobot data set of version {version}; version 3 is read: convert it by lerobot's "
            "convert_dataset_v21_to_v30."
        )
    return info


def matches(path: Path) -> bool:
    """Whether it is a folder with meta/info.json."""
    return path.is_dir() and (path / "meta" / "info.json").is_file()


def recorded_env(path: Path) -> EnvInfo:
    """What a data set that was written here says; others name a robot at most."""
    info, args = read_info(path), _ours(path).get("env_args") or {}
    raw = {**args, "fps": info.get("fps"), "robot_type": info.get("robot_type")}
    return EnvInfo(str(args.get("env_name", "")), dict(args.get("env_kwargs", {})), args.get("env_version"), raw)


def _ours(path: Path) -> dict[str, Any]:
    file = path / OURS
    if not file.is_file():
        return {}
    try:
        found: dict[str, Any] = json.loads(file.read_text())
        said = found.pop(SEAL, None)  # those of before have none
        if said != json_sum(found) if said is not None else not found.keys() <= _KEYS:
            raise ValueError("it doesn't match its checksum")
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DemonstrationError(f"{file}: it is damaged ({error}): copy or convert the data set again.") from error
    return found


def open_lerobot(
    path: Path,
    *,
    obs_keys: Sequence[str] | None = None,
    filter_key: str = "",
    limit: int = 0,
    cache_bytes: int = 2**30,
    successful_only: bool = True,
    bad: str = "stop",
) -> Demonstrations:
    """See `difftop.data.files.open_demonstrations`; failed episodes are those whose `next.success` is never true."""
    reader, faults = LeRobotReader(path), Faults(path, bad)
    if filter_key and filter_key not in reader.filters:
        raise DemonstrationError(f"{path}: no filter key {filter_key!r}; it has {', '.join(reader.filters) or 'none'}.")
    keys = [key for key in reader.keys if not reader.is_image(key)] if obs_keys is None else list(obs_keys)
    unknown = [key for key in keys if key not in reader.keys]
    if unknown:
        raise DemonstrationError(f"{path}: no observation {unknown[0]!r}; it has {', '.join(reader.keys)}.")
    images = [key for key in keys if reader.is_image(key)]
    wanted = [ACTION, *(reader.keys[key] for key in keys if key not in images)]
    judged = successful_only and SUCCESS in reader.features

    def columns() -> Iterator[Columns]:
        numbers = range(reader.count) if not filter_key else reader.filters[filter_key]
        for number, rows in reader.in_order([*wanted, *([SUCCESS] if judged else [])], numbers):
            name = reader.name(number)
            if judged and not rows[SUCCESS].any():
                faults.left_out.setdefault("failed episodes (dataset.successful_only=false takes them)", []).append(name)
                continue
            places = {"actions": f"{path}: action of {name}"} | {key: f"{path}: {key} of {name}" for key in keys}
            vectors = {key: np.array(rows[reader.keys[key]]) for key in keys if key not in images}
            yield Columns(name, np.array(rows[ACTION]), vectors, {}, places, reader.length(number), "length in meta/episodes")

    made = gathered(path, reader.env, columns(), faults, limit)
    numbers = [reader.table[EPISODE].index(int(name.rpartition("_")[2])) for name in made.names]
    share = cache_bytes // max(len(images), 1)
    return made.with_images({key: LeRobotImages(reader.stored(key).of(numbers), share) for key in images})


def survey(path: Path) -> Survey:
    """See `difftop.data.survey`."""
    reader, surveyor = LeRobotReader(path), Surveyor()
    vectors = [key for key in reader.keys if not reader.is_image(key)]
    more = [name for name in (REWARD, SUCCESS) if name in reader.features]
    wanted = [ACTION, *(reader.keys[key] for key in vectors), *more]
    for number, rows in reader.in_order(wanted, range(reader.count)):
        success = bool(rows[SUCCESS].any()) if SUCCESS in rows else None
        shown = {key: rows[reader.keys[key]] for key in vectors}
        earned = rows.get(REWARD)
        length = reader.length(number)
        surveyor.add(reader.name(number), rows[ACTION], shown, {}, length=length, rewards=earned, success=success)
    for key, feature in reader.keys.items():
        if reader.is_image(key):
            kind = str(reader.features[feature]["dtype"])
            surveyor.columns[key] = Column(image_shape(reader.features[feature]), "uint8", kind)
    robot = reader.info.get("robot_type")
    notes = [f"robot: {robot}"] if robot else []
    notes += [f"tasks: {', '.join(list(reader.tasks.values())[:4])}"] if any(reader.tasks.values()) else []
    filters = {key: len(members) for key, members in reader.filters.items()}
    return surveyor.survey(path, "lerobot", reader.env, boxed=False, rate_hz=reader.rate_hz, notes=tuple(notes), filters=filters)


FORMAT = Format("LeRobot's version 3: a folder of data/, meta/ and videos/", matches, recorded_env, open_lerobot, survey)
