"""Surveys of HDF5 files: vectors and actions are read, images only asked for their shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import h5py
import numpy as np

from difftop.data.faults import Array
from difftop.data.hdf5 import Source
from difftop.data.survey import Surveyor


def add_source(
    surveyor: Surveyor, file: Any, source: Source, *, rewards: str = "", success: bool | None = None, more: Mapping[str, str] = {}
) -> None:
    """Counts one episode.

    Args:
        surveyor: that counts.
        file: the open file.
        source: where the episode is.
        rewards: name of the dataset of rewards, empty for none.
        success: whether it was solved, None where nothing says so.
        more: further datasets by key, beside the observations.
    """
    vectors: dict[str, Array] = {}
    images: dict[str, tuple[tuple[int, ...], Any]] = {}
    for key, name in {**source.obs, **more}.items():
        found = file.get(name)
        if not isinstance(found, h5py.Dataset) or not found.shape:
            continue
        if len(found.shape) >= 4:
            images[key] = (found.shape, found.dtype)
        else:
            vectors[key] = found[()]
    earned = file.get(rewards) if rewards else None
    surveyor.add(
        source.name,
        _read(file.get(source.actions)),
        vectors,
        images,
        length=source.length,
        extra_rows=source.extra_rows,
        rewards=_read(earned),
        success=success,
    )


def _read(found: Any) -> Array | None:
    return np.asarray(found[()]) if isinstance(found, h5py.Dataset) and found.shape else None
