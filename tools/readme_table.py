"""Writes the scores of the README and of docs/results/dmcontrol.md, and their picture, from the tidy tables in docs/results.

    python tools/readme_table.py           rewrites what stands between the markers of both pages, and dmcontrol.png
    python tools/readme_table.py --check   says whether the pages are in step; exit status 1 if not

Ours are scored at 100,000 frames, or at the last evaluation before them that some seed of the method has; seeds that end earlier
are left out. Published ones are scored at 100,000 frames.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from difftop.compare.notes import listed, plural
from difftop.compare.scores import score_at
from difftop.curves import Curve, read_references, read_study
from difftop.plot import plot_curves

sys.path.insert(0, str(Path(__file__).resolve().parent))
from pages import ROOT, keep_in_step, line

RESULTS, PUBLISHED = ROOT / "docs" / "results" / "dmcontrol.csv", ROOT / "docs" / "results" / "published.csv"
PICTURE = ROOT / "docs" / "results" / "dmcontrol.png"
PAGES = (ROOT / "README.md", ROOT / "docs" / "results" / "dmcontrol.md")
BEGIN, END = "<!-- scores: python tools/readme_table.py -->\n\n", "\n<!-- end of scores -->\n"
OURS = {  # method in the table of results, to the head of its column
    "difftop_rl": "DiffTOP",
    "difftop_rl, first defaults": "DiffTOP, first defaults",
    "difftop_rl world_model=tdmpc2": "DiffTOP on TD-MPC2's model",
    "tdmpc": "TD-MPC",
    "tdmpc2": "TD-MPC2",
}
THEIRS = {"tdmpc-original": "TD-MPC published, 100k", "tdmpc2": "TD-MPC2 published, 100k"}
NAMES = {
    "tdmpc-original": "TD-MPC",
    "tdmpc": "TD-MPC, run again",
    "tdmpc2": "TD-MPC2",
    "dreamerv3": "DreamerV3",
    "bro-utd10": "BRO",
    "simbav2-utd2": "SimbaV2, 2 updates",
    "simbav2-utd8": "SimbaV2",
    "mrq": "MR.Q",
}
COMPARED = ("difftop_rl", "difftop_rl, first defaults")  # in sentences below the table
FRAMES = 100_000.0
PAPER = (  # the 15 tasks of DiffTORI's tables
    *("cartpole-swingup-sparse", "cheetah-run", "cup-catch", "finger-spin", "finger-turn-easy", "finger-turn-hard"),
    *("hopper-stand", "pendulum-swingup", "quadruped-run", "quadruped-walk", "reacher-easy", "reacher-hard"),
    *("walker-run", "walker-stand", "walker-walk"),
)
_MAX_GAP = 0.25  # evaluations farther apart than this share of the frames aren't interpolated


@dataclass(frozen=True)
class Score:
    """Mean return of the seeds of a method on a task, at so many frames."""

    mean: float
    seeds: int
    frames: float


def ours_at(curve: Curve) -> Score:
    """At 100,000 frames, or at the last evaluation before them; over the seeds that come so far."""
    frames = max(min(float(series.steps[-1]), FRAMES) for series in curve.seeds.values())
    frames = max(float(step) for series in curve.seeds.values() for step in series.steps if step <= frames)
    return _score(curve, frames) or Score(float("nan"), 0, frames)


def theirs_at(curve: Curve) -> Score | None:
    """At 100,000 frames; None where the published curve has no point near enough."""
    return _score(curve, FRAMES)


def table(results: Path = RESULTS, published: Path = PUBLISHED) -> str:
    """The table in Markdown, and below it how far it is."""
    curves = [curve for curve in read_study(results) if curve.label in OURS]
    ours = {(curve.task, curve.label): ours_at(curve) for curve in curves}
    tasks = sorted({task for task, _ in ours})
    theirs = {
        (curve.task, curve.label): score for curve in read_references(published, tasks) if (score := theirs_at(curve)) is not None
    }
    methods = [label for label in OURS if any((task, label) in ours for task in tasks)]
    heads = ["task", "frames", *(OURS[label] for label in methods), *THEIRS.values(), "best of the published curves here, 100k"]
    lines = [line(heads), line(["---", *["---:"] * (len(heads) - 1)])]
    for task in tasks:
        mine = [ours.get((task, label)) for label in methods]
        frames = max(score.frames for score in mine if score)
        cells = [_cell(score, frames) for score in mine] + [_cell(theirs.get((task, label))) for label in THEIRS]
        lines.append(line([task, f"{frames:,.0f}", *cells, _best_cell(task, theirs)]))
    standing = [text for label in methods if label in COMPARED for text in _standing(label, ours, theirs)]
    return "\n".join([*lines, "", *standing, _cost(results)]) + "\n"


def in_step(text: str, page: str = "README.md") -> str:
    """A page with the table of today.

    Raises:
        ValueError: the markers aren't there, or not in this order.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page}: wants a line {BEGIN.strip()!r} and after it a line {END.strip()!r}.")
    return before + begin + table() + end + after


