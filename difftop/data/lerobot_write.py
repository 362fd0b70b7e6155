"""LeRobot data sets, version 3, written episode by episode: vectors as float32 or as they are, images as PNG or mp4.

Every episode is a file of its own; see `difftop.data.lerobot` for the layout. A data set that is not finished has no
meta/info.json, so nobody takes it for a whole one, and it can be gone on with.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from difftop.data.demonstrations import DemonstrationError
from difftop.data.exchange import RawEpisode
from difftop.data.extras import optional
from difftop.data.faults import Array
from difftop.data.lerobot import OURS, REWARD, SEAL, SUCCESS
from difftop.data.lerobot_tables import ACTION
from difftop.data.seal import json_sum, sum_of

_PATTERN = "chunk-000/file-{number:03d}"
_DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
_FRAMES_IN_STATISTICS = 20  # images of each episode
_OWN = ("timestamp", "frame_index", "episode_index", "index", "task_index")


class LeRobotWriter:
    """Writes one data set; `add` every episode, then `finish`.

    Args:
        path: the folder.
        rate_hz: of control; LeRobot wants a whole number of frames per second.
        video: images as mp4 (H.264, lossy) in place of PNG.
    Raises:
        DemonstrationError: pyarrow, or for videos PyAV, is missing.
    """

    def __init__(self, path: Path, rate_hz: float, *, video: bool = False) -> None:
        self.path, self.fps, self.video = path, max(round(rate_hz or 20.0), 1), video
        self._arrow, self._parquet = (optional(name, f"{path}: a LeRobot data set") for name in ("pyarrow", "pyarrow.parquet"))
        self._rows: list[dict[str, Any]] = []
        self._features: dict[str, dict[str, Any]] = {}
        self.keys: dict[str, str] = {}
        self._tasks: list[str] = []
        self._steps = 0
        self._sums: dict[str, str] = {}  # SHA-256 of each file
        self._journal = path / "meta" / "partial.jsonl"  # a line per episode: what an interrupted writer goes on from
        if self._journal.is_file():
            self._go_on()

    @property
    def count(self) -> int:
        """Episodes that are written."""
        return len(self._rows)

    def add(self, episode: RawEpisode) -> None:
        """Writes one episode."""
        number, steps, task, sums = self.count, len(episode.actions), episode.task or "demonstration", len(self._sums)
        if task not in self._tasks:
            self._tasks.append(task)
        images = {key: rows for key, rows in episode.obs.items() if rows.ndim == 4}
        others = [key for key, rows in images.items() if rows.dtype != np.uint8]
        if others:
            raise DemonstrationError(
                f"{self.path}: {others[0]} of {episode.name} is {images[others[0]].dtype}, and images of LeRobot data sets are "
                "uint8: convert to a .hdf5, or leave depths out when they are made."
            )
        columns: dict[str, Array] = {ACTION: episode.actions}
        columns |= {self._feature(key, rows): rows for key, rows in episode.obs.items() if key not in images}
        if episode.rewards is not None:
            columns[REWARD] = np.asarray(episode.rewards, np.float32)
        if episode.success is not None:
            columns[SUCCESS] = (np.arange(steps) == steps - 1) & bool(episode.success)
        for name, rows in columns.items():
            shape = list(rows.shape[1:]) or [1]
            self._features.setdefault(name, {"dtype": rows.dtype.name, "shape": shape, "names": None})
        own = {
            "timestamp": (np.arange(steps) / self.fps).astype(np.float32),
            "frame_index": np.arange(steps),
            "episode_index": np.full(steps, number),
            "index": np.arange(self._steps, self._steps + steps),
            "task_index": np.full(steps, self._tasks.index(task)),
        }
        arrays = {name: self._column(rows) for name, rows in {**columns, **own}.items()}
        row: dict[str, Any] = {"episode_index": number, "tasks": [task], "length": steps}
        for key, rows in images.items():
            feature = self._feature(key, rows, image=True)
            if self.video:
                row |= self._video(feature, number, rows)
            else:
                arrays[feature] = self._pictures(rows)
        self._write(_DATA.format(chunk_index=number // 1000, file_index=number % 1000), self._arrow.table(arrays))
        row |= {"data/chunk_index": number // 1000, "data/file_index": number % 1000}
        row |= {"dataset_from_index": self._steps, "dataset_to_index": self._steps + steps}
        row |= {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
        shown = {feature: episode.obs[key] for key, feature in self.keys.items() if key in episode.obs}
        row |= _statistics({**columns, **own, **shown})
        self._rows.append(row)
        self._steps += steps
        line = {"row": row, "task": task, "features": self._features, "keys": self.keys}
        files = list(islice(reversed(self._sums), len(self._sums) - sums))[::-1]  # of this episode
        line["sums"] = {name: self._sums[name] for name in files}
        self._journal.parent.mkdir(parents=True, exist_ok=True)
        with self._journal.open("a") as file:
            file.write(_text(line))

    def _go_on(self) -> None:
        """Takes what was written before; a line that a kill or a full disk cut is of an episode that is written again."""
        whole, cut, _ = self._journal.read_bytes().rpartition(b"\n")
        with self._journal.open("r+b") as file:
            file.truncate(len(whole + cut))
        for text in whole.splitlines():
            saved = json.loads(text)
            self._rows.append(saved["row"])
            self._features, self.keys = saved["features"], saved["keys"]
            self._tasks += [task for task in (saved["task"],) if task not in self._tasks]
            self._steps += saved["row"]["length"]
            self._sums |= saved["sums"]

    def finish(self, env_args: Mapping[str, Any] | None, filters: Mapping[str, Sequence[int]]) -> None:
        """Writes what describes the whole; then it is a data set."""
        own = {name: {"dtype": "float32" if name == "timestamp" else "int64", "shape": [1], "names": None} for name in _OWN}
        columns = {name: [row.get(name) for row in self._rows] for name in self._rows[0]}
        self._write(f"meta/episodes/{_PATTERN.format(number=0)}.parquet", self._arrow.table(columns))
        self._write("meta/tasks.parquet", self._task_table())
        statistics = _whole_statistics(self._rows)
        self._save("meta/stats.json", statistics)
        info = {
            "codebase_version": "v3.0",
            "fps": self.fps,
            "features": {**self._features, **own},
            "total_episodes": self.count,
            "total_frames": self._steps,
            "total_tasks": len(self._tasks),
            "chunks_size": 1000,
            "data_files_size_in_mb": 100,
            "video_files_size_in_mb": 200,
            "data_path": _DATA,
            "video_path": _VIDEO if self.video and any(f["dtype"] == "video" for f in self._features.values()) else None,
            "robot_type": None,
            "splits": {"train": f"0:{self.count}"},
        }
        for name, values in (("meta/stats.json", statistics), ("meta/info.json", info)):
            self._sums[name] = hashlib.sha256(_text(values).encode()).hexdigest()
        ours: dict[str, Any] = {"env_args": env_args, "keys": self.keys, "sha256": self._sums}
        ours["filters"] = {key: list(members) for key, members in filters.items()}
        self._save(OURS, {**ours, SEAL: json_sum(ours)})
        self._save("meta/info.json", info)
        self._journal.unlink()

    def _feature(self, key: str, rows: Array, *, image: bool = False) -> str:
        """LeRobot's name of one of our observations."""
        plain = key.replace("/", ".")
        name = f"observation.images.{plain.removesuffix('_image')}" if image else f"observation.{plain}"
        self.keys[key] = name
        if image:
            shape, kind = list(rows.shape[1:]), "video" if self.video else "image"
            self._features.setdefault(name, {"dtype": kind, "shape": shape, "names": ["height", "width", "channels"]})
            if self.video:
                self._features[name]["info"] = {"video.fps": self.fps, "video.codec": "h264", "video.pix_fmt": "yuv420p"}
        return name

    def _column(self, rows: Array) -> Any:
        """A column of a table: numbers, or lists of a fixed size, nested where rows have several axes."""
        flat = self._arrow.array(np.ascontiguousarray(rows).reshape(-1))
        for size in reversed(rows.shape[1:]):
            flat = self._arrow.FixedSizeListArray.from_arrays(flat, int(size))
        return flat.flatten() if rows.shape[1:] == (1,) else flat

    def _pictures(self, rows: Array) -> Any:
        from PIL import Image

        found = []
        for row in rows:
            buffer = io.BytesIO()
            Image.fromarray(row).save(buffer, "PNG", compress_level=1)
            found.append({"bytes": buffer.getvalue(), "path": None})
        return self._arrow.array(found, self._arrow.struct({"bytes": self._arrow.binary(), "path": self._arrow.string()}))

    def _video(self, feature: str, number: int, rows: Array) -> dict[str, Any]:
        """Encodes an episode as a file of its own; a frame in two is a key frame, so that any is found fast."""
        av = optional("av", f"{self.path}: videos")
        chunk, file = divmod(number, 1000)
        path = self.path / _VIDEO.format(video_key=feature, chunk_index=chunk, file_index=file)
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=self.fps, options={"crf": "18", "g": "2"})
            stream.height, stream.width, stream.pix_fmt = rows.shape[1], rows.shape[2], "yuv420p"
            for row in rows:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(row, format="rgb24")))
            container.mux(stream.encode())
        self._sums[str(path.relative_to(self.path))] = sum_of(path)
        where = f"videos/{feature}"
        found: dict[str, Any] = {f"{where}/chunk_index": chunk, f"{where}/file_index": file}
        return found | {f"{where}/from_timestamp": 0.0, f"{where}/to_timestamp": len(rows) / self.fps}

    def _task_table(self) -> Any:
        """Tasks as pandas keeps them, the text being the index, so that LeRobot finds it."""
        table = self._arrow.table({"task_index": list(range(len(self._tasks))), "task": self._tasks})
        text = {"name": "task", "field_name": "task", "pandas_type": "unicode", "numpy_type": "object", "metadata": None}
        number = {
            "name": "task_index",
            "field_name": "task_index",
            "pandas_type": "int64",
            "numpy_type": "int64",
            "metadata": None,
        }
        about = {"index_columns": ["task"], "column_indexes": [], "columns": [number, text], "pandas_version": "2.0.0"}
        return table.replace_schema_metadata({"pandas": json.dumps(about)})

    def _write(self, name: str, table: Any) -> None:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.part")
        # A dictionary of numbers that hardly repeat, or of images, is half as large as they are, and they follow it.
        few = [column for column in table.column_names if column in _OWN or column == REWARD]
        self._parquet.write_table(table, partial, write_page_checksum=True, use_dictionary=few)
        self._sums[name] = sum_of(partial)
        partial.replace(path)

    def _save(self, name: str, values: Any) -> None:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.part")
        partial.write_text(_text(values))
        partial.replace(path)


