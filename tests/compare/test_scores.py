"""Scores, scales, aggregates and costs against values worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from difftop.compare.costs import cost, reached
from difftop.compare.curves import RunInfo, read
from difftop.compare.scores import Method, aggregate_curve, common_frames, cut_at, frames_for_all, scales, score_at
from difftop.curves import Curve, Series
from tests.compare.folders import make_run


def series(points: dict[float, float]) -> Series:
    return Series(np.array(list(points)), np.array(list(points.values())))


def curve(task: str, label: str, *seeds: dict[float, float], reference: bool = False) -> Curve:
    return Curve(task, label, {k: series(points) for k, points in enumerate(seeds)}, reference)


def test_a_score_is_an_evaluation_or_between_two_near_ones() -> None:
    s = series({0: 0, 100: 10, 110: 30, 1000: 50})
    assert score_at(s, 100, 0.25) == (10, False)
    assert score_at(s, 105, 0.25) == (20, True)
    assert score_at(s, 50, 0.25) is None and score_at(s, 500, 0.25) is None and score_at(s, 1001, 0.25) is None
    assert score_at(s, 50, 2.0) == (5, True)


def test_scales() -> None:
    curves = [
        curve("walker-walk", "a", {0: 5}),
        curve("hammer", "a", {0: 7}),
        curve("hammer", "pub", {0: 1, 10: 50}, {0: 1, 10: 30}, reference=True),
        curve("door", "a", {0: 7, 1: 3}),
        curve("cost", "a", {0: -7}),
    ]
    found = scales(curves)
    assert {task: scale.value for task, scale in found.items()} == {"walker-walk": 1000, "hammer": 40, "door": 7, "cost": None}
    assert "published" in found["hammer"].source and "none is published" in found["door"].source
    assert {scale.value for scale in scales(curves, 500).values()} == {500}
    apart = [curve("hammer", "a", {0: 1, 100: 9}, {110: 2, 180: 5})]
    assert scales(apart)["hammer"].value == 9 and "best return of a seed of ours" in scales(apart)["hammer"].source


@pytest.mark.parametrize("task", ["hopper-v4", "humanoid-v4", "point-mass", "reach", "door-open"])
def test_only_dm_control_has_its_scale(task: str) -> None:
    assert scales([curve(task, "a", {0: 3350})])[task].value == 3350
    assert scales([curve("hopper-hop", "a", {0: 3})])["hopper-hop"].value == 1000


def test_all_numbers_of_a_cut_are_of_the_same_tasks() -> None:
    curves = [
        curve("walker-walk", "a", {0: 0, 100: 400}, {0: 0, 100: 600}),
        curve("walker-run", "a", {0: 0, 100: 200}, {0: 0, 100: 200}),
        curve("walker-stand", "a", {0: 0, 100: 900}),
        curve("walker-walk", "b", {0: 0, 100: 100}, {0: 0, 100: 300}),
        curve("walker-run", "b", {0: 0, 100: 300}, {0: 0, 100: 300}),
        curve("walker-walk", "pub", {0: 0, 100: 1000}, reference=True),
        curve("walker-run", "far", {0: 0, 1000: 1000}, reference=True),
    ]
    cut = cut_at(curves, scales(curves), 100, resamples=200)
    a, b = Method(False, "a"), Method(False, "b")
    assert cut.tasks == ["walker-walk", "walker-run"] and list(cut.aggregates) == [a, b]
    assert cut.aggregates[a].mean.point == pytest.approx(0.35) and cut.aggregates[a].optimality_gap.point == pytest.approx(0.65)
    assert cut.aggregates[b].median.point == pytest.approx(0.25) and cut.aggregates[b].iqm.point == pytest.approx(0.3)
    assert cut.improvement[a, b].point == 0.5 and cut.improvement[b, a].point == 0.5
    said = {note.subject: note.text for note in cut.notes}
    assert said["walker-stand"] == "not in the aggregates at 100 frames, for want of a score of b"
    assert said["pub (published)"] == "not in the aggregates at 100 frames: has no score on some of their tasks"
    assert said["far (published)"] == "no score at 100 frames on 1 task (walker-run): no evaluation near enough"


def test_improvement_is_antisymmetric() -> None:
    curves = [curve("walker-walk", "a", {10: 1}, {10: 5}, {10: 6}), curve("walker-walk", "b", {10: 2}, {10: 5}, {10: 3})]
    cut = cut_at(curves, scales(curves), 10)
    a, b = (
        cut.improvement[pair] for pair in ((Method(False, "a"), Method(False, "b")), (Method(False, "b"), Method(False, "a")))
    )
    assert a.point == pytest.approx(5.5 / 9)
    assert (a.point, a.low, a.high) == pytest.approx((1 - b.point, 1 - b.high, 1 - b.low))
    assert a.low < a.point < a.high


def test_frames_for_all_have_scores_of_most() -> None:
    a = curve("walker-walk", "a", {0: 0, 50: 1, 100: 2, 150: 3})
    b = curve("walker-run", "a", {0: 0, 50: 1, 100: 2, 120: 3})
    assert common_frames([a, b]) == 120 and frames_for_all([a, b]) == 100
    assert frames_for_all([curve("t", "a", {0: 1})]) == 0


def test_the_aggregate_curve_is_the_iqm_of_all_seeds_on_their_common_range() -> None:
    curves = [
        curve("walker-walk", "a", {0: 0, 100: 100, 300: 300}, {0: 0, 200: 400}),
        curve("walker-run", "a", {100: 800, 200: 800}, {0: 0, 200: 200}),
    ]
    steps, point, low, high = aggregate_curve(curves, scales(curves), ["walker-walk", "walker-run"], resamples=200)
    assert steps.tolist() == [100, 200]
    assert point == pytest.approx([0.15, 0.3])  # of .1 .2 .8 .1 and of .2 .4 .8 .2, without the least and the most
    assert (low <= point).all() and (point <= high).all()


def test_the_aggregate_curve_meets_the_table_where_scores_are_compared() -> None:
    jagged = {float(f): 100 + 800 * (k % 2) for k, f in enumerate(range(0, 4_000_000, 10_000))}
    curves = [curve("walker-walk", "a", jagged, jagged), curve("walker-run", "a", jagged, jagged)]
    cut = cut_at(curves, scales(curves), 110_000, resamples=100)
    steps, point, _, _ = aggregate_curve(curves, scales(curves), cut.tasks, end=200_000, keep=[110_000], resamples=100)
    assert point[steps.tolist().index(110_000)] == cut.aggregates[Method(False, "a")].iqm.point == pytest.approx(0.9)
    assert steps[-1] == 200_000 and len(steps) == 21  # every evaluation in the range
    thinned = aggregate_curve(curves, scales(curves), cut.tasks, keep=[110_000], resamples=100, points=10)[0]
    assert len(thinned) == 11 and 110_000 in thinned


def test_a_task_with_one_seed_leaves_no_interval() -> None:
    curves = [curve("walker-walk", "a", {0: 0, 100: 100}, {0: 0, 100: 500}), curve("walker-run", "a", {0: 0, 100: 800})]
    _, point, low, high = aggregate_curve(curves, scales(curves), ["walker-walk", "walker-run"], resamples=200)
    assert (low == point).all() and (high == point).all()
    assert cut_at(curves, scales(curves), 100, resamples=100).seeds(Method(False, "a")) == (1, 2)


def test_frames_and_wall_clock_to_a_return(tmp_path: Path) -> None:
    for seed, scale in ((1, 1.0), (2, 2.0), (3, 0.1)):
        make_run(tmp_path, seed=seed, scale=scale)
    reading = read([tmp_path], [])
    (found,) = reading.curves
    runs = {seed: reading.runs["walker-walk", "tdmpc", seed] for seed in found.seeds}
    half = reached(found, runs, 150)
    assert (half.reached, half.seeds, half.frames, half.wall_s) == (2, 3, 200, 20)  # 200, 100 and never
    early = reached(found, runs, 100)
    assert (early.reached, early.frames, early.wall_s, early.tried) == (2, 100, 10, 200)
    uneven = curve("walker-walk", "a", {0: 0, 1000: 500}, {0: 0, 400: 450}, {0: 0, 600: 450})
    assert reached(uneven, {}, 500).tried == 400  # nobody knows what the second seed would have done after 400
    never = reached(found, runs, 300)
    assert (never.reached, never.frames, never.wall_s) == (1, None, None)
    assert reached(found, {}, 100).wall_s is None and reached(found, {}, 100).frames == 100


def played(folder: Path, update: float, act: float, *, episodes: int = 12, length: int = 50, seed_steps: int = 100) -> RunInfo:
    """Tables as the online loop would write them, at constant times: an episode, its gradient steps, at times an evaluation."""
    wall, owed, training, evaluations = 0.0, 0, [], []
    for k in range(1, episodes + 1):
        steps = k * length
        wall += length * (act if steps > seed_steps else 0.001)
        owed += length
        training.append((steps, wall - act))  # the row is written before the last step's time is added
        if steps >= seed_steps:
            wall, owed = wall + owed * update, 0
        if k % 4 == 0:
            evaluations.append((2 * steps, steps, wall))
            wall += 3.0
    config = {"run": {"seed_steps": seed_steps, "updates_per_step": 1.0, "num_envs": 1}}
    return RunInfo(folder, config, np.array(evaluations, dtype=float), np.array(training), 5)


def test_cost_of_a_gradient_step_and_of_an_action_are_recovered(tmp_path: Path) -> None:
    for update, act in ((0.020, 0.030), (0.002, 0.050)):
        run = played(tmp_path, update, act)
        found = cost(run)
        assert found.update_ms == pytest.approx(1e3 * update, rel=1e-6)
        assert found.act_ms == pytest.approx(1e3 * act, rel=1e-6)
        assert found.hours_per_100k == pytest.approx(run.evaluations[-1, 2] / 3600 * 1e5 / 1200)


def test_costs_that_cannot_be_told_are_none(tmp_path: Path) -> None:
    run = played(tmp_path, 0.02, 0.03)
    several = RunInfo(run.folder, {"run": run.config["run"] | {"num_envs": 4}}, run.evaluations, run.training, 5)
    assert cost(several).update_ms is None and cost(several).hours_per_100k is not None
    sparse = RunInfo(run.folder, {"run": run.config["run"] | {"log_every": 4}}, run.evaluations, run.training, 5)
    assert cost(sparse).update_ms is None and cost(run).update_ms is not None
    unknown = RunInfo(run.folder, {}, np.empty((0, 3)), np.empty((0, 2)), 0)
    assert cost(unknown).hours_per_100k is None and cost(unknown).act_ms is None
