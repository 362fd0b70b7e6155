"""Observations of ManiSkill's, in simulator and file alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from envs.points import POINTS as POINTS
from envs.points import farthest_points
from envs.suites import Array

_FLOOR_M = 0.005  # points below are table or ground
_REACH_M = 1.0  # points farther from the world's origin to any side are background


def vectors(obs: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Keys joined by '/' and values of all that is neither camera nor point cloud, in the order of the file's keys."""
    for key in sorted(obs):
        if path or key not in ("sensor_data", "sensor_param", "pointcloud"):
            if isinstance(obs[key], Mapping):
                yield from vectors(obs[key], f"{path}{key}/")
            else:
                yield path + key, obs[key]


def chosen_points(xyzw: Array) -> Array:
    """`POINTS` points of robot and objects `[P, 3]` out of all pixels `[N, 4]`, whose w is 0 where the camera sees nothing."""
    inside = (xyzw[:, 3] > 0) & (xyzw[:, 2] > _FLOOR_M) & (np.abs(xyzw[:, :3]) < _REACH_M).all(1)
    return farthest_points(xyzw[inside, :3], POINTS)


def metres(depth: Array) -> Array:
    """Depths `[1, height, width]`, m, of ManiSkill's `[height, width, 1]`, whole mm, 0 where nothing is seen."""
    return np.divide(depth, 1000, dtype=np.float32).transpose(2, 0, 1)
