"""Statistics against enumeration and closed forms."""

import itertools
import math

import numpy as np
import pytest

from difftop.stats import (
    aggregates,
    bootstrap,
    iqm,
    mean,
    percentile_interval,
    probability_of_improvement,
    resample_counts,
    resampled_iqm,
    resampled_mean,
    wilson,
)


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


def test_counts_draw_as_many_as_there_are_within_each_stratum():
    counts = resample_counts([3, 5], resamples=4000)
    assert (counts[:, :3].sum(1) == 3).all() and (counts[:, 3:].sum(1) == 5).all()
    np.testing.assert_allclose(counts.mean(0), 1.0, atol=0.06)
    np.testing.assert_allclose(counts[:, :3].var(0), 2 / 3, atol=0.06)  # binomial: n p (1 - p), p = 1 / 3
    assert (resample_counts([3, 5], resamples=4000) == counts).all() and not (
        resample_counts([3, 5], seed=1) == counts[:2000]
    ).all()
    with pytest.raises(ValueError, match="read-only"):
        counts[0, 0] = 7


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 8, 13])
def test_resampled_statistics_are_those_of_the_resamples(n):
    random = np.random.default_rng(n)
    scores = random.normal(size=(n, 3)).round(1)  # with ties
    counts = resample_counts([n], resamples=50, seed=n)
    drawn = [np.repeat(scores, row.astype(int), axis=0) for row in counts]
    np.testing.assert_allclose(resampled_mean(scores, counts), [sample.mean(0) for sample in drawn], atol=1e-12)
    np.testing.assert_allclose(resampled_iqm(scores, counts), [iqm(sample.T) for sample in drawn], atol=1e-12)


def test_aggregates_equal_the_enumeration_of_all_resamples():
    strata = [[0.1, 0.4, 0.9], [0.2, 1.3]]
    found = aggregates(strata, resamples=60_000)
    every = {"iqm": [], "mean": [], "median": [], "optimality_gap": []}
    for a in itertools.product(strata[0], repeat=3):
        for b in itertools.product(strata[1], repeat=2):
            means = [np.mean(a), np.mean(b)]
            every["iqm"].append(float(iqm(np.array(a + b))))
            every["mean"].append(np.mean(means))
            every["median"].append(np.median(means))
            every["optimality_gap"].append(np.mean([np.mean(1 - np.minimum(x, 1)) for x in (np.array(a), np.array(b))]))
    assert found.iqm.point == pytest.approx(float(iqm(np.array(strata[0] + strata[1]))))
    assert found.mean.point == pytest.approx((1.4 / 3 + 0.75) / 2) and found.median.point == pytest.approx((1.4 / 3 + 0.75) / 2)
    assert found.optimality_gap.point == pytest.approx((1.6 / 3 + 0.4) / 2)
    for name, values in every.items():
        interval, exact = getattr(found, name), np.sort(values)
        for value, q in ((interval.low, 0.025), (interval.high, 0.975)):
            low, high = (np.quantile(exact, q + d, method=m) for d, m in ((-0.004, "lower"), (0.004, "higher")))
            assert low - 1e-9 <= value <= high + 1e-9, name


def test_the_median_is_over_tasks_and_a_short_task_weighs_as_much():
    found = aggregates([[0.0, 0.0, 0.0, 0.0], [0.5], [0.6, 0.8]])
    assert found.median.point == 0.5 and found.mean.point == pytest.approx((0 + 0.5 + 0.7) / 3)
    assert aggregates([[0.5]]).iqm == aggregates([[0.5]], seed=3).mean
    with pytest.raises(ValueError, match="bootstrap needs"):
        aggregates([])


def test_aggregates_agree_with_rliables_definitions_on_a_full_table():
    trim_mean = pytest.importorskip("scipy.stats").trim_mean
    table = np.random.default_rng(3).uniform(0, 1.4, size=(8, 5))  # runs x tasks, as rliable has them
    found = aggregates(list(table.T))
    assert found.iqm.point == pytest.approx(trim_mean(table, 0.25, axis=None))
    assert found.mean.point == pytest.approx(np.mean(np.mean(table, axis=0)))
    assert found.median.point == pytest.approx(np.median(np.mean(table, axis=0)))
    assert found.optimality_gap.point == pytest.approx(1.0 - np.mean(np.minimum(table, 1.0)))


def test_probability_of_improvement_is_the_mann_whitney_statistic():
    mannwhitneyu = pytest.importorskip("scipy.stats").mannwhitneyu
    random = np.random.default_rng(5)
    ours = [random.normal(0.3, 1, size=n).round(1) for n in (3, 7, 5)]
    theirs = [random.normal(0.0, 1, size=n).round(1) for n in (4, 2, 5)]
    expected = [mannwhitneyu(x, y).statistic / (len(x) * len(y)) for x, y in zip(ours, theirs, strict=True)]
    found = probability_of_improvement(ours, theirs)
    assert found.point == pytest.approx(np.mean(expected)) and found.low <= found.point <= found.high
    assert found == probability_of_improvement(ours, theirs) != probability_of_improvement(ours, theirs, seed=1)
    assert probability_of_improvement([[2.0, 3.0]], [[1.0, 1.5]]).low == 1.0
    with pytest.raises(ValueError, match="the same tasks, got 3 and 2"):
        probability_of_improvement(ours, theirs[:2])


def test_probability_of_improvement_resamples_both_sides():
    x, y = [1.0, 4.0, 6.0], [2.0, 5.0]
    every = [
        np.mean([(a > b) + 0.5 * (a == b) for a in xs for b in ys])
        for xs in itertools.product(x, repeat=3)
        for ys in itertools.product(y, repeat=2)
    ]
    found = probability_of_improvement([x], [y], resamples=60_000, confidence=0.8)
    for value, q in ((found.low, 0.1), (found.high, 0.9)):
        low, high = (np.quantile(every, q + d, method=m) for d, m in ((-0.006, "lower"), (0.006, "higher")))
        assert low - 1e-9 <= value <= high + 1e-9


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    random = np.random.default_rng(11)
    hits = 0
    for _ in range(300):
        scores = random.normal(0.5, 0.2, size=20)
        counts = resample_counts([20], resamples=500, seed=random)
        low, high = percentile_interval(resampled_mean(scores, counts))
        hits += int(low <= 0.5 <= high)
    assert 0.88 <= hits / 300 <= 0.98  # percentile intervals of 20 runs are a little too short
