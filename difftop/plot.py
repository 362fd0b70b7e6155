"""Learning curves from run folders, tidy tables of studies, and others' `step,reward,seed` tables.

    python -m difftop.plot runs/dmc-walker-walk --references published/dmcontrol --out curve.png

A run's folder is `<root>/<env>/<agent>/<name>/seed<k>` and holds eval.csv; references are `<method>/<task>.csv` or a tidy table.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from difftop.curves import Curve, CurveError, Series, identity, read_curve, read_references, read_runs, read_table
from difftop.stats import Array, iqm, mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Curve", "CurveError", "Series", "plot_curves", "plot_run", "read_curve", "read_references", "read_runs", "read_table"]

# Okabe and Ito's colours, which colour-blind readers can tell apart, for our runs; greys and markers for published curves.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_GREYS = ("#444444", "#8A8A8A", "#666666", "#9E9E9E")
_MARKERS = "osD^vPX"


def plot_curves(curves: Sequence[Curve], out: Path | str, *, statistic: str = "mean") -> Path:
    """One panel per task: the statistic over seeds, its 95 % bootstrap interval, and every seed as a thin line.

    References are dashed, with a marker at every published point, and cut where our longest run of the task ends; one without a
    point in that range isn't drawn.

    Args:
        curves: at least one.
        out: the image; its ending chooses the format.
        statistic: `mean` or `iqm`.
    """
    from matplotlib.figure import Figure

    tasks = list(dict.fromkeys(curve.task for curve in curves))
    across = min(3, len(tasks))
    down = math.ceil(len(tasks) / across)
    figure = Figure(figsize=(1.0 + 4.6 * across, 0.8 + 3.2 * down), dpi=120, layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).flatten()
    labels = {reference: _unique(c.label for c in curves if c.reference is reference) for reference in (False, True)}
    for panel, task in zip(panels, tasks, strict=False):
        mine = [curve for curve in curves if curve.task == task]
        ends = [float(s.steps[-1]) for c in mine if not c.reference for s in c.seeds.values()]
        end = max(ends) if ends else None
        for curve in (c for c in mine if shows(c, end)):
            place = labels[curve.reference].index(curve.label)
            count = _count([len(c.seeds) for c in curves if (c.label, c.reference) == (curve.label, curve.reference)])
            draw_curve(panel, curve, place, iqm if statistic == "iqm" else mean, count=count)
        dress(panel, task, end)
    for panel in panels[len(tasks) :]:
        panel.set_visible(False)
    handles = {label: handle for panel in panels for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    columns = max(1, int(figure.get_figwidth() / 2.6))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, frameon=False, fontsize=8)
    return _save(figure, Path(out))


def plot_run(folder: Path | str, out: Path | str | None = None) -> Path:
    """A run's own curve: evaluations with their spread over episodes, and the returns of training episodes as dots.

    Args:
        folder: a run's folder, with eval.csv and perhaps metrics.csv.
        out: the image; None is `curve.png` in the folder.
    Raises:
        CurveError: eval.csv is missing, bad or empty.
    """
    from matplotlib.figure import Figure

    folder = Path(folder)
    rows = read_table(folder / "eval.csv", ("env_frames", "return_mean", "return_std"))
    if not len(rows):
        raise CurveError(f"{folder / 'eval.csv'} holds no row: there is nothing to draw.")
    task, agent, name, seed = identity(folder)
    figure = Figure(figsize=(6.0, 3.8), dpi=150, layout="constrained")
    panel = figure.subplots()
    if (folder / "metrics.csv").is_file():
        training = read_table(folder / "metrics.csv", ("step", "reward"))
        panel.scatter(training[:, 0], training[:, 1], s=6, color="#BBBBBB", linewidths=0, label="training episode")
    steps, point, spread = rows.T
    panel.fill_between(
        steps, point - spread, point + spread, color=COLOURS[0], alpha=0.2, linewidth=0, label="±1 std of episodes"
    )
    panel.plot(steps, point, color=COLOURS[0], linewidth=1.8, marker="o", markersize=3, label="evaluation")
    dress(panel, f"{task}: {agent}, {name}, seed {seed}", None)
    panel.legend(frameon=False, fontsize=8, loc="best")
    return _save(figure, Path(out) if out else folder / "curve.png")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m difftop.plot", description="Draws learning curves of runs.")
    parser.add_argument("paths", nargs="+", help="run folders, folders above them, tidy tables, or step,reward,seed tables")
    parser.add_argument(
        "--references",
        action="append",
        default=[],
        help="published curves: a folder of <method>/<task>.csv or a tidy table; may be repeated",
    )
    parser.add_argument("--methods", nargs="+", default=[], help="only these of our methods, as the legend names them")
    parser.add_argument("--out", default="curve.png", help="image to write (png, pdf, svg); default curve.png")
    parser.add_argument("--statistic", choices=("mean", "iqm"), default="mean", help="over seeds; default mean")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        curves = _only(read_runs(options.paths), options.methods)
        tasks = list(dict.fromkeys(curve.task for curve in curves))
        for folder in options.references:
            curves += read_references(folder, tasks)
        out = plot_curves(curves, options.out, statistic=options.statistic)
    except CurveError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write(f"{out}\n")
    return 0


def _only(curves: Sequence[Curve], methods: Sequence[str]) -> list[Curve]:
    """Curves of the methods, in the order of the methods; all where none is named."""
    there = _unique(curve.label for curve in curves)
    unknown = [method for method in methods if method not in there]
    if unknown:
        raise CurveError(f"--methods {unknown[0]}: not there. There are: {', '.join(there)}.")
    return [c for method in methods for c in curves if c.label == method] if methods else list(curves)


def draw_curve(
    panel: Axes,
    curve: Curve,
    position: int,
    statistic: Callable[[Array], Array] = mean,
    *,
    end: float | None = None,
    count: str = "",
    resamples: int = 1000,
    seed: int = 0,
) -> None:
    """Draws a curve; `position` among the labels of its kind chooses colour and marker; `resamples` and `seed` are of the
    bootstrap.

    Runs of ours are solid, with the interval as a band and each seed as a thin line; published curves are dashed, with a marker
    and the interval at every published point (a band where there are more than 40). What is beyond `end` is left out, but for
    the point that the line goes to. The legend says how many seeds there are, unless `count` says it.
    """
    from matplotlib.collections import LineCollection

    steps, point, low, high = curve.summary(statistic, resamples=resamples, seed=seed)
    if end is not None:
        kept = slice(int(np.searchsorted(steps, end)) + 1)
        steps, point, low, high = steps[kept], point[kept], low[kept], high[kept]
    count = count or _count([len(curve.seeds)])
    style = style_of(position, curve.reference)
    colour = style["color"]
    if curve.reference:
        if len(steps) > 40:
            style["markevery"] = len(steps) // 20
            panel.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
        elif len(curve.seeds) > 1:
            panel.vlines(steps, low, high, color=colour, alpha=0.6, linewidth=0.8, zorder=2)
        panel.plot(steps, point, label=f"{curve.label} (published, {count})", **style)
        return
    if len(curve.seeds) > 1:
        panel.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
        seeds = [np.column_stack((series.steps, series.returns)) for series in curve.seeds.values()]
        panel.add_collection(LineCollection(seeds, colors=colour, linewidths=0.6, alpha=0.5))
    panel.plot(steps, point, label=f"{curve.label} ({count})", **style)


def shows(curve: Curve, end: float | None) -> bool:
    """Whether something of a curve is to be seen up to `end`; a published one needs an evaluation there that isn't the first."""
    steps = curve.common()[0]
    seen = steps if end is None else steps[steps <= end]
    return bool(len(seen)) and (not curve.reference or bool((seen > 0).any()))