def draw() -> None:
    """The picture: a panel per task, ours and published."""
    ours = sorted((c for c in read_study(RESULTS) if c.label in OURS), key=lambda c: (c.task, list(OURS).index(c.label)))
    tasks = list(dict.fromkeys(curve.task for curve in ours))
    plot_curves([*ours, *read_references(PUBLISHED, tasks)], PICTURE)


def _score(curve: Curve, frames: float) -> Score | None:
    found = [score_at(series, frames, _MAX_GAP) for series in curve.seeds.values()]
    values = [value[0] for value in found if value is not None]
    return Score(sum(values) / len(values), len(values), frames) if values else None


def _standing(label: str, ours: dict[tuple[str, str], Score], theirs: dict[tuple[str, str], Score]) -> list[str]:
    """Sentences: on how many of the papers' tasks a method of ours was run, and how it compares there."""
    there = [task for task in PAPER if (task, label) in ours and ours[task, label].frames >= FRAMES]
    lines = [f"{OURS[label]} has {FRAMES:,.0f} frames on {len(there)} of the papers' {len(PAPER)} tasks."]
    begun = [task for task in PAPER if (task, label) in ours and task not in there]
    absent = [task for task in PAPER if (task, label) not in ours]
    lines += [f"Shorter: {listed(begun, most=15)}."] if begun else []
    lines += [f"Not run: {listed(absent, most=15)}."] if absent else []
    known = [task for task in there if (task, "tdmpc2") in theirs]
    if known:
        above = sum(ours[task, label].mean >= theirs[task, "tdmpc2"].mean for task in known)
        best = sum(ours[task, label].mean >= _best(task, theirs)[1].mean for task in known)
        means = [sum(values) / len(known) for values in zip(*_triples(known, label, ours, theirs), strict=True)]
        lines.append(
            f"On the {len(known)} of them with published curves here it is at or above TD-MPC2 on {above}, at or above the best "
            f"of them on {best}; means: {means[0]:.0f}, TD-MPC2 {means[1]:.0f}, the best of each task {means[2]:.0f}."
        )
    return lines


def _triples(
    tasks: Sequence[str], label: str, ours: dict[tuple[str, str], Score], theirs: dict[tuple[str, str], Score]
) -> list[tuple[float, float, float]]:
    return [(ours[task, label].mean, theirs[task, "tdmpc2"].mean, _best(task, theirs)[1].mean) for task in tasks]


def _best(task: str, theirs: dict[tuple[str, str], Score]) -> tuple[str, Score]:
    return max(((label, score) for (t, label), score in theirs.items() if t == task), key=lambda item: item[1].mean)


def _best_cell(task: str, theirs: dict[tuple[str, str], Score]) -> str:
    if not any(t == task for t, _ in theirs):
        return "—"
    label, score = _best(task, theirs)
    return f"{score.mean:.0f} ({NAMES.get(label, label)})"


def _cost(results: Path) -> str:
    """A sentence: what our runs took by their own clocks."""
    last: dict[tuple[str, ...], float] = {}
    with results.open(newline="") as file:
        for row in csv.DictReader(file):
            if row["method"] in OURS and row["wall_s"]:
                key = (row["method"], row["task"], row["obs"], row["seed"])
                last[key] = max(last.get(key, 0.0), float(row["wall_s"]))
    seconds = sum(last.values())
    time = plural(round(seconds / 3600), "hour") if seconds >= 3600 / 2 else plural(round(seconds / 60), "minute")
    return f"These {plural(len(last), 'run')} took {time} by their own clocks, evaluations included."


def _cell(score: Score | None, frames: float | None = None) -> str:
    """Mean over seeds, how many there are, and at how many frames where it is not at `frames`."""
    if score is None or not score.seeds:
        return "—"
    where = "" if frames in (None, score.frames) else f" at {score.frames:,.0f}"
    return f"{score.mean:.0f} ({score.seeds}){where}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing")
    options = parser.parse_args(arguments)
    late = keep_in_step(PAGES, in_step, "python tools/readme_table.py", check=options.check)
    if not options.check:
        draw()
    return int(late > 0)


if __name__ == "__main__":
    sys.exit(main())
