import numpy as np
import pytest

from envs.points import farthest_points


def brute_force(points, count):
    chosen = [0]
    while len(chosen) < count:
        distance = np.linalg.norm(points[:, None] - points[chosen], axis=-1).min(axis=1)
        chosen.append(int(distance.argmax()))
    return points[chosen]


@pytest.mark.parametrize(("size", "count"), [(40, 1), (40, 7), (41, 40), (300, 64)])
def test_each_point_is_the_farthest_from_those_before(size, count):
    points = np.random.default_rng(size).normal(size=(size, 3)).astype(np.float32)
    found = farthest_points(points, count)
    assert found.dtype == np.float32 and np.array_equal(found, brute_force(points, count))


def test_small_clouds_are_repeated_and_empty_ones_are_zeros():
    points = np.arange(9.0).reshape(3, 3)
    assert np.array_equal(farthest_points(points, 3), points)
    assert np.array_equal(farthest_points(points, 8), points[[0, 1, 2, 0, 1, 2, 0, 1]])
    assert np.array_equal(farthest_points(points[:0], 2), np.zeros((2, 3)))
