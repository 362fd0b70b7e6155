"""Sweeps through the command line: what a mistake says, every combination, and runs that are told apart by what is swept."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from difftop.command import main
from difftop.compare.config import StatusConfig
from difftop.compare.sweep import sweep_status
from difftop.curves import read_runs
from tests.run.test_session import ROOT, SMALL


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["env=dmc/walker-walk,dmc/walker-wlak"], "dmc/walker-wlak: unknown environment. Did you mean 'dmc/walker-walk'?"),
        (["agent=tdmpc,tdmcp"], "agent=tdmcp: unknown. Did you mean 'tdmpc'?"),
        (["run.frame=3", "seed=range(1,3)"], "run.frame: unknown option. Did you mean 'run.frames'?"),
    ],
)
def test_a_mistake_in_a_sweep_is_one_sentence_before_any_job(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], message: str
) -> None:
    assert main(["-m", f"root={tmp_path}", *overrides]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and message in said and said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_sweep_runs_every_combination_with_joblib(tmp_path: Path) -> None:
    sweep = ["-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=1,2", "agent=tdmpc,difftop_rl"]
    sweep += ["run.frames=25", "run.parallel=true"]
    small = [o for o in SMALL if "policy_gradient" not in o and not o.startswith("run.frames")]
    done = subprocess.run(
        [sys.executable, "train.py", *sweep, *small, f"root={tmp_path}"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = sorted(str(path.parent.relative_to(tmp_path)) for path in tmp_path.rglob("eval.csv"))
    assert found == [f"toy-point-mass/{agent}/default/seed{seed}" for agent in ("difftop_rl", "tdmpc") for seed in (1, 2)]


@pytest.mark.slow
def test_a_sweep_over_an_option_is_one_command_and_its_runs_can_be_played(tmp_path: Path) -> None:
    """Its jobs have folders of their own, which status, compare and plot tell apart."""
    rates = "agent.loss.learning_rate=1e-3,3e-4"
    small = [o for o in SMALL if not o.startswith("run.frames")] + ["run.frames=50", "run.video=false"]
    done = subprocess.run(
        [sys.executable, "train.py", "-m", rates, *small, f"root={tmp_path}"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    names = [f"agent.loss.learning_rate={rate}" for rate in ("1e-3", "3e-4")]
    found = sorted(path.parent.parent.name for path in tmp_path.rglob("eval.csv"))
    assert found == names
    status = sweep_status(StatusConfig(str(tmp_path)))
    assert [(run.name, run.state) for run in status] == [(name, "finished") for name in names]
    assert [curve.label for curve in read_runs([tmp_path])] == [f"difftop_rl {name}" for name in names]
    assert main(["mode=compare", f"runs={tmp_path}", f"out={tmp_path / 'report'}"]) == 0
    assert all(name in (tmp_path / "report" / "report.md").read_text() for name in names)
    folder = tmp_path / "toy-point-mass/difftop_rl" / names[1] / "seed1"
    assert main(["mode=eval", f"checkpoint={folder}", "run.eval_episodes=1", "run.video=false"]) == 0
    assert (folder / "eval" / "step_000000050-seed1" / "episodes.csv").is_file()
