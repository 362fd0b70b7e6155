"""The queue of training runs: the study's file, what comes next, halving, the report, and processes that fail or are stopped."""

from __future__ import annotations

import csv
import itertools
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from benchmarks import learning
from benchmarks.study import Cell, Study, read_study
from benchmarks.study_queue import Job, Records, costs, pending, ranking, read_rows, run_queue, survivors
from benchmarks.study_report import figures, point, report
from difftop.curves import read_tidy
from difftop.options import ConfigError
from difftop.stats import bootstrap
from tests.compare.folders import make_run

ROOT = Path(__file__).resolve().parents[1]
PLAIN: dict[str, Any] = {
    "settings": {"one": ["agent=tdmpc", "run.updates_per_step=1"], "two": ["agent=tdmpc", "run.updates_per_step=2"]},
    "tasks": ["dmc/walker-walk", "dmc/cheetah-run"],  # action repeat 2 and 4 by default
    "seeds": [2, 1],
    "frames": 400,
    "marks": [200],
    "episodes": 3,
    "common": ["preset=cpu", "device=cpu"],
}


def written(folder: Path, values: Mapping[str, Any]) -> Path:
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(dict(values)))
    return path


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return read_study(written(tmp_path_factory.mktemp("study"), PLAIN))


@pytest.fixture(scope="module")
def halving(tmp_path_factory: pytest.TempPathFactory) -> Study:
    settings = {name: ["agent=tdmpc", "run.updates_per_step=1"] for name in ("a", "b", "c", "d", "e")}
    rounds = [
        {"frames": 200, "seeds": [1]},
        {"frames": 400, "seeds": [1, 2], "keep": 0.5},
        {"frames": 800, "seeds": [1, 2], "keep": 0.3},
    ]
    values = {key: value for key, value in PLAIN.items() if key not in ("seeds", "frames", "marks")}
    return read_study(written(tmp_path_factory.mktemp("halving"), values | {"settings": settings, "rounds": rounds}))


