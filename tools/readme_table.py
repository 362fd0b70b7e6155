"""Writes the README's table of scores from the tidy tables in docs/results.

    python tools/readme_table.py           rewrites what stands between the markers
    python tools/readme_table.py --check   says whether it is in step; exit status 1 if not

Each task is scored at the most frames that every one of `OURS` reaches there. A seed that ends before 0.75 of its
curve is left out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from difftop.compare.curves import read
from difftop.compare.scores import Method, TaskScore, common_frames, scores_at
from difftop.curves import Curve

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PUBLISHED = ROOT / "docs" / "results" / "dmcontrol.csv", ROOT / "docs" / "results" / "published.csv"
BEGIN, END = "<!-- scores: python tools/readme_table.py -->\n\n", "\n<!-- end of scores -->\n"
OURS = {  # method in the table of results, to the head of its column
    "difftop_rl": "DiffTOP",
    "difftop_rl world_model=tdmpc2": "DiffTOP on TD-MPC2's model",
    "tdmpc": "TD-MPC",
    "tdmpc2": "TD-MPC2",
}
SAME_FRAMES = {"tdmpc-original": "TD-MPC published, same frames"}
LATER = {
    "tdmpc-original": "TD-MPC published, 100k",
    "tdmpc2": "TD-MPC2 published, 100k",
    "dreamerv3": "DreamerV3 published, 100k",
}
LATER_FRAMES = 100_000.0


def table() -> str:
    """The table in Markdown."""
    curves = read([RESULTS], [PUBLISHED], min_coverage=0.75).curves
    curves = [curve for curve in curves if curve.reference or curve.label in OURS]
    heads = ["task", "frames", *OURS.values(), *SAME_FRAMES.values(), *LATER.values()]
    lines = [_line(heads), _line(["---", *["---:"] * (len(heads) - 1)])]
    for task in sorted({curve.task for curve in curves if not curve.reference}):
        mine = [curve for curve in curves if curve.task == task]
        frames = common_frames([curve for curve in mine if not curve.reference])
        now, later = _scores(mine, frames), _scores(mine, LATER_FRAMES)
        cells = [_cell(now.get(Method(False, label))) for label in OURS]
        cells += [_cell(now.get(Method(True, label))) for label in SAME_FRAMES]
        cells += [_cell(later.get(Method(True, label))) for label in LATER]
        lines.append(_line([task, f"{frames:,.0f}", *cells]))
    return "\n".join(lines) + "\n"


def in_step(text: str) -> str:
    """The README with the table of today.

    Raises:
        ValueError: the markers aren't there, or not in this order.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md: wants a line {BEGIN.strip()!r} and after it a line {END.strip()!r}.")
    return before + begin + table() + end + after


def _scores(curves: Sequence[Curve], frames: float) -> dict[Method, TaskScore]:
    return {method: score for (method, _), score in scores_at(curves, frames)[0].items()}


def _cell(score: TaskScore | None) -> str:
    """Mean over seeds, and how many there are."""
    return "—" if score is None else f"{score.mean.point:.0f} ({len(score.values)})"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing")
    options = parser.parse_args(arguments)
    path = ROOT / "README.md"
    text = path.read_text()
    new = in_step(text)
    if options.check:
        sys.stdout.write("README.md is in step.\n" if new == text else "README.md: run `python tools/readme_table.py`.\n")
        return int(new != text)
    path.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
