"""Parquet files of a LeRobot data set: their checksums, and columns as arrays, several files ahead by threads."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from difftop.data.demonstrations import DemonstrationError
from difftop.data.extras import optional
from difftop.data.faults import Array
from difftop.data.seal import check_sum

ACTION, EPISODE = "action", "episode_index"
NOTHING: Mapping[str, Array] = {}
_BATCH_ROWS = 2**13
_AHEAD_BYTES = 2**22  # of files that are begun: small ones would leave the threads waiting for each other
# A piece of a column at a time: a file's columns as a whole are memory that the system has to clear first.
_READING = {"pre_buffer": False, "buffer_size": 2**18}


class Tables:
    """The Parquet files of one data set.

    Args:
        path: of the data set.
        features: by name, of meta/info.json.
        sums: SHA-256 of files where there is one, by their names in the data set.
        where: these are kept, for messages.
    """

    def __init__(self, path: Path, features: Mapping[str, Any], sums: Mapping[str, str], where: Path) -> None:
        self._arrow, self._parquet = (optional(name, f"{path}: a LeRobot data set") for name in ("pyarrow", "pyarrow.parquet"))
        self._features, self._where = features, where
        self._sums = {str(path / name): said for name, said in sums.items()}

    def table(self, path: Path, wanted: Callable[[str], bool] = lambda _: True) -> Any:
        """The columns of a file whose names are `wanted`, checked by all the checksums there are."""
        with self._opened(path) as file:
            return file.read([name for name in file.schema_arrow.names if wanted(name)])

    def columns(self, path: Path, names: set[str], old: Mapping[str, Array] = NOTHING) -> dict[str, Array]:
        """Columns `[R, ...]` of a file by name; those of a small file are views of what was decoded, and can't be written to.

        Memory is what takes the time, so they are read in batches (a whole table at once takes six times what its rows do), into
        the columns of another file, `old`, where these are large enough.
        """
        with self._opened(path) as file:
            rows, at, stored_names = file.metadata.num_rows, 0, file.schema_arrow.names
            kept = [name for name in stored_names if name in names]
            missing = sorted(names - set(kept))
            if missing:
                raise DemonstrationError(
                    f"{path}: no column {missing[0]!r}, which meta/info.json names; it has "
                    f"{', '.join(stored_names)}. Copy the data set again."
                )
            found: dict[str, Array] = {}
            for batch in file.iter_batches(_BATCH_ROWS, columns=kept, use_threads=False):
                for name in kept:
                    values = _array(batch[name], self._features.get(name, {}))
                    if batch.num_rows == rows:
                        found[name] = values
                        continue
                    stored = found[name] if name in found else _room(rows, values, old.get(name))
                    if stored.dtype != values.dtype:  # where numbers are missing, integers come as floats
                        stored = stored.astype(np.result_type(stored, values))
                    stored[at : at + len(values)] = values
                    found[name] = stored
                at += batch.num_rows
            return found or {name: np.zeros(0) for name in kept}

    def ahead(self, paths: Sequence[Path], names: set[str]) -> Iterator[dict[str, Array]]:
        """`columns` of each file, in order; while one is looked at, threads check and decode the next ones.

        They are valid until the next ones are asked for, but the actions stay.
        """
        threads = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1, 2)
        left: list[dict[str, Array]] = []  # columns that nobody looks at any more
        rest, begun = iter(paths), deque[Future[dict[str, Array]]]()
        largest = max((path.stat().st_size for path in paths if path.is_file()), default=1)
        with ThreadPoolExecutor(threads, "parquet") as pool:

            def begin(count: int) -> None:
                for path in islice(rest, count):
                    begun.append(pool.submit(self.columns, path, names, left.pop() if left else NOTHING))

            try:
                begin(max(threads, min(4 * threads, _AHEAD_BYTES // max(largest, 1))))
                while begun:
                    found = begun.popleft().result()
                    begin(1)
                    yield found
                    left.append({name: values for name, values in found.items() if name != ACTION})
            finally:  # nobody asks for more, or a file is damaged
                for future in begun:
                    future.cancel()

    def check(self, path: Path) -> None:
        """Compares a file with its checksum, where there is one."""
        said = self._sums.get(str(path))
        if said is not None:
            check_sum(path, said, str(self._where))

    @contextmanager
    def _opened(self, path: Path) -> Iterator[Any]:
        """A Parquet file; raises `DemonstrationError` where it is damaged, when opened or while it is read."""
        self.check(path)
        summed = str(path) in self._sums  # then its pages' own checksums needn't be compared
        try:
            with (
                self._arrow.OSFile(str(path)) as stored,
                self._parquet.ParquetFile(stored, page_checksum_verification=not summed, **_READING) as file,
            ):
                yield file
        except DemonstrationError:
            raise
        except (OSError, ValueError, KeyError, MemoryError, OverflowError, self._arrow.ArrowException) as error:
            reason = " ".join(str(error).split())
            raise DemonstrationError(f"{path}: not a whole Parquet file ({reason}); a download may be incomplete.") from error


def rows_by_episode(episode: Array) -> dict[int, Array | slice]:
    """Which rows of a file are of which episode, in their order; to look for them episode by episode is E times as much work.

    Where an episode's rows are one after another, as in every data set that LeRobot wrote, a slice copies nothing.
    """
    flat = episode.reshape(-1)
    if not flat.size:
        return {}
    if np.all(flat == flat[0]):
        return {int(flat[0]): slice(0, len(flat))}
    begins = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    if np.all(flat[begins - 1] < flat[begins]):  # one after another in order too, so that nothing has to be sorted
        ends = [0, *begins.tolist(), len(flat)]
        return {int(flat[a]): slice(a, b) for a, b in pairwise(ends)}
    order = np.argsort(flat, kind="stable")
    numbers, first = np.unique(flat[order], return_index=True)
    rows = dict(zip(map(int, numbers), np.split(order, first[1:]), strict=True))
    return {k: slice(int(r[0]), int(r[-1]) + 1) if int(r[-1]) - int(r[0]) == len(r) - 1 else r for k, r in rows.items()}


def _room(rows: int, like: Array, old: Array | None) -> Array:
    """Space for `rows` rows of the kind of `like`, in `old` if it fits and isn't a view of what was decoded."""
    if (
        old is not None
        and old.flags.writeable
        and len(old) >= rows
        and (old.dtype, old.shape[1:]) == (like.dtype, like.shape[1:])
    ):
        return old[:rows]
    return np.empty((rows, *like.shape[1:]), like.dtype)


def _array(column: Any, feature: Mapping[str, Any]) -> Array:
    """A column of a batch `[R, *shape]`; one number per row is `[R, 1]`."""
    rows, nested = len(column), column
    while hasattr(nested, "flatten") and str(nested.type).startswith(("list", "fixed_size_list", "large_list")):
        nested = nested.flatten()
    values: Array = nested.to_numpy(zero_copy_only=False)
    shape = tuple(feature.get("shape", ())) or (1,)
    if nested is column:
        return values.reshape(rows, 1) if feature.get("shape") else values
    return values.reshape(rows, *shape) if values.size == rows * int(np.prod(shape)) else values.reshape(rows, -1)