def ran(study: Study, root: Path, cell: Cell, frames: int, scale: float = 1.0) -> None:
    """A finished run whose return is scale times frames, and which took a tenth of a second a frame."""
    steps = range(0, frames + 1, study.eval_every)
    folder = make_run(root, task=cell.task.replace("/", "-"), name=cell.setting, seed=cell.seed, frames=steps, scale=scale)
    assert folder == study.folder(cell, root)
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(
        text.replace('"top": {', f'"top": {{"name": "{cell.setting}", ').replace('"env": {', '"env": {"obs": "state", ')
    )
    saved = folder / "checkpoints" / f"step_{frames:09d}"
    saved.mkdir(parents=True)
    (folder / "checkpoints" / "last").symlink_to(saved.name)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"setings": {}}, "setings: unknown option"),
        ({"settings": {}}, "settings: there is none"),
        ({"settings": {"a b": []}}, "'a b' names folders"),
        ({"settings": {"a": ["agent.loss.learning_rat=1"]}}, "agent.loss.learning_rat: unknown option"),
        ({"settings": {"a": ["planner"]}}, "'planner' is no override"),
        ({"settings": {"a": ["run.frames=5"]}}, "run.frames=5 is set by the study itself"),
        ({"tasks": ["dmc/walker-wakl"]}, "Did you mean 'dmc/walker-walk'"),
        ({"tasks": []}, "tasks: there is none"),
        ({"seeds": [1, 1]}, "seeds: 1 is there twice"),
        ({"marks": [500]}, "marks: 500 is beyond the last frame, 400"),
        ({"marks": [399]}, "multiples of 1 only"),
        ({"order": "size"}, "must be seed or cost"),
        ({"episodes": 0}, "episodes"),
        ({"rounds": [{"frames": 200}]}, "frames: stands in each of the rounds"),
    ],
)
def test_a_bad_file_is_one_sentence(
    tmp_path: Path, change: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, PLAIN | change)
    assert learning.main([str(path), "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path}: ") and said in error and error.count("\n") == 1


def test_other_bad_files(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("settings: [")
    (tmp_path / "b.yaml").write_text("- 1")
    for name, said in {"a": "is not YAML", "b": "must hold settings", "c": "can't be read"}.items():
        with pytest.raises(ConfigError, match=said):
            read_study(tmp_path / f"{name}.yaml")
    with pytest.raises(ConfigError, match=r"--only three: not in the study\. There are: one, two"):
        read_study(written(tmp_path, PLAIN), only=["three"])
    with pytest.raises(ConfigError, match=r"rounds\[1\]\.frames=100: must not be below"):
        plain = {key: value for key, value in PLAIN.items() if key not in ("seeds", "frames", "marks")}
        read_study(written(tmp_path, plain | {"rounds": [{"frames": 200}, {"frames": 100}]}))


def test_a_part_of_the_seeds_leaves_none_of_the_rounds_empty(tmp_path: Path) -> None:
    plain = {key: value for key, value in PLAIN.items() if key not in ("seeds", "frames", "marks")}
    path = written(tmp_path, plain | {"rounds": [{"frames": 200, "seeds": [1]}, {"frames": 400, "seeds": [1, 2]}]})
    assert [r.seeds for r in read_study(path, seeds=[1]).rounds] == [[1], [1]]
    with pytest.raises(ConfigError, match="--seeds 2: leaves a round without seeds"):
        read_study(path, seeds=[2])


def test_the_study_of_the_evidence_has_the_papers_tasks() -> None:
    found = yaml.safe_load((ROOT / "benchmarks/studies/dmcontrol15.yaml").read_text())
    papers = yaml.safe_load((ROOT / "configs/experiment/difftori.yaml").read_text())["tasks"]
    assert found["tasks"] == list(papers) and len(papers) == 15
    assert found["frames"] == 100_000 and found["seeds"] == [1, 2, 3] and found["episodes"] == 20


def test_the_page_s_examples_are_studies(tmp_path: Path) -> None:
    whole, rounds = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/results/README.md").read_text(), re.DOTALL)
    values = yaml.safe_load(whole)
    assert read_study(written(tmp_path, values)).marks == [10_000, 30_000, 50_000]
    plain = {key: value for key, value in values.items() if key not in ("seeds", "frames")}
    assert read_study(written(tmp_path, plain | yaml.safe_load(rounds))).halving


def test_the_command_is_a_run_of_train_py(study: Study, tmp_path: Path) -> None:
    command = study.train(Cell("two", "dmc/walker-walk", 7), 400, tmp_path)
    assert command[:2] == [sys.executable, "train.py"]
    wanted = {"agent=tdmpc", "run.updates_per_step=2", "env=dmc/walker-walk", "name=two", "seed=7", "threads=1", "run.frames=400"}
    assert wanted | {"run.eval_every=200", "run.eval_episodes=3", f"root={tmp_path}"} <= set(command)


def test_the_order_is_seed_by_seed_and_the_cheapest_first(study: Study, tmp_path: Path) -> None:
    jobs = pending(study, Records(study, tmp_path), set())
    names = [(job.cell.seed, job.cell.setting, job.cell.task) for job in jobs]
    cheapest_first = [
        ("one", "dmc/cheetah-run"),
        ("two", "dmc/cheetah-run"),
        ("one", "dmc/walker-walk"),
        ("two", "dmc/walker-walk"),
    ]
    assert names == [(seed, *name) for seed in (2, 1) for name in cheapest_first]  # 100, 150 and 200, 300 steps and updates
    by_cost = replace(study, config=replace(study.config, order="cost"))
    costly = [job.cell.task for job in pending(by_cost, Records(study, tmp_path), set())]
    assert costly == ["dmc/cheetah-run"] * 4 + ["dmc/walker-walk"] * 4


def test_measured_times_replace_the_model(study: Study, tmp_path: Path) -> None:
    """A tenth of a second a frame: 40 s a run; what isn't timed itself goes by its setting, then by all."""
    ran(study, tmp_path, Cell("two", "dmc/cheetah-run", 2), 400)
    records = Records(study, tmp_path)
    jobs = pending(study, records, set())
    assert len(jobs) == 7 and Job(Cell("two", "dmc/cheetah-run", 2), 400, "train") not in jobs
    cost = {(job.cell.setting, job.cell.task, job.cell.seed): value for job, value in costs(study, records, jobs).items()}
    assert cost["two", "dmc/cheetah-run", 1] == pytest.approx(40)
    assert cost["two", "dmc/walker-walk", 1] == pytest.approx(80)  # twice the steps of cheetah-run
    assert cost["one", "dmc/cheetah-run", 1] == pytest.approx(40 * 2 / 3)  # 2 of 3 units per step


def test_a_run_is_finished_only_when_it_is_saved_after_its_last_evaluation(study: Study, tmp_path: Path) -> None:
    cell = Cell("one", "dmc/cheetah-run", 1)
    ran(study, tmp_path, cell, 400)
    records = Records(study, tmp_path)
    assert records.finished(cell, 400) and not records.finished(cell, 800)
    last = study.folder(cell, tmp_path) / "checkpoints" / "last"
    last.unlink()
    assert not records.finished(cell, 400)
    (last.parent / "step_000000100").mkdir()
    last.symlink_to("step_000000100")
    assert not records.finished(cell, 400)  # 200 agent steps were evaluated


def brute_force(scores: dict[str, list[float]], keep: int) -> list[str]:
    """The `keep` settings whose middle half is largest in sum, by trying all."""

    def middle(values: list[float]) -> float:
        cut = len(values) // 4
        return sum(sorted(values)[cut : len(values) - cut]) / (len(values) - 2 * cut)

    best = max(itertools.combinations(scores, keep), key=lambda names: sum(middle(scores[name]) for name in names))
    return sorted(best)


def test_halving_keeps_the_better_ones(halving: Study, tmp_path: Path) -> None:
    random, records = np.random.default_rng(3), Records(halving, tmp_path)
    scores: dict[str, list[float]] = {}
    for cell in halving.cells(list("abcde"), [1])[:-1]:
        scale = float(random.uniform(0, 2))
        ran(halving, tmp_path, cell, 200, scale)
        scores.setdefault(cell.setting, []).append(200 * scale)
    last = halving.cells(["e"], [1])[-1]
    assert survivors(halving, records, set()) == [list("abcde")]  # one run is missing: nothing is chosen yet
    assert [job.cell for job in pending(halving, records, set())] == [last]
    failed = {(last, 200)}
    scores["e"].append(0.0)  # a run that failed
    alive = survivors(halving, records, failed)
    assert len(alive) == 2 and sorted(alive[1]) == brute_force(scores, 3)  # half of five, rounded up
    assert [name for name, _ in ranking(halving, records, list("abcde"), [1], 200)][:3] == alive[1]
    jobs = pending(halving, records, failed)
    assert {job.cell for job in jobs} == set(halving.cells(alive[1], [1, 2])) and {job.frames for job in jobs} == {400}


def test_the_last_round_counts_all_seeds_of_the_round_before(halving: Study, tmp_path: Path) -> None:
    random, records = np.random.default_rng(5), Records(halving, tmp_path)
    for cell in halving.cells(["d", "e"], [1]):
        ran(halving, tmp_path, cell, 200, 0.0)
    scores: dict[str, list[float]] = {}
    for cell in halving.cells(["a", "b", "c"], [1, 2]):
        scale = float(random.uniform(1, 2))
        ran(halving, tmp_path, cell, 400, scale)
        scores.setdefault(cell.setting, []).append(400 * scale)
    assert survivors(halving, records, set())[2] == brute_force(scores, 1)  # 0.3 of three, rounded up


def test_the_report_is_right_and_its_table_is_read_back(study: Study, tmp_path: Path) -> None:
    scales = {cell: 0.5 * k + 1 for k, cell in enumerate(study.cells(["one"], [1, 2]))}
    for cell, scale in scales.items():
        ran(study, tmp_path, cell, 400, scale)
    ran(study, tmp_path, Cell("two", "dmc/walker-walk", 1), 200)
    records = Records(study, tmp_path)
    found = point(study, records, "one", 400)
    assert found.iqm is not None and (found.tasks, found.runs, found.minutes) == (2, 4, pytest.approx(40 / 60))
    assert found.iqm.point == pytest.approx((0.6 + 0.8) / 2)  # 0.4, 0.6, 0.8 and 1.0 without the ends
    strata = [[400 * scales[Cell("one", task, seed)] / 1000 for seed in study.seeds] for task in study.config.tasks]
    assert found.iqm == bootstrap(strata)
    assert point(study, records, "two", 200).iqm is None  # cheetah-run is missing
    files = report(study, records, tmp_path / "out" / "study")
    assert [file.suffix for file in files] == [".csv", ".md", ".png"] and files[2].stat().st_size > 5000
    page = files[1].read_text()
    assert f"0.700 [{found.iqm.low:.3f}, {found.iqm.high:.3f}], 4 runs" in page and "1 of 2 tasks" in page
    assert "**Unfinished: 4 of 8 runs.**" in page and "| dmc/walker-walk | 600 (2) | 200 at 200 (1) |" in page
    tidy = {(s.method, s.task, s.seed): s.rows[:, :2].tolist() for s in read_tidy(files[0])}
    assert tidy["one", "walker-walk", 2] == [[0, 0], [200, 400], [400, 800]] and len(tidy) == 5


def test_rows_of_another_machine_count_as_done(study: Study, tmp_path: Path) -> None:
    for cell in study.cells(["one", "two"], [1, 2])[:-1]:
        ran(study, tmp_path / "there", cell, 400, 2.0)
    table = tmp_path / "all.csv"
    table.write_text(
        "method,task,obs,seed,env_frames,return_mean,return_std,episodes,wall_s,commit\nother,walker-walk,state,1,0,5,,,,abc\n"
    )
    report(study, Records(study, tmp_path / "there"), tmp_path / "report", table)
    rows = read_rows(table)
    assert len(rows) == 1 + 7 * 3 and rows[-1]["commit"] == ""
    elsewhere = Records(study, tmp_path / "here", rows)
    assert [job.cell for job in pending(study, elsewhere, set())] == [Cell("two", "dmc/cheetah-run", 2)]
    longer = read_study(written(tmp_path, PLAIN | {"frames": 600}))
    assert len(pending(longer, replace(elsewhere, study=longer), set())) == 8
    # A report of the other folder keeps those rows, though a run has begun here.
    ran(study, tmp_path / "here", Cell("one", "dmc/cheetah-run", 1), 200)
    report(study, Records(study, tmp_path / "here"), tmp_path / "report", table)
    assert read_rows(table) == rows


def test_figures_of_a_diagnosis() -> None:
    nan = float("nan")
    measures = {"value_r2": [0.9, nan, 0.4, 0.6, 0.7, -5.0], "value_correlation": 0.5}
    assert figures({"measures": measures, "returns": {"prior": 10, "lm": 12, "mppi": 9}}) == [0.4, 0.5, 10, 12, 9]


def scripted(monkeypatch: pytest.MonkeyPatch, code: Callable[[Cell], str]) -> None:
    """Runs are these programs in place of train.py."""
    monkeypatch.setattr(Study, "train", lambda self, cell, frames, root: [sys.executable, "-c", code(cell)])


def test_a_failure_is_said_and_the_others_go_on(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = Cell("one", "dmc/walker-walk", 2)

    def code(cell: Cell) -> str:
        if cell == bad:
            return "import sys; print('error: no such thing'); sys.exit(2)"
        return f"open({str(tmp_path / 'begun')!r}, 'a').write({str(cell)!r} + chr(10))"

    scripted(monkeypatch, code)
    monkeypatch.setattr(Records, "finished", lambda self, cell, frames: str(cell) in begun(tmp_path))
    said: list[str] = []
    assert run_queue(study, Records(study, tmp_path), 2, said.append) == 1
    assert sorted(begun(tmp_path)) == sorted(str(cell) for cell in study.cells(["one", "two"], [1, 2]) if cell != bad)
    assert [line for line in said if line.startswith("failed")][1:] == [f"failed: {bad} to 400 frames"]
    assert any("exit status 2: error: no such thing" in line for line in said)
    ledger = list(csv.DictReader((tmp_path / "queue.csv").read_text().splitlines()))
    assert len(ledger) == 8 and [row["task"] for row in ledger if row["status"] == "2"] == ["dmc/walker-walk"]
    assert all(float(row["cpu_s"]) >= 0 and row["frames"] == "400" for row in ledger)


def begun(folder: Path) -> list[str]:
    path = folder / "begun"
    return path.read_text().splitlines() if path.exists() else []


def test_an_interrupt_lets_every_run_end_by_itself(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = str(tmp_path / "begun")
    code = (
        "import signal, sys, time\n"
        f"signal.signal(signal.SIGTERM, lambda *_: (open({mark!r}, 'a').write('saved\\n'), sys.exit(130)))\n"
        f"open({mark!r}, 'a').write('begun\\n')\n"
        "time.sleep(60)\n"
    )
    scripted(monkeypatch, lambda cell: code)
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if sum(text.startswith("train") for text in said) == 2 and line.startswith("train"):
            while begun(tmp_path).count("begun") < 2:
                time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGINT)

    assert run_queue(study, Records(study, tmp_path), 2, say) == 130
    assert sorted(begun(tmp_path)) == ["begun", "begun", "saved", "saved"]
    assert not any(line.startswith("failed") for line in said) and sum(line.startswith("stopped") for line in said) == 2


def test_a_run_that_ends_before_the_signal_reaches_it_is_written_down(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The status of a run that is over when the queue is told to stop is fetched once, by the queue."""
    scripted(monkeypatch, lambda cell: "pass")

    def say(line: str) -> None:
        if line.startswith("train"):
            time.sleep(1.0)  # it has ended, and nobody has asked for its status
            os.kill(os.getpid(), signal.SIGINT)

    assert run_queue(study, Records(study, tmp_path), 1, say) == 130
    ledger = list(csv.DictReader((tmp_path / "queue.csv").read_text().splitlines()))
    assert [row["status"] for row in ledger] == ["0"]


TOY = {
    "settings": {"lm": ["agent.policy_gradient.mode=none"], "prior": ["planner=none", "agent.policy_gradient.mode=none"]},
    "common": [
        *("run.seed_steps=50", "run.batch_size=8", "run.capacity=1000", "agent.model.mlp_dim=16", "agent.model.encoder_dim=16"),
        *("agent.model.latent_dim=8", "agent.acting.mppi.samples=16", "agent.acting.mppi.elites=4", "device=cpu"),
        "run.updates_per_step=1",
    ],
    "tasks": ["toy/point-mass"],
    "seeds": [1],
    "frames": 400,
    "marks": [200, 400],
    "episodes": 2,
    "diagnose": True,
    "diagnose_episodes": 2,
}


@pytest.mark.slow
def test_a_study_that_is_interrupted_goes_on_and_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    path = written(tmp_path, TOY)

    def started(root: str, *more: str) -> subprocess.Popen[str]:
        command = [sys.executable, "benchmarks/learning.py", str(path), "--root", str(tmp_path / root), "--jobs", "2", *more]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    first = started("stopped")
    tables = [tmp_path / "stopped" / "toy-point-mass" / "difftop_rl" / name / "seed1" / "eval.csv" for name in ("lm", "prior")]
    end = time.monotonic() + 300
    while not all(table.exists() and ",200," in table.read_text().replace("\n200,", ",200,") for table in tables):
        assert first.poll() is None and time.monotonic() < end
        time.sleep(0.1)
    first.send_signal(signal.SIGINT)
    out = first.communicate(timeout=300)[0]
    assert first.returncode == 130 and "stopping" in out, out
    for root in ("stopped", "whole"):
        run = started(root)
        out = run.communicate(timeout=600)[0]
        assert run.returncode == 0, out
    assert "done: diagnose" in out
    for table in tables:
        whole = Path(str(table).replace("/stopped/", "/whole/"))
        ours, theirs = (list(csv.DictReader(file.read_text().splitlines())) for file in (table, whole))
        assert [row["env_frames"] for row in ours] == ["0", "200", "400"]
        assert [row["return_mean"] for row in ours] == [row["return_mean"] for row in theirs]
    again = started("stopped", "--report")
    out = again.communicate(timeout=300)[0]
    assert again.returncode == 0, out
    page = (tmp_path / "stopped" / "report.md").read_text()
    assert "Unfinished" not in page and "## Diagnosis" in page and "| lm | toy/point-mass |" in page
