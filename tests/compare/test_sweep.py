"""The status of a sweep."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from difftop.compare import StatusConfig, status_config, sweep_status, sweep_table
from tests.compare.folders import make_run


def states(runs: list) -> dict[tuple[str, str, int], str]:
    return {(run.task, run.agent, run.seed): run.state for run in runs}


def age(folder: Path, minutes: float) -> None:
    for file in folder.iterdir():
        os.utime(file, (time.time() - 60 * minutes,) * 2)


def test_every_state_is_told(tmp_path: Path) -> None:
    make_run(tmp_path, seed=1)
    make_run(tmp_path, seed=2, frames=(0, 100))
    age(make_run(tmp_path, seed=3, frames=(0, 100)), 90)
    failed = make_run(tmp_path, seed=4, frames=(0,))
    age(failed, 5)
    (failed / "nonfinite_batch.safetensors").write_bytes(b"")
    make_run(tmp_path, seed=1, task="dmc-cup-catch")
    runs = sweep_status(StatusConfig(str(tmp_path)))
    walker, cup = "dmc-walker-walk", "dmc-cup-catch"
    expected = {(walker, "tdmpc", k): s for k, s in ((1, "finished"), (2, "running"), (3, "stopped"), (4, "failed"))}
    expected |= {(cup, "tdmpc", 1): "finished"} | {(cup, "tdmpc", k): "missing" for k in (2, 3, 4)}
    assert states(runs) == expected
    second = next(run for run in runs if run.task == walker and run.seed == 2)
    assert (second.done, second.length, second.score, second.name) == (100, 200, 100, "default")
    text = sweep_table(runs, "runs")
    assert text.startswith("runs: 8 runs: 2 finished, 1 running, 1 stopped, 1 failed, 3 missing\n")
    assert len(text.splitlines()) == 11 and all(len(line) < 120 for line in text.splitlines())


def test_of_long_tables_the_end_is_enough(tmp_path: Path) -> None:
    """Rows that are cut by the place where reading begins, and columns that are empty at the end."""
    for seed, width in ((1, 1), (2, 3000)):
        folder = make_run(tmp_path, seed=seed, frames=range(0, 200))
        head = "env_frames,agent_steps,return_mean,return_std,success_mean,episodes,wall_s,more\n"
        rows = [f"{f},{f},{f / 2},1,,2,{f},{'x' * width}\n" for f in range(0, 199, 2)]
        (folder / "eval.csv").write_text(head + "".join(rows))
    for run in sweep_status(StatusConfig(str(tmp_path))):
        assert (run.done, run.score) == (199, 99.0)


def test_a_clock_that_jumped_back_is_no_error(tmp_path: Path) -> None:
    make_run(tmp_path, frames=(0, 100))
    (run,) = sweep_status(StatusConfig(str(tmp_path)), now=time.time() - 86400)
    assert (run.state, run.idle_min) == ("running", 0.0)


def test_a_sweep_may_be_named(tmp_path: Path) -> None:
    make_run(tmp_path, seed=1)
    make_run(tmp_path, seed=1, agent="other")
    config = status_config({"root": str(tmp_path), "tasks": ["dmc/walker-walk", "dmc/walker-run"], "agents": "tdmpc", "seeds": 1})
    assert states(sweep_status(config)) == {
        ("dmc-walker-walk", "tdmpc", 1): "finished",
        ("dmc-walker-run", "tdmpc", 1): "missing",
    }
    named = status_config({"root": str(tmp_path), "agents": "tdmpc/big", "seeds": [1]})
    assert states(sweep_status(named)) == {("dmc-walker-walk", "tdmpc", 1): "missing"}


def test_a_run_that_went_on_after_a_failure_has_not_failed(tmp_path: Path) -> None:
    folder = make_run(tmp_path, frames=(0, 100))
    (folder / "nonfinite_batch.safetensors").write_bytes(b"")
    os.utime(folder / "nonfinite_batch.safetensors", (time.time() - 600,) * 2)
    assert sweep_status(StatusConfig(str(tmp_path)))[0].state == "running"


def test_imitation_has_finished_when_it_has_reported(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    run = {"grad_steps": 200, "eval_episodes": -1}
    (folder / "config.json").write_text(json.dumps({"run": run}))
    assert sweep_status(StatusConfig(str(tmp_path)))[0].state == "running"
    (folder / "evaluation").mkdir()
    (folder / "evaluation" / "episodes.csv").write_text("")
    assert sweep_status(StatusConfig(str(tmp_path)))[0].state == "finished"


def test_broken_and_absent_files_are_no_error(tmp_path: Path) -> None:
    assert sweep_table(sweep_status(StatusConfig(str(tmp_path / "nowhere"))), "nowhere") == "nowhere: no run yet.\n"
    folder = make_run(tmp_path)
    (folder / "config.json").write_text("junk")
    (folder / "eval.csv").write_bytes(b"\xff\xfe")
    (run,) = sweep_status(StatusConfig(str(tmp_path)))
    assert (run.state, run.length, run.score) == ("running", 0, None)
