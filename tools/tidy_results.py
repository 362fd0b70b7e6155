"""Puts the evaluations of runs into the tidy table of a study, which mode=compare and difftop.plot read.

    python tools/tidy_results.py runs/dmc-walker-walk --out docs/results/dmcontrol.csv --commit 1a2b3c4
    python tools/tidy_results.py runs --out docs/results/dmcontrol.csv --rename "difftop_rl a-name=difftop_rl"

A row per evaluation. Rows that the table has of the same method, task, observations and seed are replaced, all others stay.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from difftop.curves import TIDY_COLUMNS, CurveError, identity, read_lines

FURTHER = {"success_mean": "success_mean", "agent_steps": "agent_steps", "step_from_prior": "eval/plan/step_from_prior"}
COLUMNS = (*TIDY_COLUMNS, *FURTHER)
_KEY = ("task", "method", "obs", "seed")
_DECIMALS = {"return_mean": 1, "return_std": 1, "wall_s": 0, "step_from_prior": 3}  # more would be noise

Row = dict[str, str]


def run_rows(folder: Path, *, commit: str = "", names: Mapping[str, str] | None = None) -> list[Row]:
    """Rows of one run's eval.csv.

    Args:
        folder: of the run; its config.json tells task, agent, name, observations and seed, its place what is missing there.
        commit: that the run was made with.
        names: method to write in place of `<agent> <name>`; without an entry the name `default` is dropped.
    Raises:
        CurveError: eval.csv is missing or no table.
    """
    header, lines = read_lines(folder / "eval.csv")
    place = identity(folder)
    path = folder / "config.json"
    config: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    agent, name = config.get("agent", {}).get("name") or place[1], config.get("top", {}).get("name") or place[2]
    method = (names or {}).get(f"{agent} {name}", agent if name in ("default", "auto") else f"{agent} {name}")
    task = config.get("env", {}).get("name") or place[0]
    common = {
        "method": method,
        "task": task.removeprefix("dmc/").removeprefix("dmc-"),
        "obs": config.get("env", {}).get("obs", ""),
    }
    common |= {"seed": str(config.get("top", {}).get("seed", place[3])), "commit": commit}
    rows = []
    for _, cells in lines:
        row = dict(zip(header, cells, strict=True))
        told = {column: row.get(column, "") for column in ("env_frames", "return_mean", "return_std", "episodes", "wall_s")}
        found = common | told | {column: row.get(source, "") for column, source in FURTHER.items()}
        rows.append({column: _short(value, _DECIMALS.get(column)) for column, value in found.items()})
    return rows


def _short(value: str, decimals: int | None) -> str:
    return value if decimals is None or not value else f"{float(value):.{decimals}f}"


def merged(old: Iterable[Row], new: Sequence[Row]) -> list[Row]:
    """Old rows and new ones in order, the new in place of the old of the same run."""
    replaced = {tuple(row[column] for column in _KEY) for row in new}
    kept = [row for row in old if tuple(row[column] for column in _KEY) not in replaced]
    return sorted(
        [*kept, *new], key=lambda row: (row["task"], row["method"], row["obs"], int(row["seed"]), float(row["env_frames"]))
    )


def written(rows: Sequence[Row]) -> str:
    """The table, without further columns that are empty throughout."""
    columns = [c for c in COLUMNS if c in TIDY_COLUMNS or any(row.get(c) for row in rows)]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders, or folders above them")
    parser.add_argument("--out", type=Path, required=True, help="tidy table; made, or added to")
    parser.add_argument("--commit", default="", help="that the runs were made with; default unknown")
    parser.add_argument("--rename", action="append", default=[], metavar="AGENT NAME=METHOD", help="may be repeated")
    options = parser.parse_args(arguments)
    names = dict(rule.split("=", 1) for rule in options.rename)
    try:
        folders = sorted(file.parent for path in options.runs for file in path.rglob("eval.csv"))
        if not folders:
            raise CurveError(f"{', '.join(map(str, options.runs))}: no eval.csv there; give run folders or folders above them.")
        new = [row for folder in folders for row in run_rows(folder, commit=options.commit, names=names)]
        old: list[Row] = []
        if options.out.is_file():
            header, lines = read_lines(options.out)
            old = [dict(zip(header, cells, strict=True)) for _, cells in lines]
    except CurveError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(written(merged(old, new)))
    sys.stdout.write(f"{len(new)} evaluations of {len(folders)} runs: {options.out}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
