"""Every benchmark starts by the command that the docs give."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted(path.name for path in (ROOT / "benchmarks").glob("*.py") if "__main__" in path.read_text())


def test_there_are_benchmarks() -> None:
    assert {"planner.py", "qp.py", "update.py", "compare.py"} <= set(SCRIPTS)


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_benchmark_explains_itself(script: str) -> None:
    done = subprocess.run(
        [sys.executable, f"benchmarks/{script}", "--help"], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout and len(done.stdout) > 200


# What docs/planner.md and docs/results quote of today's agents; the others need published tables, a GPU or other solvers.
QUICK = {
    "planner.py": (["--quick"], "over_hand_lm_b1"),
    "planner_quality.py": (["--quick"], "warm start, gain"),
    "planner_study.py": (["quick", "--jobs", "1", "--root", "ROOT"], '"planner": "papers-5"'),
    "loop.py": (["--quick"], "speedup_loop"),
    "update.py": (["--quick"], "policy_gradient_cost"),
    "status.py": (["--quick"], "seconds"),
    "scaling.py": (["--quick"], "replay alone, pixels"),
    "endurance.py": (["--quick"], "SIGKILL of offline runs"),
}


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("DIFFTOP_BENCHMARKS"), reason="minutes each, up to 20: set DIFFTOP_BENCHMARKS=1")
@pytest.mark.parametrize("script", QUICK)
def test_a_benchmark_runs_with_its_quick_setting(script: str, tmp_path: Path) -> None:
    if script == "loop.py" and subprocess.run(["git", "cat-file", "-e", "6dbe338"], cwd=ROOT, check=False).returncode:
        pytest.skip("the older tree is not in this checkout's history")
    options, last = QUICK[script]
    command = [sys.executable, f"benchmarks/{script}", *(str(tmp_path) if word == "ROOT" else word for word in options)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr
    assert last in done.stdout