def style_of(position: int, reference: bool) -> dict[str, Any]:
    """How the line of a method is drawn: colours and solid lines for ours, greys, dashes and markers for published ones."""
    if reference:
        marker = _MARKERS[position % len(_MARKERS)]
        line = {"linestyle": "--", "linewidth": 1.0, "marker": marker, "markersize": 4, "zorder": 2}
        return {"color": _GREYS[position % len(_GREYS)], **line}
    dashes = ("-", "-.", ":")[position // len(COLOURS) % 3]
    return {"color": COLOURS[position % len(COLOURS)], "linestyle": dashes, "linewidth": 1.8, "zorder": 3}


def dress(panel: Axes, title: str, end: float | None, *, score: str = "return") -> None:
    """Title, axes from 0 (to `end`), grid."""
    panel.set_title(title, fontsize=10, y=1.0)  # y given: matplotlib need not look for what may be in its way
    panel.set_xlabel("environment frames")
    panel.set_ylabel(score)
    panel.xaxis.set_major_formatter(lambda x, position: short(x))
    panel.locator_params(nbins=6)
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(alpha=0.25, linewidth=0.6)
    panel.set_axisbelow(True)
    panel.set_xlim(left=0, right=end)
    if panel.dataLim.y0 >= 0:
        panel.set_ylim(bottom=0)


def short(frames: float) -> str:
    """`0`, `500`, `40k`, `1.5M`."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if abs(frames) >= size:
            return f"{frames / size:g}{unit}"
    return f"{frames:g}"


def _save(figure: Figure, out: Path) -> Path:
    out = out if out.suffix else out.with_suffix(".png")
    temporary = out.with_name(f".writing_{out.name}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(temporary)
        os.replace(temporary, out)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
        raise CurveError(f"can't write {out}: {reason}; give an image file, as in --out curves.png.") from error
    finally:
        with suppress(OSError):
            temporary.unlink()
    return out


def _count(seeds: Sequence[int]) -> str:
    """`1 seed`, `3 seeds`, `1 to 3 seeds`."""
    low, high = min(seeds), max(seeds)
    return f"{high} seed{'s' if high > 1 else ''}" if low == high else f"{low} to {high} seeds"


def _unique(labels: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(labels))


if __name__ == "__main__":
    sys.exit(main())