def _text(values: Any) -> str:
    return json.dumps(values) + "\n"


def _statistics(columns: Mapping[str, Array]) -> dict[str, Any]:
    """`stats/<feature>/<name>` of one episode, as LeRobot has them: of images in [0, 1], per channel."""
    found: dict[str, Any] = {}
    shape: tuple[int, ...]
    for name, rows in columns.items():
        if rows.ndim == 4:
            chosen = rows[np.linspace(0, len(rows) - 1, min(len(rows), _FRAMES_IN_STATISTICS)).astype(int)] / 255.0
            values, shape, count = chosen.reshape(-1, rows.shape[-1]), (rows.shape[-1], 1, 1), len(chosen)
        else:
            values = np.asarray(rows, np.float64).reshape(len(rows), -1)
            shape, count = tuple(rows.shape[1:]) or (1,), len(rows)
        for kind, value in _of(values).items():
            found[f"stats/{name}/{kind}"] = value.reshape(shape).tolist()
        found[f"stats/{name}/count"] = [count]
    return found


def _of(values: Array) -> dict[str, Array]:
    quantiles = {f"q{q:02d}": np.quantile(values, q / 100, axis=0) for q in (1, 10, 50, 90, 99)}
    return {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0), **quantiles}


def _whole_statistics(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of all episodes, from each one's; quantiles are means of theirs, weighted by their steps."""
    found: dict[str, dict[str, Any]] = {}
    for key in rows[0]:
        prefix, _, rest = key.partition("/")
        name, _, kind = rest.rpartition("/")
        if prefix != "stats" or kind != "mean":
            continue
        of = {k: np.array([row[f"stats/{name}/{k}"] for row in rows]) for k in ("min", "max", "mean", "std", "count")}
        count = of["count"].reshape(-1, *([1] * (of["mean"].ndim - 1)))
        mean = (count * of["mean"]).sum(0) / count.sum()
        variance = (count * (of["std"] ** 2 + (of["mean"] - mean) ** 2)).sum(0) / count.sum()
        quantiles = {
            f"q{q:02d}": (count * np.array([row[f"stats/{name}/q{q:02d}"] for row in rows])).sum(0) / count.sum()
            for q in (1, 10, 50, 90, 99)
        }
        whole = {"min": of["min"].min(0), "max": of["max"].max(0), "mean": mean, "std": np.sqrt(variance), **quantiles}
        found[name] = {k: v.tolist() for k, v in whole.items()} | {"count": [int(of["count"].sum())]}
    return found
