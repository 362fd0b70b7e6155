"""What the comparison reads, and that nothing bad is read in silence or stops it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from difftop.compare import compare, compare_config
from difftop.compare.curves import Reading, read
from difftop.compare.notes import LEFT_OUT, UNEQUAL
from tests.compare.folders import curve_table, make_run, table


def texts(reading: Reading, kind: str = LEFT_OUT) -> dict[str, str]:
    return {note.subject: note.text for note in reading.notes if note.kind == kind}


def test_runs_tables_and_references_meet_on_one_task(tmp_path: Path) -> None:
    for seed in (1, 2):
        make_run(tmp_path / "runs", seed=seed, scale=seed)
    make_run(tmp_path / "runs", agent="difftop_rl", name="a")
    make_run(tmp_path / "runs", agent="difftop_rl", name="b")
    curve_table(tmp_path / "mine" / "sweep" / "walker-walk.csv", {1: [(0, 1), (100, 2)]})
    for task in ("walker-walk", "ball_in_cup-catch"):
        curve_table(tmp_path / "published" / "sac" / f"{task}.csv", {1: [(0, 1), (1000, 2)]})
    reading = read([tmp_path / "runs", tmp_path / "mine"], [tmp_path / "published"])
    found = {(c.task, c.label, c.reference): sorted(c.seeds) for c in reading.curves}
    assert found == {
        ("walker-walk", "difftop_rl a", False): [1],
        ("walker-walk", "difftop_rl b", False): [1],
        ("walker-walk", "sweep", False): [1],
        ("walker-walk", "tdmpc", False): [1, 2],
        ("walker-walk", "sac", True): [1],
    }
    assert reading.notes == [] and reading.unused == 1 and reading.folders == 4
    info = reading.runs["walker-walk", "tdmpc", 2]
    assert info.action_repeat == 2 and info.episodes == 2 and info.option("run.frames") == 200
    assert info.evaluations.tolist() == [[0, 0, 0], [100, 50, 10], [200, 100, 20]]


def test_an_alias_is_the_same_task_and_two_simulators_are_not(tmp_path: Path) -> None:
    make_run(tmp_path, task="dmc-cup-catch")
    curve_table(tmp_path / "published" / "sac" / "ball_in_cup-catch.csv", {1: [(0, 1)]})
    assert {c.task for c in read([tmp_path / "dmc-cup-catch"], [tmp_path / "published"]).curves} == {"cup-catch"}
    for name in ("dmc-ball_in_cup-catch", "cup-catch"):
        curve_table(tmp_path / "published" / "other" / f"{name}.csv", {1: [(0, 1)]})
    assert {c.task for c in read([tmp_path / "dmc-cup-catch"], [tmp_path / "published"]).curves} == {"cup-catch"}
    for family in ("maniskill", "metaworld"):
        make_run(tmp_path / "two", task=f"{family}-reach")
    assert {c.task for c in read([tmp_path / "two"], []).curves} == {"maniskill-reach", "metaworld-reach"}


def test_without_runs_the_references_are_compared(tmp_path: Path) -> None:
    for task in ("walker-walk", "walker-run"):
        for folder in ("state", "pixels"):
            curve_table(tmp_path / folder / "sac" / f"{task}.csv", {1: [(0, 1)]})
    curves = read([], [tmp_path]).curves
    assert {(c.task, c.label) for c in curves} == {
        (t, f"{f}/sac") for t in ("walker-walk", "walker-run") for f in ("state", "pixels")
    }


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("step,reward\n0,1\n", "has no column seed: its first line is 'step,reward', expected step,reward,seed"),
        ("", "has no column step, reward, seed: its first line is 'nothing', expected step,reward,seed"),
        ("step,reward,seed\n", "has no row that can be used"),
        (b"\x89PNG\r\n\x1a\n\x00\xff\xfe", "can't be read: it is not text"),
        ('"' + "x" * 200_000, "is not a table: field larger than field limit (131072)"),
        ("\0\0\0\n\0\n", "has no column step, reward, seed: its first line is '\ufffd\ufffd\ufffd', expected step,reward,seed"),
    ],
)
def test_a_bad_file_is_left_out_with_its_reason(tmp_path: Path, content: str | bytes, problem: str) -> None:
    good, bad = make_run(tmp_path / "runs"), table(tmp_path / "mine" / "x" / "walker-walk.csv", content)
    reading = read([good, tmp_path / "mine"], [])
    assert [c.label for c in reading.curves] == ["tdmpc"]
    assert texts(reading) == {str(bad): problem}


@pytest.mark.parametrize(
    ("rows", "kept", "problem"),
    [
        ("-100,5,1\n0,1,1\n", [0], "1 row left out; the first: step is -100: must be at least 0"),
        ("0,1,1\nten,2,1\n20,3,1\n", [0, 20], "1 row left out; the first: line 3: step is 'ten': must be a finite number"),
        ("0,1,1\n10,nan,1\n20,inf,1\n", [0], "2 rows left out; the first: line 3: reward is 'nan': must be a finite number"),
        ("0,1,1\n10,2\n", [0], "1 row left out; the first: line 3: seed is empty"),
        ("0,1,1\n10,,1\n", [0], "1 row left out; the first: line 3: reward is empty"),
        ("0,1,1\n10,2,1.5\n", [0], "1 row left out; the first: seed is not a whole number"),
    ],
)
def test_bad_rows_are_left_out_with_their_reason(tmp_path: Path, rows: str, kept: list[float], problem: str) -> None:
    path = table(tmp_path / "m" / "walker-walk.csv", "step,reward,seed\n" + rows)
    reading = read([path], [])
    assert reading.curves[0].seeds[1].steps.tolist() == kept
    assert texts(reading) == {str(path): problem}


def test_a_seed_that_is_there_twice_counts_once(tmp_path: Path) -> None:
    first, second = [(0, 1), (10, 2), (20, 3)], [(0, 5), (10, 6)]
    path = curve_table(tmp_path / "m" / "walker-walk.csv", {3: [*first, *second], 1: [(0, 0), (20, 0)]})
    reading = read([path], [])
    assert reading.curves[0].seeds[3].returns.tolist() == [1, 2, 3]
    assert texts(reading) == {f"{path}, seed 3": "it is there 2 times; the longest run counts and 2 rows do not"}


def test_a_continued_log_keeps_its_last_values_and_rows_out_of_order_are_sorted(tmp_path: Path) -> None:
    continued = curve_table(tmp_path / "m" / "walker-walk.csv", {1: [(0, 1), (10, 2), (20, 3), (10, 7), (20, 8)]})
    shuffled = curve_table(tmp_path / "m" / "walker-run.csv", {1: [(20, 3), (0, 1), (10, 2)]})
    reading = read([tmp_path], [])
    by_task = {c.task: c.seeds[1].returns.tolist() for c in reading.curves}
    assert by_task == {"walker-walk": [1, 7, 8], "walker-run": [1, 2, 3]}
    assert texts(reading) == {f"{continued}, seed 1": "2 of 5 rows repeat a step; the last value of each counts"}
    assert texts(reading, UNEQUAL) == {f"{shuffled}, seed 1": "its rows are not in order of their steps; they were sorted"}


def test_unfinished_empty_and_broken_runs_are_said(tmp_path: Path) -> None:
    unfinished = make_run(tmp_path, seed=1, frames=(0, 100))
    empty = make_run(tmp_path, seed=2, frames=())
    junk = make_run(tmp_path, seed=3)
    (junk / "config.json").write_text("{")
    broken = make_run(tmp_path, seed=4)
    (broken / "eval.csv").write_bytes(b"\xff\xfe\x00")
    never = make_run(tmp_path, seed=5)
    (never / "eval.csv").unlink()
    reading = read([tmp_path], [])
    assert sorted(reading.curves[0].seeds) == [1, 3]
    assert texts(reading, UNEQUAL) == {str(unfinished): "unfinished: evaluated up to 100 of 200 frames"}
    left = texts(reading)
    assert left[str(empty)] == "has no evaluation yet"
    assert left[str(junk / "config.json")].startswith("can't be read (Expecting property name")
    assert left[str(broken)] == "can't be read: it is not text"
    assert left[str(never)] == "can't be read: No such file or directory"


def test_missing_and_empty_folders_are_said(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    reading = read([tmp_path / "empty", tmp_path / "nowhere"], [])
    assert texts(reading) == {
        str(tmp_path / "empty"): "holds no run (a folder with eval.csv) and no CSV",
        str(tmp_path / "nowhere"): "is no file or folder",
    }


def test_short_seeds_are_left_out_unless_they_are_long_enough(tmp_path: Path) -> None:
    make_run(tmp_path, seed=1, frames=(0, 100, 200))
    make_run(tmp_path, seed=2, frames=(0, 50), config={"frames": 50})
    reading = read([tmp_path], [])
    assert sorted(reading.curves[0].seeds) == [1]
    assert texts(reading) == {
        "tdmpc on walker-walk, seed 2": "covers 50 of the 200 frames of its curve, less than min_coverage allows"
    }
    for options in ({"min_coverage": 0.2}, {"enough": 50.0}):
        assert sorted(read([tmp_path], [], **options).curves[0].seeds) == [1, 2]


def test_an_earlier_report_is_not_read(tmp_path: Path) -> None:
    make_run(tmp_path / "runs")
    options = {"runs": str(tmp_path), "out": str(tmp_path / "comparison"), "resamples": 100}
    first = compare(compare_config(options))
    written = first.markdown.read_bytes()
    again = compare(compare_config(options))
    assert (again.curves, again.tasks) == (1, 1) and again.markdown.read_bytes() == written


def test_training_tables_without_evaluations_are_named_by_their_run(tmp_path: Path) -> None:
    for task in ("dmc-walker-walk", "dmc-cup-catch"):
        for seed in (1, 2):
            (make_run(tmp_path, task=task, seed=seed) / "eval.csv").unlink()
    for config in tmp_path.rglob("config.json"):
        config.unlink()
    reading = read([tmp_path], [])
    assert {(c.task, c.label): sorted(c.seeds) for c in reading.curves} == {
        ("walker-walk", "tdmpc"): [1, 2],
        ("cup-catch", "tdmpc"): [1, 2],
    }
    assert set(texts(reading, UNEQUAL).values()) == {"holds training episodes, which explore, not evaluations"}


def test_a_run_that_has_just_begun_does_not_move_the_comparison(tmp_path: Path) -> None:
    make_run(tmp_path / "runs")
    make_run(tmp_path / "runs", agent="new", frames=(0,))
    report = compare(compare_config({"runs": str(tmp_path / "runs"), "out": str(tmp_path / "out"), "resamples": 100}))
    assert report.cuts[0].frames == 200
    left = {note.subject: note.text for note in report.notes if note.kind == LEFT_OUT}
    assert left == {"new on walker-walk": "has only its evaluation at 0 frames"}


def test_one_run_in_two_folders_counts_once_and_overlapping_paths_are_read_once(tmp_path: Path) -> None:
    short = make_run(tmp_path / "a", frames=(0, 150), config={"frames": 150})
    long = make_run(tmp_path / "b")
    reading = read([tmp_path, tmp_path / "b", long], [])
    assert reading.folders == 2 and reading.curves[0].seeds[1].steps[-1] == 200
    assert texts(reading) == {str(short): f"seed 1 of the same method and task is also in {long}, which is as long or longer"}


def test_a_moved_run_is_named_by_its_configuration_and_imitation_is_no_curve(tmp_path: Path) -> None:
    folder = make_run(tmp_path, seed=7)
    moved = folder.rename(tmp_path / "moved")
    config = json.loads((moved / "config.json").read_text())
    (curve,) = read([moved], []).curves
    assert (curve.task, curve.label, list(curve.seeds)) == ("walker-walk", "tdmpc", [7])
    (tmp_path / "saved").mkdir()
    moved = moved.rename(tmp_path / "saved" / "seed7")  # a seed's name, and no task's folder above it
    (curve,) = read([moved], []).curves
    assert (curve.task, curve.label, list(curve.seeds)) == ("walker-walk", "tdmpc", [7])
    (moved / "config.json").write_text(json.dumps(config | {"run": {"grad_steps": 100}}))
    reading = read([moved], [])
    assert reading.curves == [] and reading.imitators == [moved]


TIDY = """method,task,obs,seed,env_frames,return_mean,return_std,episodes,wall_s,commit
tdmpc,walker-walk,state,1,0,1,0.5,5,0,abc
tdmpc,walker-walk,state,1,100,2,0.5,5,10,abc
tdmpc,walker-walk,state,2,100,3,0.5,5,9,abc
tdmpc,walker-walk,state,2,0,1,0.5,5,0,abc
tdmpc,walker-walk,pixels,1,0,7,,,,
sac,cup-catch,,1,0,4,,,,
"""


def test_a_tidy_table_is_as_many_curves_as_it_has_methods_and_tasks(tmp_path: Path) -> None:
    path = table(tmp_path / "study.csv", TIDY)
    reading = read([path], [])
    assert {(c.task, c.label): {k: s.returns.tolist() for k, s in c.seeds.items()} for c in reading.curves} == {
        ("walker-walk", "tdmpc"): {1: [1, 2], 2: [1, 3]},
        ("walker-walk", "tdmpc pixels"): {1: [7]},
        ("cup-catch", "sac"): {1: [4]},
    }
    assert texts(reading) == {}
    assert texts(reading, UNEQUAL)[f"{path}, tdmpc on walker-walk, seed 2"].startswith("its rows are not in order")
    info = reading.runs["walker-walk", "tdmpc", 1]
    assert (info.episodes, info.option("env.obs"), info.action_repeat) == (5, "state", 0)
    assert info.evaluations[:, [0, 2]].tolist() == [[0, 0], [100, 10]]
    assert reading.runs["cup-catch", "sac", 1].evaluations.shape == (0, 3)


def test_a_tidy_table_stands_beside_runs_and_tells_the_action_repeat(tmp_path: Path) -> None:
    make_run(tmp_path / "runs", seed=3)
    columns = "method,task,seed,env_frames,return_mean,wall_s,agent_steps"
    path = table(tmp_path / "study.csv", f"{columns}\ntdmpc,dmc/walker-walk,1,200,5,20,50\n")
    reading = read([tmp_path / "runs", path], [])
    assert {c.label: sorted(c.seeds) for c in reading.curves} == {"tdmpc": [1], "tdmpc default": [3]}
    assert reading.runs["walker-walk", "tdmpc", 1].action_repeat == 4


def test_a_published_tidy_table_gives_the_tasks_that_runs_have(tmp_path: Path) -> None:
    make_run(tmp_path / "runs")
    reading = read([tmp_path / "runs"], [table(tmp_path / "published.csv", TIDY)])
    assert {(c.task, c.label, c.reference) for c in reading.curves} == {
        ("walker-walk", "tdmpc", False),
        ("walker-walk", "tdmpc", True),
        ("walker-walk", "tdmpc pixels", True),
    }
    assert all(label == "tdmpc" and seed == 1 for _, label, seed in reading.runs)


def test_bad_rows_of_a_tidy_table_are_left_out_and_said(tmp_path: Path) -> None:
    bad = ",walker-walk,state,1,0,1,,,,\ntdmpc,walker-walk,state,1.5,0,1,,,,\ntdmpc,walker-walk,state,1,200,nan,,,,\n"
    path = table(tmp_path / "study.csv", TIDY + bad)
    reading = read([path], [])
    assert texts(reading)[str(path)] == "3 rows left out; the first: line 8: method or task is empty"
    assert sum(len(s.steps) for c in reading.curves for s in c.seeds.values()) == 6
    empty = table(tmp_path / "empty.csv", TIDY.splitlines()[0] + "\n")
    assert texts(read([empty], [])) == {str(empty): "has no row that can be used"}


def test_a_report_is_made_of_a_tidy_table_as_of_its_runs(tmp_path: Path) -> None:
    for seed in (1, 2):
        make_run(tmp_path / "runs", seed=seed, scale=seed, name="x")
    rows = [f"tdmpc,walker-walk,{s},{f},{s * f},{f / 10},{f // 2}" for s in (1, 2) for f in (0, 100, 200)]
    path = table(tmp_path / "study.csv", "\n".join(["method,task,seed,env_frames,return_mean,wall_s,agent_steps", *rows]) + "\n")
    reports = [
        compare(compare_config({"runs": [str(p)], "out": str(tmp_path / p.stem / "out")})) for p in (tmp_path / "runs", path)
    ]
    first, second = ([(c.frames, {k: v.values.tolist() for k, v in c.scores.items()}) for c in r.cuts] for r in reports)
    assert first == second
