"""The evidence in docs/results: tidy tables that the comparison reads whole, and a README that is in step with them."""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path

import pytest
import yaml

import difftop
from difftop.compare import compare, compare_config
from difftop.compare.curves import read
from difftop.compare.notes import LEFT_OUT
from difftop.curves import TIDY_COLUMNS, is_tidy
from tests.compare.folders import make_run

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
sys.path.insert(0, str(ROOT / "tools"))
import imitation_table  # noqa: E402
import readme_table  # noqa: E402
import tidy_results  # noqa: E402

TIDY = sorted(path for path in RESULTS.glob("*.csv") if is_tidy(path))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_evidence_is_in_few_files() -> None:
    assert {path.name for path in TIDY} >= {"dmcontrol.csv", "published.csv"}
    assert not [path for path in RESULTS.rglob("*") if path.is_dir() or path.suffix == ".html"]


@pytest.mark.parametrize("path", TIDY, ids=lambda path: path.name)
def test_a_table_has_the_columns_and_is_read_whole(path: Path) -> None:
    found = rows(path)
    assert tuple(found[0])[: len(TIDY_COLUMNS)] == TIDY_COLUMNS
    reading = read([path], [], min_coverage=0)
    assert [note for note in reading.notes if note.kind == LEFT_OUT] == []
    assert sum(len(s.steps) for curve in reading.curves for s in curve.seeds.values()) == len(found)


def test_the_report_is_made_again_by_one_command(tmp_path: Path) -> None:
    options = {"runs": str(RESULTS / "dmcontrol.csv"), "references": str(RESULTS / "published.csv"), "out": str(tmp_path)}
    report = compare(compare_config({"resamples": 100, **options}))
    tasks = {row["task"] for row in rows(RESULTS / "dmcontrol.csv")}
    assert report.tasks == len(tasks) and (tmp_path / "report.html").stat().st_size > 100_000


def test_the_readme_is_in_step_with_the_tables() -> None:
    text = (ROOT / "README.md").read_text()
    assert readme_table.in_step(text) == text, "run python tools/readme_table.py"
    assert readme_table.main(["--check"]) == 0
    # A row, worked out from the table by hand.
    found = [r for r in rows(RESULTS / "dmcontrol.csv") if r["method"] == "difftop_rl, first defaults" and r["seed"] == "1"]
    task = found[-1]["task"]
    last = max((r for r in found if r["task"] == task), key=lambda r: int(r["env_frames"]))
    line = next(line for line in text.splitlines() if line.startswith(f"| {task} | {int(last['env_frames']):,} |"))
    assert f"| {float(last['return_mean']):.0f} (" in line


def test_scores_are_at_100k_frames_or_before(tmp_path: Path) -> None:
    """A table made up by hand: one task whole, one that goes on, one of a baseline that ends earlier."""
    head = ",".join(TIDY_COLUMNS)

    def table(name: str, *lines: str) -> Path:
        (tmp_path / name).write_text("\n".join([head, *lines]) + "\n")
        return tmp_path / name

    def curve(method: str, task: str, seed: int, *points: tuple[int, float]) -> list[str]:
        return [f"{method},{task},state,{seed},{frames},{value},,,{frames / 100},x" for frames, value in points]

    ours = table(
        "ours.csv",
        *curve("difftop_rl", "cheetah-run", 1, (80_000, 1.0), (100_000, 600.0), (120_000, 900.0)),
        *curve("difftop_rl", "cheetah-run", 2, (80_000, 1.0), (100_000, 700.0)),
        *curve("difftop_rl", "cheetah-run", 3, (80_000, 1.0)),
        *curve("tdmpc", "cheetah-run", 1, (0, 0.0), (40_000, 50.0)),
        *curve("difftop_rl", "walker-run", 1, (20_000, 40.0), (40_000, 80.0)),
        *curve("difftop_rl other", "walker-walk", 1, (20_000, 40.0)),
    )
    theirs = table(
        "theirs.csv",
        *curve("tdmpc2", "cheetah-run", 1, (0, 0.0), (100_000, 500.0)),
        *curve("dreamerv3", "cheetah-run", 1, (99_000, 800.0), (101_000, 820.0)),
        *curve("tdmpc-original", "cheetah-run", 1, (0, 0.0), (500_000, 500.0)),  # no point near 100,000
    )
    text = readme_table.table(ours, theirs)
    assert "| cheetah-run | 100,000 | 650 (2) | 50 (1) at 40,000 | — | 500 (1) | 810 (DreamerV3) |" in text
    assert "| walker-run | 40,000 | 80 (1) | — | — | — | — |" in text and "walker-walk |" not in text
    assert (
        "on 1 of the papers' 15 tasks" in text and "Shorter: walker-run." in text and "Not run: cartpole-swingup-sparse" in text
    )
    assert "above TD-MPC2 on 1, at or above the best of them on 0; means: 650, TD-MPC2 500, the best of each task 810." in text
    assert "These 5 runs took 1 hour by" in text  # 1200 + 1000 + 800 + 400 + 400 s


def test_a_readme_without_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="wants a line '<!-- scores"):
        readme_table.in_step("# difftop\n")


