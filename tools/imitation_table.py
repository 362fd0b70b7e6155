"""Writes the tables of imitation, in the README and in docs/results/imitation.md, from imitation.csv; adds runs to that.

    python tools/imitation_table.py                         rewrites what stands between the markers of both pages
    python tools/imitation_table.py --check                 says whether the pages are in step; exit status 1 if not
    python tools/imitation_table.py RUN .. --study images --demos 50 --commit 1a2b3c4 [--method "diffusion execute=4"]
                                                            first puts the runs' reported evaluations into the table

A row per evaluated policy. One of the same study, method, task, observations, head, seed, demonstrations and gradient steps is
replaced.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from difftop.stats import wilson

sys.path.insert(0, str(Path(__file__).resolve().parent))
from pages import ROOT, keep_in_step, line

RESULTS = ROOT / "docs" / "results" / "imitation.csv"
PAGES = (ROOT / "README.md", ROOT / "docs" / "results" / "imitation.md")
COLUMNS = (
    *(
        "study",
        "method",
        "task",
        "obs",
        "head",
        "seed",
        "demos",
        "grad_steps",
        "episodes",
        "success",
        "success_end",
        "violations",
    ),
    *("acc_mean", "acc_mean_to_success", "acc_max", "wall_s", "commit"),
)
METHODS = {  # of the README: column, and its methods in the table; the settings that the page recommends before those of before
    "LeTO": ("leto",),
    "DiffTOP": ("difftop_il",),
    "Diffusion Policy": ("diffusion batch=64", "diffusion execute=4 window=1", "diffusion", "diffusion pad=hold"),
    "ACT": ("act",),
    "RNN-GMM": ("rnn_gmm",),
    "BC": ("bc",),
}
OVERVIEW = ("limits", "base", "vectors", "images", "points")  # studies of the README's table
_KEY = ("study", "method", "task", "obs", "head", "seed", "demos", "grad_steps")
_BEGIN, _END = r"<!-- imitation: (\w+); python tools/imitation_table.py -->\n\n", r"\n<!-- end of imitation -->\n"
_MARKED = re.compile(f"({_BEGIN}).*?({_END})", re.DOTALL)

Row = dict[str, str]


def read(path: Path = RESULTS) -> list[Row]:
    """All rows."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def run_row(folder: Path, *, study: str, demos: int, commit: str, method: str = "") -> Row:
    """The row of a run's reported evaluation.

    Args:
        folder: of the run.
        study: table of the page that it belongs to.
        demos: demonstrations that it was trained on, held-out ones included.
        commit: that the run was made with.
        method: empty: the agent's name.
    Raises:
        FileNotFoundError: the run has no configuration, curves or evaluation.
    """
    config = json.loads((folder / "config.json").read_text())
    summary = json.loads((folder / "evaluation" / "summary.json").read_text())
    found = summary["metrics"]
    with (folder / "metrics.csv").open(newline="") as file:
        wall = max(float(row["wall_s"]) for row in csv.DictReader(file))
    episodes = int(found["episodes"])
    outside = [found[f"violations_{kind}"] for kind in ("velocity", "acceleration") if f"violations_{kind}" in found]
    numbers: dict[str, float | None] = {
        "grad_steps": summary["grad_steps"],
        "episodes": episodes,
        "success": round(found["success"] * episodes),
        "success_end": round(found["success_end"] * episodes),
        "violations": sum(outside) if outside else None,
        "acc_mean": found.get("acc_mean_lin"),
        "acc_mean_to_success": found.get("acc_mean_lin_to_success"),
        "acc_max": found.get("acc_peak_lin"),
        "wall_s": round(wall),
        "demos": demos,
        "seed": config["top"]["seed"],
    }
    texts = {"study": study, "method": method or config["agent"]["name"], "task": summary["task"], "head": summary["head"]}
    texts |= {"obs": config["env"]["obs"], "commit": commit}
    return texts | {name: _number(value) for name, value in numbers.items()}


def merged(old: Iterable[Row], new: Sequence[Row]) -> list[Row]:
    """Old rows with the new ones in their places, further ones at the end."""
    fresh = {tuple(row[column] for column in _KEY): row for row in new}
    rows = [fresh.pop(tuple(row[column] for column in _KEY), row) for row in old]
    return [*rows, *fresh.values()]


