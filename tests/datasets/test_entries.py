"""What `mode=data` tells of actions, against NumPy on all rows at once."""

from __future__ import annotations

import numpy as np
import pytest

from difftop.datasets import entries
from difftop.datasets.entries import BINS, summarize_actions

RNG = np.random.default_rng(0)
MOTION = RNG.uniform(-1, 1, (3000, 2))
GRIPPER = np.where(np.arange(3000) > 2000, 1.0, -1.0)[:, None]  # closes late: one value until then
CASES = {
    "an arm": np.concatenate([MOTION, GRIPPER, np.full((3000, 1), 0.3)], 1),
    "units of its own": np.concatenate([MOTION * 500 + 1000, GRIPPER], 1),
    "mostly idle": np.where(RNG.random((3000, 3)) < 0.7, 0.001, RNG.uniform(-1, 1, (3000, 3))),
    "one row": MOTION[:1],
}


@pytest.mark.parametrize("block", [8, 2**16])
@pytest.mark.parametrize("case", list(CASES))
def test_numbers_are_numpys_however_rows_are_cut(case: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entries, "_BLOCK", block)
    rows = CASES[case].astype(np.float32)
    broken = np.insert(rows, len(rows) // 2, np.nan, axis=0)  # left out
    found, idle = summarize_actions(np.array_split(broken, min(7, len(rows))))
    exact = rows.astype(np.float64)
    for i, entry in enumerate(found):
        values, size = exact[:, i], np.abs(rows[:, i])
        assert (entry.low, entry.high) == (values.min(), values.max())
        assert entry.mean == pytest.approx(values.mean(), abs=1e-9) and entry.std == pytest.approx(values.std(), abs=1e-9)
        assert entry.beyond == pytest.approx((size > 1 + 1e-6).mean())
        assert entry.at_limit == pytest.approx(((size >= 0.999) & (size <= 1 + 1e-6)).mean())
        counts, edges = np.histogram(values, BINS)
        np.testing.assert_allclose(entry.edges, edges)
        np.testing.assert_array_equal(entry.counts, counts)
        few = len(np.unique(np.round(rows[:, i], 3)))
        assert (entry.kind == "constant") == (few == 1) and (entry.kind == "gripper") == (few == 2)
    moving = [i for i, entry in enumerate(found) if entry.kind == "motion"]
    if case == "units of its own":
        span = np.ptp(exact[:, moving], axis=0)
        assert idle == pytest.approx((np.abs(np.diff(rows[:, moving], axis=0)) < 0.002 * span).all(1).mean())
    elif case != "one row":
        assert idle == pytest.approx((np.abs(rows[:, moving]) < 0.02).all(1).mean())
    assert case != "one row" or np.isnan(idle)


def test_without_a_finite_row_there_is_nothing() -> None:
    for actions in ([], [np.zeros((0, 3), np.float32)], [np.full((4, 2), np.inf, np.float32)]):
        found, idle = summarize_actions(actions)
        assert not found and np.isnan(idle)
