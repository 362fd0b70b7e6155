"""Nothing lost, counted: the endurance benchmark in small sizes, and that it can tell what falls short."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("pyarrow")
pytest.importorskip("clarabel")

from benchmarks import endurance_files, endurance_solvers
from benchmarks.endurance_rows import Row, Setting, table

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_nothing_falls_short_in_small_sizes(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/endurance.py", "--quick", "--root", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    assert len(rows) > 25 and all(line.endswith("| 0 |") for line in rows[1:])
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert again.returncode == 0 and again.stdout == done.stdout and "measured before" in again.stderr


def test_a_shortfall_is_an_exit_status(tmp_path: Path) -> None:
    kept = {"seed": 0, "seconds": 1.0, "rows": [vars(Row("eggs dropped", 3, "whole", 1))]}
    (tmp_path / "qps-seed0.json").write_text(json.dumps(kept))
    command = [sys.executable, "benchmarks/endurance.py", "--only", "qps", "--root", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1 and "| eggs dropped | 3 | whole | 2 | 1 |" in done.stdout
    wrong = subprocess.run([*command[:2], "--only", "qp"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert wrong.returncode == 2 and "no such item; there are kills, disk" in wrong.stderr


def test_a_table_is_markdown() -> None:
    text = table([Row("runs", 20_000, "equal", 0, "all"), Row("files", 300, "an error", 2, shown="280")])
    assert text.splitlines()[2:] == [
        "| runs | 20,000 | equal | 20,000 (all) | 0 |",
        "| files | 300 | an error | 280 | 2 |",
    ]


def test_damage_is_told_apart(tmp_path: Path) -> None:
    """Of a file without checksums: a flip in a number is seen as a change, one in the signature as an error."""
    target = endurance_files.TARGETS["others_hdf5"]
    (tmp_path / "whole").mkdir()
    target.write(tmp_path / "whole")
    expected = target.read(tmp_path / "whole")
    data = (tmp_path / "whole" / "demos.hdf5").read_bytes()
    value = endurance_files._recordings()[2].actions[4].tobytes()
    cases = {"changed": data.find(value) + 5, "error": 2}
    for outcome, place in cases.items():
        found, _ = endurance_files.outcome("others_hdf5", tmp_path, ("flip", 0, "demos.hdf5", place, 0), expected)
        assert found == outcome


def test_cases_are_a_function_of_the_seed(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    endurance_files.TARGETS["replay"].write(tmp_path / "whole")
    drawn = [endurance_files.cases("replay", tmp_path / "whole", Setting(tmp_path, False, seed)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2] and len(drawn[0]) == 350
    assert {case[2].rpartition("/")[2][:5] for case in drawn[0]} == {"rows_"}


def test_a_silent_violation_is_seen() -> None:
    _, p = next(iter(endurance_solvers.families(4, 0)))
    y = torch.zeros(4, p.hessian.shape[0], dtype=torch.float64)
    y[1, 0], y[2] = 2.0, torch.nan
    status = torch.tensor([0, 0, 2, 2])
    assert endurance_solvers._silent(p, y, status).tolist() == [False, True, False, True]
