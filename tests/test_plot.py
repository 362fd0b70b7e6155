"""Curves: what is read, how seeds are put together, and that bad tables are named."""

import logging

import numpy as np
import pytest
from matplotlib import image

from difftop import plot
from difftop.plot import Curve, CurveError, Series, main, plot_run, read_curve, read_references, read_runs
from difftop.plot_trajectory import plot_actions
from difftop.run.logger import RunLogger
from difftop.stats import bootstrap
from difftop.types import EnvSpec, ObsSpec


def make_run(root, *, task="dmc-walker-walk", agent="tdmpc", name="default", seed=1, frames=(0, 100, 200), scale=1.0):
    folder = root / task / agent / name / f"seed{seed}"
    logger = RunLogger(folder, seed=seed, tensorboard=False)
    for f in frames:
        logger.training(env_frames=f, agent_steps=f // 2, wall_s=0, episode_return=scale * f * 0.9, metrics={"loss": 1.0})
        logger.evaluation(
            env_frames=f, agent_steps=f // 2, wall_s=0, return_mean=scale * f, return_std=5.0, success_mean=None, episodes=2
        )
    return folder


def table(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_runs_are_grouped_by_task_agent_and_name(tmp_path):
    for seed in (1, 2):
        make_run(tmp_path, seed=seed, scale=seed)
        make_run(tmp_path, seed=seed, agent="difftop_rl")
    make_run(tmp_path, agent="difftop_rl", name="planner=none")
    make_run(tmp_path, task="dmc-cup-catch")
    curves = {(c.task, c.label): c for c in read_runs([tmp_path])}
    walker = "dmc-walker-walk"
    expected = [
        (walker, "tdmpc"),
        (walker, "difftop_rl default"),
        (walker, "difftop_rl planner=none"),
        ("dmc-cup-catch", "tdmpc"),
    ]
    assert curves.keys() == set(expected)
    seeds = curves[walker, "tdmpc"].seeds
    assert seeds[1].steps.tolist() == [0, 100, 200] and seeds[2].returns.tolist() == [0, 200, 400]


def test_summary_interpolates_within_each_seeds_own_range():
    curve = Curve(
        "t",
        "m",
        {1: Series(np.array([0.0, 100, 200]), np.array([0.0, 10, 20])), 2: Series(np.array([50.0, 150]), np.array([100.0, 200]))},
    )
    steps, point, low, high = curve.summary()
    assert steps.tolist() == [50, 100, 150]
    assert point.tolist() == [52.5, 80, 107.5]
    assert low.tolist() == [5, 10, 15] and high.tolist() == [100, 150, 200]


def test_a_table_may_be_unsorted_and_repeat_steps(tmp_path, caplog):
    path = table(tmp_path / "walker-walk.csv", "step,reward,seed\n100,5,2\n0,1,2\n100,7,2\n0,3,4\n")
    with caplog.at_level(logging.WARNING):
        curve = read_curve(path)
    assert curve.seeds[2].steps.tolist() == [0, 100] and curve.seeds[2].returns.tolist() == [1, 7]
    assert curve.seeds.keys() == {2, 4} and curve.task == "walker-walk"
    assert "seed 2: 1 of 3 rows repeat a step" in caplog.text


def test_of_two_runs_with_one_seed_the_longer_counts(tmp_path, caplog):
    make_run(tmp_path / "a", frames=(0, 100), scale=5)
    make_run(tmp_path / "b", frames=(0, 100, 200))
    make_run(tmp_path / "c", frames=(0, 100), scale=7)
    with caplog.at_level(logging.WARNING):
        (curve,) = read_runs([tmp_path])
    assert curve.seeds[1].returns.tolist() == [0, 100, 200]
    assert caplog.text.count("seed 1 is there twice") == 2


def test_references_are_found_by_task(tmp_path, caplog):
    for method in ("sac", "tdmpc2"):
        table(tmp_path / "r" / method / "walker-walk.csv", "step,reward,seed\n0,1,1\n")
        table(tmp_path / "r" / method / "walk.csv", "step,reward,seed\n0,1,1\n")
    with caplog.at_level(logging.WARNING):
        curves = read_references(tmp_path / "r", ["dmc-walker-walk", "dmc-cup-catch"])
    assert [(c.task, c.label, c.reference) for c in curves] == [("dmc-walker-walk", m, True) for m in ("sac", "tdmpc2")]
    assert "has no table for dmc-cup-catch" in caplog.text
    with pytest.raises(CurveError, match="is not a folder"):
        read_references(tmp_path / "nowhere", [])


@pytest.mark.parametrize(
    "text, message",
    [
        ("step,reward\n0,1\n", r"t.csv has no column seed: its first line is 'step,reward'"),
        ("", "t.csv has no column step, reward, seed: its first line is 'nothing'"),
        ("step,reward,seed\n0,1,1\n10,high,1\n", r"t.csv:3: reward is 'high': must be a finite number"),
        ("step,reward,seed\n0,nan,1\n", "holds no row"),
        ("step,reward,seed\n", "holds no row"),
        ("step,reward,seed\n0,1\n", "holds no row"),
    ],
)
def test_bad_tables_are_named(tmp_path, text, message, capsys):
    path = table(tmp_path / "t.csv", text)
    with pytest.raises(CurveError, match=message):
        read_curve(path)
    assert main([str(path), "--out", str(tmp_path / "o.png")]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert not (tmp_path / "o.png").exists()


@pytest.mark.parametrize("value", ["nan", "-inf"])
def test_a_row_that_is_not_finite_is_left_out_and_said(tmp_path, caplog, value):
    folder = make_run(tmp_path)
    with (folder / "eval.csv").open("a") as file:
        file.write(f"300,150,{value},nan,,2,0\n")
    with caplog.at_level(logging.WARNING):
        (curve,) = read_runs([tmp_path])
    assert curve.seeds[1].steps.tolist() == [0, 100, 200]
    assert f"eval.csv:5: return_mean is '{value}': must be a finite number. 1 of 4 rows left out." in caplog.text
    assert plot_run(folder).stat().st_size > 5000
    path = table(tmp_path / "t.csv", f"step,reward,seed\n0,1,1\n10,{value},1\n20,3,1\n")
    assert read_curve(path).seeds[1].steps.tolist() == [0, 20]


def test_folders_without_runs_are_named(tmp_path):
    with pytest.raises(CurveError, match=r"holds no eval.csv"):
        read_runs([tmp_path])
    with pytest.raises(CurveError, match=r"eval.csv can't be read: No such file"):
        plot_run(tmp_path)
    make_run(tmp_path, frames=())
    with pytest.raises(CurveError, match="no run has an evaluation yet"):
        read_runs([tmp_path])


def test_command_line_draws_runs_references_and_statistics(tmp_path, capsys):
    for task in ("dmc-walker-walk", "dmc-cup-catch"):
        for seed in (1, 2, 3):
            make_run(tmp_path / "runs", task=task, seed=seed, scale=seed)
    table(tmp_path / "r" / "sac" / "walker-walk.csv", "step,reward,seed\n0,1,1\n1000000,900,1\n")
    out = tmp_path / "new" / "curve.png"
    assert main([str(tmp_path / "runs"), "--references", str(tmp_path / "r"), "--out", str(out), "--statistic", "iqm"]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert out.read_bytes().startswith(b"\x89PNG") and [p.name for p in out.parent.iterdir()] == ["curve.png"]
    assert main([str(tmp_path / "runs"), "--out", str(tmp_path / "curve.docx")]) == 1
    assert not (tmp_path / ".writing_curve.docx").exists()
    capsys.readouterr()
    assert main([str(tmp_path / "runs"), "--out", str(tmp_path / "plain")]) == 0 and (tmp_path / "plain.png").exists()
    (tmp_path / "file").write_text("")
    for bad in (tmp_path / "file" / "c.png", tmp_path / "new.png"):
        (tmp_path / "new.png").mkdir(exist_ok=True)
        assert main([str(tmp_path / "runs"), "--out", str(bad)]) == 1
        assert capsys.readouterr().err.count("\n") == 1 and not list(tmp_path.glob(".writing*"))


def test_the_drawn_lines_are_the_data(tmp_path, monkeypatch):
    for seed in (1, 2):
        make_run(tmp_path / "runs", seed=seed, scale=seed)
    table(tmp_path / "r" / "sac" / "walker-walk.csv", "step,reward,seed\n0,1,1\n150,5,1\n1000000,900,1\n")
    table(tmp_path / "r" / "ppo" / "walker-walk.csv", "step,reward,seed\n0,1,1\n1000000,900,1\n")  # nothing in our range
    figures = []
    monkeypatch.setattr(plot, "_save", lambda figure, out: figures.append(figure) or out)
    curves = read_runs([tmp_path / "runs"]) + read_references(tmp_path / "r", ["dmc-walker-walk"])
    plot.plot_curves(curves, tmp_path / "o.png")
    (panel,) = figures[0].axes
    lines = {line.get_label(): line.get_ydata().tolist() for line in panel.lines if not line.get_label().startswith("_")}
    assert lines == {"tdmpc (2 seeds)": [0, 150, 300], "sac (published, 1 seed)": [1, 5, 900]}
    assert panel.get_xlim() == (0, 200)


def test_a_run_draws_its_own_curve(tmp_path):
    folder = make_run(tmp_path)
    assert plot_run(folder).read_bytes().startswith(b"\x89PNG")
    (folder / "metrics.csv").unlink()
    assert plot_run(folder, tmp_path / "x.svg").read_text().startswith("<?xml")


def test_a_seed_written_twice_counts_once(tmp_path, caplog):
    path = table(tmp_path / "t.csv", "step,reward,seed\n0,1,3\n10,2,3\n20,3,3\n0,7,3\n10,8,3\n")
    with caplog.at_level(logging.WARNING):
        curve = read_curve(path)
    assert curve.seeds[3].returns.tolist() == [1, 2, 3]
    assert "seed 3: it is there 2 times; the longest run counts and 2 rows do not" in caplog.text


def test_the_interval_is_the_bootstrap_of_each_column():
    random = np.random.default_rng(0)
    steps = np.arange(4.0)
    values = random.normal(size=(5, 4))
    curve = Curve("t", "m", {k: Series(steps, row) for k, row in enumerate(values)})
    for statistic in (plot.mean, plot.iqm):
        _, point, low, high = curve.summary(statistic, resamples=20_000)
        for column in range(4):
            expected = bootstrap([values[:, column]], statistic, resamples=20_000, seed=1)
            assert (point[column], low[column], high[column]) == pytest.approx(
                (expected.point, expected.low, expected.high), abs=0.05
            )


def test_seeds_without_a_common_range_have_no_curve():
    curve = Curve("t", "m", {1: Series(np.array([0.0, 1]), np.zeros(2)), 2: Series(np.array([2.0, 3]), np.zeros(2))})
    assert [len(part) for part in curve.summary()] == [0, 0, 0, 0]
    many = Curve("t", "m", {1: Series(np.arange(5000.0), np.zeros(5000))})
    steps, _ = many.common()
    assert len(steps) == 500 and (steps[0], steps[-1]) == (0, 4999)


STUDY = (
    "method,task,obs,seed,env_frames,return_mean\n"
    "tdmpc,walker-walk,state,1,0,1\ntdmpc,walker-walk,state,1,100,2\ntdmpc,cup-catch,state,1,0,1\ntdmpc,cup-catch,state,2,0,3\n"
    "tdmpc,cup-catch,state,1,100,1\ntdmpc,cup-catch,state,2,100,3\nother,walker-walk,state,1,0,1\n"
)


def test_a_tidy_table_is_drawn_beside_a_published_one(tmp_path, capsys, monkeypatch):
    drawn = []
    monkeypatch.setattr(plot, "_save", lambda figure, out: drawn.append(figure) or out)
    study = table(tmp_path / "study.csv", STUDY)
    near = "sac,walker-walk,state,1,0,1\nsac,walker-walk,state,1,50,1\n"
    far = "ppo,walker-walk,state,1,0,1\nppo,walker-walk,state,1,9000,1\n"
    published = table(tmp_path / "published.csv", STUDY.splitlines()[0] + "\n" + near + far)
    assert main([str(study), "--references", str(published), "--methods", "tdmpc"]) == 0
    (legend,) = drawn[0].legends
    # One line for a method, however its seeds differ between tasks; what has no point in our range isn't drawn.
    assert [text.get_text() for text in legend.get_texts()] == ["tdmpc (1 to 2 seeds)", "sac (published, 1 seed)"]
    assert main([str(study), "--methods", "tdmcp"]) == 1
    assert "--methods tdmcp: not there. There are: tdmpc, other." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("row", "message"),
    [(",a,state,1,0,1", "method or task is empty"), ("m,a,state,x,0,1", "seed is 'x': must be a whole number")],
)
def test_a_bad_row_of_a_tidy_table_is_named(tmp_path, row, message):
    path = table(tmp_path / "study.csv", STUDY + row + "\n")
    with pytest.raises(CurveError, match=f"study.csv:9: {message}"):
        read_runs([path])


@pytest.mark.parametrize("count", [1, 14])
def test_a_trajectory_shows_every_action_beside_the_curves(tmp_path, count):
    """Actions of two arms: the legend once took the room of the curves, and matplotlib warned."""
    spec = EnvSpec("toy/made", {"state": ObsSpec("vector", (3,))}, action_dim=count, episode_steps=30, control_dt_s=0.05)
    picture = plot_actions(tmp_path / "new" / "actions.png", np.sin(np.arange(30 * count).reshape(30, count)), None, spec, 20)
    seen = image.imread(picture)[..., :3].min(axis=2)
    columns = np.flatnonzero((seen < 0.9).any(axis=0))
    assert columns[0] < 0.1 * seen.shape[1] and columns[-1] < seen.shape[1] - 1  # from the left, and nothing is cut off
    bottom_axes = seen[int(0.7 * len(seen)) :, : int(0.7 * seen.shape[1])]
    assert (bottom_axes < 0.9).any(axis=0).mean() > 0.6
