"""Point clouds of a fixed size."""

from __future__ import annotations

import numpy as np

from envs.suites import Array

POINTS = 1024  # in an observation


def farthest_points(points: Array, count: int) -> Array:
    """Chooses points that cover a cloud evenly: each next one is the farthest from those chosen so far, the first is the first.

    Args:
        points: `[N, 3]`.
        count: how many to choose, P.
    Returns:
        `[P, 3]`, float32. Where N < P the cloud is repeated; where it is empty, zeros.
    """
    cloud = np.ascontiguousarray(points, np.float32)
    if len(cloud) <= count:
        return np.resize(cloud, (count, 3)) if len(cloud) else np.zeros((count, 3), np.float32)
    chosen = np.zeros(count, np.int64)
    distance = np.full(len(cloud), np.inf, np.float32)
    for k in range(1, count):
        offset = cloud - cloud[chosen[k - 1]]
        np.minimum(distance, np.einsum("nd,nd->n", offset, offset), out=distance)
        chosen[k] = distance.argmax()
    return cloud[chosen]