def table(rows: Sequence[Row], study: str) -> str:
    """A study's table in Markdown, without columns that are empty, or say the same in every row."""
    rows = [row for row in rows if row["study"] == study]
    if not rows:
        raise ValueError(f"study {study}: imitation.csv has no row of it.")
    tasks, methods = (list(dict.fromkeys(row[column] for row in rows)) for column in ("task", "method"))
    rows = sorted(rows, key=lambda row: (tasks.index(row["task"]), methods.index(row["method"]), int(row["grad_steps"])))
    columns: dict[str, Callable[[Row], str]] = {
        "task": lambda row: row["task"],
        "agent": lambda row: f"`{row['method']}`",
        "head": lambda row: f"`{row['head']}`",
        "demonstrations": lambda row: row["demos"],
        "gradient steps": lambda row: f"{int(row['grad_steps']):,}",
        "success (95 % Wilson interval)": success,
        "at the end": lambda row: _share(row["success_end"], row["episodes"]),
        "steps outside the limits": lambda row: f"{int(row['violations']):,}" if row["violations"] else "",
        "mean acceleration, 1e-2": lambda row: _hundredths(row["acc_mean"]),
        "up to success": lambda row: _hundredths(row["acc_mean_to_success"]),
        "training": lambda row: _minutes(row["wall_s"]),
    }
    cells = {head: [cell(row) for row in rows] for head, cell in columns.items()}
    same = ("head", "demonstrations", "gradient steps") if len(rows) > 1 else ()
    shown = [head for head, found in cells.items() if any(found) and not (head in same and len(set(found)) == 1)]
    lines = [line(shown), line(["---"] * len(shown))]
    lines += [line([cells[head][i] for head in shown]) for i in range(len(rows))]
    return "\n".join(lines) + "\n"


def overview(rows: Sequence[Row]) -> str:
    """The README's table: success of methods in the settings that are named above, the longest training of each on a task."""
    best: dict[tuple[str, str, str], Row] = {}
    for row in rows:
        key = (row["task"], row["obs"], row["method"])
        if row["study"] in OVERVIEW and row["head"] in ("", "none", "qp"):
            best[key] = max(best.get(key, row), row, key=lambda r: int(r["grad_steps"]))
    wanted = {column: methods for column, methods in METHODS.items() if any(key[2] in methods for key in best)}
    lines = [line(["task", "sees", *wanted]), line(["---", "---", *["---:"] * len(wanted)])]
    for task, obs in dict.fromkeys(key[:2] for key in best if any(key[2] in methods for methods in wanted.values())):
        found = [next((best[task, obs, m] for m in methods if (task, obs, m) in best), None) for methods in wanted.values()]
        lines.append(line([task, _SEES.get(obs, obs), *(_share(r["success"], r["episodes"]) if r else "—" for r in found)]))
    return "\n".join(lines) + "\n"


_SEES = {"state": "state", "low_dim": "state", "image": "one picture of 64 pixels", "pointcloud": "256 points"}


def success(row: Row) -> str:
    """Episodes that were solved, of how many, with the interval."""
    solved, episodes = int(row["success"]), int(row["episodes"])
    interval = wilson(solved, episodes)
    return f"{solved} of {episodes} ({100 * interval.low:.0f} to {100 * interval.high:.0f} %)"


def in_step(text: str, rows: Sequence[Row], page: str = "README.md") -> str:
    """A page with the tables of today.

    Raises:
        ValueError: it has no marker, or one of a study that isn't there.
    """
    if not _MARKED.search(text):
        raise ValueError(f"{page}: no line '<!-- imitation: STUDY; python tools/imitation_table.py -->' with an end below it.")

    def filled(found: re.Match[str]) -> str:
        study = found[2]
        return found[1] + (overview(rows) if study == "overview" else table(rows, study)) + found[3]

    return _MARKED.sub(filled, text)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}" if value % 1 else f"{value:.0f}"


def _share(part: str, of: str) -> str:
    return f"{100 * int(part) / int(of):.0f} %" if part else ""


def _hundredths(value: str) -> str:
    return f"{100 * float(value):.2f}" if value else ""


def _minutes(seconds: str) -> str:
    return f"{max(1, round(float(seconds) / 60))} min" if seconds else ""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, help="run folders to add")
    parser.add_argument("--study", default="", help="table of the page that they belong to")
    parser.add_argument("--demos", type=int, default=0, help="demonstrations that they were trained on")
    parser.add_argument("--commit", default="", help="that they were made with")
    parser.add_argument("--method", default="", help="default: the agent's name")
    parser.add_argument("--check", action="store_true", help="change nothing")
    options = parser.parse_args(arguments)
    if options.runs and not (options.study and options.demos):
        parser.error("runs want --study and --demos.")
    rows = read()
    if options.runs:
        told = {"study": options.study, "demos": options.demos, "commit": options.commit, "method": options.method}
        try:
            rows = merged(rows, [run_row(folder, **told) for folder in options.runs])
        except FileNotFoundError as error:
            sys.stderr.write(f"error: {error.filename}: no such file; give folders of runs whose evaluation has ended.\n")
            return 1
        with RESULTS.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    late = keep_in_step(
        PAGES, lambda text, name: in_step(text, rows, name), "python tools/imitation_table.py", check=options.check
    )
    return int(late > 0)


if __name__ == "__main__":
    sys.exit(main())
