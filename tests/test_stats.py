"""Statistics against enumeration and closed forms."""

import itertools
import math

import numpy as np
import pytest

from difftop.stats import bootstrap, iqm, mean, wilson


def test_iqm_is_scipys_trimmed_mean():
    trim_mean = pytest.importorskip("scipy.stats").trim_mean
    random = np.random.default_rng(0)
    for n in range(1, 30):
        scores = random.normal(size=(4, n))
        np.testing.assert_allclose(iqm(scores), trim_mean(scores, 0.25, axis=-1), rtol=1e-12)


@pytest.mark.parametrize("statistic", [mean, iqm])
def test_bootstrap_equals_the_enumeration_of_all_resamples(statistic):
    strata = [[1.0, 4.0, 9.0], [20.0, 23.0]]
    every = [
        float(statistic(np.array(a + b)))
        for a in itertools.product(strata[0], repeat=3)
        for b in itertools.product(strata[1], repeat=2)
    ]
    interval = bootstrap(strata, statistic, resamples=200_000, confidence=0.8)
    assert interval.point == float(statistic(np.concatenate(strata)))
    exact = np.sort(every)
    # The quantile of a discrete distribution: allow the atoms next to it, for the sampling noise of 200,000 resamples.
    for value, q in ((interval.low, 0.1), (interval.high, 0.9)):
        assert (
            np.quantile(exact, q - 0.005, method="lower") - 1e-9 <= value <= np.quantile(exact, q + 0.005, method="higher") + 1e-9
        )


def test_bootstrap_of_the_mean_is_near_the_normal_interval():
    scores = np.random.default_rng(1).normal(5, 2, size=400)
    interval = bootstrap([scores], mean, resamples=20_000)
    half = 1.96 * scores.std() / math.sqrt(400)
    assert interval.low == pytest.approx(scores.mean() - half, abs=0.02)
    assert interval.high == pytest.approx(scores.mean() + half, abs=0.02)


def test_strata_are_resampled_apart():
    interval = bootstrap([[1.0, 1.0], [1000.0, 1000.0, 1000.0]], mean)
    assert interval.low == interval.point == interval.high == pytest.approx(600.4)
    assert bootstrap([[1.0, 2.0]], seed=1) == bootstrap([[1.0, 2.0]], seed=1)


@pytest.mark.parametrize("strata", [[], [[]], [[1.0], []], [[1.0, math.nan]]])
def test_bootstrap_refuses_what_it_cannot_resample(strata):
    with pytest.raises(ValueError, match="bootstrap needs"):
        bootstrap(strata)


def test_wilson_solves_its_equation():
    z = 1.959963984540054
    for trials in (1, 5, 50, 1000):
        for successes in {0, 1, trials // 3, trials - 1, trials}:
            interval = wilson(successes, trials)
            for p in (interval.low, interval.high):
                distance = abs(interval.point - p)
                assert distance == pytest.approx(z * math.sqrt(max(0.0, p * (1 - p)) / trials), abs=1e-7)
    # Newcombe (1998), table I: 81 of 263, and 0 of 20
    assert [round(v, 4) for v in (wilson(81, 263).low, wilson(81, 263).high)] == [0.2553, 0.3662]
    assert [round(v, 4) for v in (wilson(0, 20).low, wilson(0, 20).high)] == [0.0, 0.1611]


@pytest.mark.parametrize("successes, trials", [(1, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_impossible_counts(successes, trials):
    with pytest.raises(ValueError, match=f"{successes} successes of {trials} trials"):
        wilson(successes, trials)
