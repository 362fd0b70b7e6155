"""Rotations as policies learn them, against SciPy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from difftop.poses import PoseRange, executed, learned, matrix_of, matrix_of_six, six_of, vector_of

ANGLES = [0.0, 1e-300, 1e-12, 1e-9, 1e-8, 1e-6, 1e-3, 0.5, 1.57, 3.0, np.pi - 1e-4, np.pi - 1e-7, np.pi - 1e-10, np.pi]


def vectors(angle: float, count: int = 200) -> np.ndarray:
    """Axis-angle of one angle, about random axes, the three of the frame and their sums."""
    axes = np.concatenate(
        [np.random.default_rng(0).normal(size=(count, 3)), np.eye(3), -np.eye(3), 1 - np.eye(3), np.ones((1, 3))]
    )
    return angle * axes / np.linalg.norm(axes, axis=1, keepdims=True)


@pytest.mark.parametrize("angle", ANGLES)
def test_axis_angle_to_matrix_and_back_are_scipys(angle: float) -> None:
    given = vectors(angle)
    matrix = matrix_of(given)
    np.testing.assert_allclose(matrix, Rotation.from_rotvec(given).as_matrix(), rtol=0, atol=3e-15)
    back = vector_of(matrix)
    # Rounding of a matrix moves a rotation by 1e-16; what it does to the vector is checked by the rotation that it stands for.
    np.testing.assert_allclose(matrix_of(back), matrix, rtol=0, atol=2e-15)
    assert (np.linalg.norm(back, axis=1) <= np.pi + 1e-15).all()
    if angle < np.pi - 1e-6:
        np.testing.assert_allclose(back, given, rtol=0, atol=3e-15)
        np.testing.assert_allclose(back, Rotation.from_matrix(matrix).as_rotvec(), rtol=0, atol=1e-14)


@pytest.mark.parametrize("angle", ANGLES)
def test_six_numbers_and_back(angle: float) -> None:
    matrix = Rotation.from_rotvec(vectors(angle)).as_matrix()
    six = six_of(matrix)
    np.testing.assert_array_equal(six[:, :3], matrix[:, :, 0])  # columns, as in the paper
    np.testing.assert_array_equal(six[:, 3:], matrix[:, :, 1])
    np.testing.assert_allclose(matrix_of_six(six), matrix, rtol=0, atol=1e-15)


def test_whatever_a_network_says_is_a_rotation() -> None:
    rng = np.random.default_rng(1)
    six = np.concatenate([rng.normal(size=(500, 6)), 1e-3 * rng.normal(size=(50, 6)), 1e3 * rng.normal(size=(50, 6))])
    matrix = matrix_of_six(six)
    np.testing.assert_allclose(matrix @ matrix.swapaxes(-1, -2), np.broadcast_to(np.eye(3), matrix.shape), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(matrix), 1, atol=1e-12)
    np.testing.assert_allclose(matrix[:, :, 0], six[:, :3] / np.linalg.norm(six[:, :3], axis=1, keepdims=True), atol=1e-14)
    assert (np.einsum("ni,ni->n", matrix[:, :, 1], six[:, 3:]) > 0).all()  # towards what it said
    assert (np.abs(np.einsum("ni,nij->nj", six[:, 3:], matrix)[:, 2]) < 1e-9).all()  # and in the plane of both columns


@pytest.mark.parametrize(
    "six", [[0.0] * 6, [1.0, 0, 0, 2.0, 0, 0], [0, 0, 0, 0, 1.0, 0], [1.0, 1, 1, -1, -1, -1], [0.0, 1, 0, 0, 0, 0]]
)
def test_six_numbers_without_direction_are_a_rotation_still(six: list[float]) -> None:
    matrix = matrix_of_six(np.array(six))
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(matrix) > 0 and np.isfinite(vector_of(matrix)).all()


@pytest.mark.parametrize("arms", [1, 2])
@pytest.mark.parametrize("angle", ANGLES)
def test_actions_of_all_arms_there_and_back(arms: int, angle: float) -> None:
    rng, turns = np.random.default_rng(2), vectors(angle)
    shape = (len(turns), arms)
    turns = np.stack([turns, turns[::-1]], 1)[:, :arms]  # every arm its own
    actions = np.concatenate([rng.normal(size=(*shape, 3)), turns, rng.choice([-1.0, 1.0], (*shape, 1))], -1).reshape(
        len(turns), -1
    )
    six = learned(actions)
    assert six.shape == (len(turns), 10 * arms)
    np.testing.assert_array_equal(six.reshape(*shape, 10)[..., [0, 1, 2, 9]], actions.reshape(*shape, 7)[..., [0, 1, 2, 6]])
    back = executed(six)
    ours, theirs = (Rotation.from_rotvec(x.reshape(-1, 7)[:, 3:6]) for x in (back, actions))
    assert (ours * theirs.inv()).magnitude().max() < 1e-14
    np.testing.assert_array_equal(
        np.delete(back.reshape(*shape, 7), [3, 4, 5], -1), np.delete(actions.reshape(*shape, 7), [3, 4, 5], -1)
    )


def test_two_vectors_that_are_far_apart_for_one_turn_are_learned_as_one() -> None:
    near = np.array([[np.pi - 1e-6, 0, 0], [-np.pi + 1e-6, 0, 0]])  # a hand that points down, from either side
    assert np.abs(np.diff(near, axis=0)).max() > 6
    actions = np.concatenate([np.zeros((2, 3)), near, np.ones((2, 1))], 1)
    assert np.abs(np.diff(learned(actions), axis=0)).max() < 1e-5


def test_a_range_is_written_and_read_and_scales_positions_only() -> None:
    low, high = [-0.1, 0.2, 0.8] + [-1.0] * 7, [0.3, 0.2, 1.1] + [1.0] * 7
    ranged = PoseRange(tuple(low), tuple(high), "base")
    assert PoseRange.read(ranged.text()) == ranged and ranged.arms == 1
    action = np.array([1.0, 0.7, -1.0, 1, 0, 0, 0, 1, 0, -1.0])
    np.testing.assert_allclose(ranged.executed(action), [0.3, 0.2, 0.8, 0, 0, 0, -1], atol=1e-15)
    for text in ("[1]", "{}", '{"low": [1], "high": [1], "frame": ""}', '{"low": [], "high": [], "frame": "up"}'):
        with pytest.raises(ValueError):
            PoseRange.read(text)