def test_runs_become_rows_that_replace_those_of_the_same_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "study.csv"
    for seed in (1, 2):
        make_run(tmp_path / "runs", seed=seed, scale=seed)
    make_run(tmp_path / "runs", agent="difftop_rl", name="other")
    rename = ["--rename", "difftop_rl other=ours world_model=tdmpc2"]
    assert tidy_results.main([str(tmp_path / "runs"), "--out", str(out), "--commit", "abc", *rename]) == 0
    first = rows(out)
    assert {(r["method"], r["task"], r["seed"]) for r in first} == {
        ("tdmpc", "walker-walk", "1"),
        ("tdmpc", "walker-walk", "2"),
        ("ours world_model=tdmpc2", "walker-walk", "1"),
    }
    assert {r["commit"] for r in first} == {"abc"} and first[-1]["wall_s"] == "20" and first[-1]["agent_steps"] == "100"
    make_run(tmp_path / "again", seed=2, scale=7)
    assert tidy_results.main([str(tmp_path / "again"), "--out", str(out)]) == 0
    second = rows(out)
    assert len(second) == len(first)
    returns = {(r["method"], r["seed"]): float(r["return_mean"]) for r in second if r["env_frames"] == "200"}
    assert returns["tdmpc", "2"] == 1400 and returns["tdmpc", "1"] == 200
    assert [c.label for c in read([out], []).curves] == ["ours world_model=tdmpc2", "tdmpc"]
    assert tidy_results.main([str(tmp_path / "nowhere"), "--out", str(out)]) == 1
    assert "no eval.csv there" in capsys.readouterr().err


def test_the_citation_names_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["version"] == difftop.__version__ and citation["license"] == "MIT"


def test_links_of_the_notebook_lead_somewhere() -> None:
    notebook = json.loads((ROOT / "docs" / "quickstart.ipynb").read_text())
    text = "".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    missing = [target for target in re.findall(r"\]\(([^)#]+)\)", text) if not (ROOT / "docs" / target).exists()]
    assert missing == []


def test_tables_of_imitation_are_in_step() -> None:
    found = imitation_table.read()
    assert tuple(found[0]) == imitation_table.COLUMNS
    for page in (ROOT / "README.md", RESULTS / "imitation.md"):
        assert imitation_table.in_step(page.read_text(), found) == page.read_text(), "run python tools/imitation_table.py"
    shown = set(re.findall(r"<!-- imitation: (\w+);", (RESULTS / "imitation.md").read_text()))
    assert {row["study"] for row in found} <= shown, "a study that no page shows"
    # A row, worked out from the table by hand.
    row = next(r for r in found if r["method"] == "leto" and r["obs"] == "image" and int(r["grad_steps"]) == 3000)
    text = (RESULTS / "imitation.md").read_text()
    assert f"| `leto` | 3,000 | {row['success']} of {row['episodes']} (" in text.split("imitation: images;")[1].replace(
        " `qp` |", ""
    )


def _imitated(folder: Path, *, success: float, steps: int = 30) -> Path:
    (folder / "evaluation").mkdir(parents=True)
    config = {"top": {"seed": 3}, "agent": {"name": "leto"}, "env": {"obs": "image"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.csv").write_text("step,wall_s\n10,7.5\n20,61.2\n")
    metrics = {"success": success, "success_end": 0.25, "episodes": 8, "violations_velocity": 2.0, "violations_acceleration": 1.0}
    summary = {"task": "toy/made", "grad_steps": steps, "head": "qp", "metrics": metrics | {"acc_mean_lin": 0.012345}}
    (folder / "evaluation" / "summary.json").write_text(json.dumps(summary))
    return folder


def test_a_run_that_imitated_becomes_a_row(tmp_path: Path) -> None:
    told = {"study": "made", "demos": 5, "commit": "c0ffee"}
    row = imitation_table.run_row(_imitated(tmp_path / "a", success=0.875), **told)
    assert set(row) == set(imitation_table.COLUMNS)
    numbers = {key: row[key] for key in ("success", "success_end", "episodes", "violations", "wall_s", "acc_mean", "acc_max")}
    counts = {"success": "7", "success_end": "2", "episodes": "8", "violations": "3"}
    assert numbers == counts | {"wall_s": "61", "acc_mean": "0.01235", "acc_max": ""}
    again = imitation_table.run_row(_imitated(tmp_path / "b", success=0.5), **told)
    more = imitation_table.run_row(_imitated(tmp_path / "c", success=1.0, steps=60), **told)
    assert imitation_table.merged([row], [more, again]) == [again, more]
    lines = imitation_table.table([again, more], "made").splitlines()
    assert lines[0] == (
        "| task | agent | gradient steps | success (95 % Wilson interval) | at the end | steps outside the limits "
        "| mean acceleration, 1e-2 | training |"
    )
    assert lines[2] == "| toy/made | `leto` | 30 | 4 of 8 (22 to 78 %) | 25 % | 3 | 1.23 | 1 min |"
    with pytest.raises(ValueError, match="study other"):
        imitation_table.table([row], "other")


def test_the_overview_takes_the_longest_training_of_methods_as_they_come() -> None:
    def row(method: str, steps: int, success: int, **more: str) -> dict[str, str]:
        return dict.fromkeys(imitation_table.COLUMNS, "") | {
            "study": "images", "method": method, "task": "t", "obs": "image", "head": "none", "grad_steps": str(steps),
            "episodes": "50", "success": str(success),
        } | more  # fmt: skip

    found = [
        row("act", 10, 50), row("act", 200, 25), row("leto", 20, 30, head="qp"), row("act", 900, 1, head="clip"),
        row("leto memory=restart", 300, 1, head="qp"), row("bc", 10, 2, study="crops"),
        row("diffusion", 900, 20), row("diffusion batch=64", 400, 45),
    ]  # fmt: skip
    assert imitation_table.overview(found).splitlines()[2:] == ["| t | one picture of 64 pixels | 60 % | 90 % | 50 % |"]


def test_a_run_without_an_evaluation_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = imitation_table.RESULTS.read_text()
    folder = _imitated(tmp_path / "a", success=1.0)
    (folder / "evaluation" / "summary.json").unlink()
    assert imitation_table.main([str(folder), "--study", "made", "--demos", "5"]) == 1
    assert "summary.json: no such file" in capsys.readouterr().err
    assert imitation_table.RESULTS.read_text() == before
