"""Trajectory metrics against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from difftop import metrics
from difftop.qp import TrajectoryLimits
from difftop.stats import wilson


def ramp() -> np.ndarray:
    """a_t = 0.05 t clipped to 1 in x only, T = 40: twenty steps of 0.05, then none."""
    actions = np.zeros((1, 40, 7))
    actions[0, :, 0] = np.minimum(0.05 * np.arange(40), 1.0)
    return actions


def test_ramp_in_x() -> None:
    found = metrics.acceleration_metrics(ramp())
    assert found["max_lin"] == pytest.approx(0.05 / 3)
    assert found["peak_lin"] == pytest.approx(0.05)
    assert found["mean_lin"] == pytest.approx(20 * 0.05 / 40 / 3)
    assert found["std_lin"] == pytest.approx(0.025 / 3)  # half of the steps 0.05, half 0
    assert all(found[f"{name}_rot"] == 0 for name in ("mean", "std", "max", "peak"))


def test_first_step_counts_against_zero_and_the_gripper_does_not() -> None:
    actions = np.zeros((1, 4, 7))
    actions[0, :, 1], actions[0, :, 6] = 0.6, [1, -1, 1, -1]
    found = metrics.acceleration_metrics(actions)
    assert found["max_lin"] == pytest.approx(0.6 / 3)
    assert found["mean_lin"] == pytest.approx(0.6 / 4 / 3)
    assert found["std_lin"] == pytest.approx(0.6 * math.sqrt(3) / 4 / 3)  # of (0.6, 0, 0, 0), ddof 0
    assert metrics.acceleration_metrics(actions, groups={"grip": (6,)})["mean_grip"] == pytest.approx((1 + 2 + 2 + 2) / 4)


def test_statistics_are_taken_per_episode_and_dimension_before_averaging() -> None:
    actions = np.zeros((2, 3, 6))
    actions[0, :, 3], actions[1, :, 4] = [0.3, 0.3, 0.0], [-0.9, -0.9, -0.9]  # |acc|: (.3, 0, .3) and (.9, 0, 0)
    found = metrics.acceleration_metrics(actions)
    assert found["max_rot"] == pytest.approx((0.3 + 0.9) / 6)
    assert found["peak_rot"] == pytest.approx(0.9)
    assert found["mean_rot"] == pytest.approx((0.2 + 0.3) / 6)
    assert found["std_rot"] == pytest.approx((0.3 * math.sqrt(2) / 3 + 0.9 * math.sqrt(2) / 3) / 6)
    assert metrics.acceleration_metrics(actions, dt=0.1)["max_rot"] == pytest.approx(10 * found["max_rot"])


def test_steps_after_success_are_left_out() -> None:
    steps = metrics.steps_to_success(np.array([20]), np.array([40]))
    assert steps.tolist() == [21]
    found = metrics.acceleration_metrics(ramp(), steps=steps)
    assert found["mean_lin"] == pytest.approx(20 * 0.05 / 21 / 3)
    assert metrics.steps_to_success(np.array([-1, 0, 4]), np.array([5, 5, 5])).tolist() == [5, 1, 5]
    with pytest.raises(ValueError, match="each must be -1"):
        metrics.steps_to_success(np.array([5]), np.array([5]))


def test_violations_are_counted_once_per_step() -> None:
    limits = TrajectoryLimits(3, 2, (0, 1), dt=0.5, acceleration_min=-0.2, acceleration_max=0.2)
    actions = np.zeros((2, 4, 3))
    actions[0, :, 0] = [0.1, 0.2, 0.35, 0.35]  # changes of at most 0.1 are allowed: step 2 is 0.05 too much
    actions[0, :, 1] = [0.0, 0.0, -0.3, -0.3]  # the same step, 0.2 too much: 0.4 in acceleration
    actions[0, :, 2] = [5, -5, 5, -5]
    actions[1, :, 1] = [0.1 + 1e-8, 0.0, 0.0, 1.25]
    found = metrics.limit_violations(actions, limits)
    assert found["velocity"] == metrics.Violations(1, 0.25)
    assert found["acceleration"].steps == 2 and found["acceleration"].worst == pytest.approx(2 * 1.15)
    until = metrics.limit_violations(actions, limits, steps=np.array([2, 3]))
    assert until["velocity"] == metrics.Violations(0, 0.0)
    assert until["acceleration"].steps == 0 and until["acceleration"].worst == pytest.approx(2e-8, rel=1e-6)
    assert (
        metrics.limit_violations(actions, limits, steps=np.array([2, 3]), tolerance=1e-9)["acceleration"].steps == 2
    )  # up and down
    assert set(found) == {"velocity", "acceleration"}


def test_positions_are_counted_by_the_rows_of_their_matrix() -> None:
    limits = TrajectoryLimits(2, 2, position_matrix=[[0, 1], [1, 1]], position_min=0.0475, position_max=[math.inf, 0.2])
    positions = np.array([[[0.0, 0.05], [0.1, 0.04], [0.2, 0.05]]])  # rows: (.05, .05), (.04, .14), (.05, .25)
    found = metrics.limit_violations(np.zeros((1, 3, 2)), limits, positions=positions)["position"]
    assert found.steps == 2 and found.worst == pytest.approx(0.05)
    with pytest.raises(ValueError, match="positions is missing"):
        metrics.limit_violations(np.zeros((1, 3, 2)), limits)


def test_contact_forces() -> None:
    forces = np.array([[0.0, 16.1, 3.0], [2.0, 1.0, 30.0]])
    assert metrics.contact_metrics(forces) == {"avg_max": pytest.approx(23.05), "peak": 30.0}
    assert metrics.contact_metrics(forces, steps=np.array([3, 2])) == {"avg_max": pytest.approx(9.05), "peak": 16.1}
    with pytest.raises(ValueError, match="magnitudes"):
        metrics.contact_metrics(-forces)


def test_summary_of_an_evaluation() -> None:
    actions = np.concatenate([ramp(), ramp()])
    limits = TrajectoryLimits(7, 6, range(6), acceleration_min=-0.1, acceleration_max=0.1)
    found = metrics.trajectory_metrics(
        actions, np.array([20, -1]), limits=limits, forces=np.ones((2, 40)), lengths=np.array([40, 30])
    )
    interval = wilson(1, 2)
    assert (found["success"], found["success_low"], found["success_high"]) == (0.5, interval.low, interval.high)
    assert found["acc_mean_lin"] == pytest.approx((1 / 40 + 1 / 30) / 2 / 3)
    assert found["acc_mean_lin_to_success"] == pytest.approx((1 / 21 + 1 / 30) / 2 / 3)
    assert found["violations_acceleration"] == found["violations_velocity_to_success"] == found["excess_velocity"] == 0
    assert found["contact_peak"] == found["contact_avg_max_to_success"] == 1
    assert all(f"{tag}_to_success" in found for tag in found if not tag.endswith("_to_success") and "success" not in tag)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\[N, T, A\]"):
        metrics.acceleration_metrics(np.zeros((4, 7)))
    with pytest.raises(ValueError, match="episode 0"):
        metrics.acceleration_metrics(np.full((1, 4, 7), np.nan))
    with pytest.raises(ValueError, match="from 1 to 4"):
        metrics.acceleration_metrics(np.zeros((1, 4, 7)), steps=np.array([0]))
    with pytest.raises(ValueError, match="must name actions"):
        metrics.acceleration_metrics(np.zeros((1, 4, 4)))
    padded = np.zeros((1, 4, 7))
    padded[:, 3] = np.nan
    assert metrics.acceleration_metrics(padded, steps=np.array([3]))["max_lin"] == 0


def test_metrics_of_single_episodes_combine_to_those_of_all() -> None:
    random = np.random.default_rng(0)
    actions, forces = random.normal(0, 0.4, size=(5, 12, 7)), random.uniform(0, 9, size=(5, 12))
    success, lengths = np.array([3, -1, 11, 0, 5]), np.array([12, 10, 12, 9, 12])
    limits = TrajectoryLimits(7, 6, range(6), acceleration_min=-0.5, acceleration_max=0.5)

    def of(rows: slice) -> dict[str, float]:
        return metrics.trajectory_metrics(
            actions[rows], success[rows], limits=limits, forces=forces[rows], lengths=lengths[rows]
        )  # fmt: skip

    every = of(slice(None))
    combined = metrics.combined([of(slice(i, i + 1)) for i in range(5)])
    assert combined == pytest.approx({tag: value for tag, value in every.items() if not tag.startswith("success")})
    assert metrics.combined([]) == {}
