"""A summary as text for the terminal, and as a picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from difftop.data.faults import Array
from difftop.datasets.summary import Summary, shares

_WIDTH = 26
_BARS = " .:-=+*#%@"
_NAMED = 4
_LEFT, _RIGHT, _TOP, _BOTTOM = 0.08, 0.92, 0.1, 0.85  # of a panel
_FRAME = ((_LEFT, _TOP), (_RIGHT, _TOP), (_RIGHT, _BOTTOM), (_LEFT, _BOTTOM))


def text(summary: Summary) -> str:
    """The table that `mode=data` prints."""
    return "\n".join([*_about(summary), "", *_observations(summary), "", *_actions(summary), "", *_end(summary)]) + "\n"


def _about(summary: Summary) -> Iterator[str]:
    survey, lengths = summary.survey, summary.survey.lengths
    version = f", version {survey.env.version}" if survey.env.version else ""
    rate = f", {survey.rate_hz:g} Hz" if survey.rate_hz else ""
    yield _row(str(survey.path), "")
    yield _row("format", survey.format)
    yield _row("environment", f"{survey.env.name or 'not named'}{version}{rate}")
    low, middle, high = (int(lengths.min()), float(np.median(lengths)), int(lengths.max())) if len(lengths) else (0, 0.0, 0)
    yield _row("episodes", f"{len(lengths)}, of {low} to {high} steps (median {middle:g}), {summary.steps:,} steps in all")
    if survey.successes is not None:
        unknown = int((survey.successes < 0).sum())
        yield _row("solved", f"{int((survey.successes == 1).sum())} of {len(lengths)}" + (f", {unknown} unknown" * bool(unknown)))
    if survey.rewards is not None:
        yield _row("reward of an episode", f"{np.nanmean(survey.rewards):.4g} (largest {np.nanmax(survey.rewards):.4g})")
    if survey.filters:
        yield _row("filters", ", ".join(f"{key} ({count})" for key, count in survey.filters.items()))
    for note in survey.notes:
        yield _row("", note)


def _observations(summary: Summary) -> Iterator[str]:
    yield _row("observation", "shape            type      kind")
    for key, column in summary.survey.columns.items():
        shape = " x ".join(map(str, column.shape)) or "1"
        yield _row(key, f"{shape:16s} {column.dtype:9s} {column.kind}")
    if not summary.survey.columns:
        yield _row("none", "")


def _actions(summary: Summary) -> Iterator[str]:
    yield _row("action", "low     high     mean      std   at limit  beyond  histogram, low to high")
    for i, action in enumerate(summary.actions):
        most = max(action.counts) or 1
        bars = "".join(_BARS[min(int(np.ceil(count / most * 9)), 9)] for count in action.counts)
        numbers = f"{action.low:7.3g} {action.high:8.3g} {action.mean:8.3g} {action.std:8.3g}"
        yield _row(f"{i} ({action.kind})", f"{numbers}   {action.at_limit:7.1%} {action.beyond:7.1%}  |{bars}|")
    if summary.actions:
        found = ", ".join(f"{share:.1%} {what}" for what, share in shares(summary).items())
        yield _row("most of the steps", found)
    if not np.isnan(summary.idle):
        yield _row("idle steps", f"{summary.idle:.1%}")


def _end(summary: Summary) -> Iterator[str]:
    for kind, names in summary.survey.faults.items():
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        yield _row(f"{kind}", f"{len(names)}: {', '.join(names[:_NAMED])}{more}")
    if not summary.survey.raw:
        yield _row(
            "a run would use", f"{summary.used} episodes to train on, {summary.held_out} held out (run.valid_fraction=0.1)"
        )
    for warning in summary.warnings:
        yield _row("note", warning)
    yield _row("convert it by" if summary.survey.raw else "train on it by", summary.command)


def _row(name: str, what: str) -> str:
    return f"{name:{_WIDTH}s}  {what}".rstrip()


def draw(summary: Summary, path: Path) -> None:
    """A picture: lengths of the episodes, and a histogram of each entry of the action; written beside and renamed.

    All of them share one `Axes` without ticks: 40 of their own would take Matplotlib 2 s.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.collections import LineCollection, PolyCollection
    from matplotlib.figure import Figure

    survey = summary.survey
    counts, edges = np.histogram(survey.lengths, 20)
    panels = [Panel("length of an episode, steps", edges, counts, (), f"at most {counts.max()} episodes")]
    panels += [Panel(f"action {i} ({a.kind})", a.edges, a.counts, (-1, 1)) for i, a in enumerate(summary.actions)]
    columns = min(len(panels), 4)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.4 * rows + 0.4))
    canvas: Any = FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set(xlim=(0, columns), ylim=(rows, -0.17))
    places = [(k % columns, k // columns) for k in range(len(panels))]
    for color, some in (("tab:gray", slice(1)), ("tab:blue", slice(1, None))):
        bars = [panel.outline() + place for panel, place in zip(panels[some], places[some], strict=True)]
        axes.add_collection(PolyCollection(bars, facecolors=color))
    frames = [np.array(_FRAME) + place for place in places]
    axes.add_collection(PolyCollection(frames, facecolors="none", edgecolors="black", linewidths=0.8))
    limits = [line + place for panel, place in zip(panels, places, strict=True) for line in panel.lines()]
    axes.add_collection(LineCollection(limits, colors="tab:red", linewidths=0.8, linestyles="--"))
    for panel, (x, y) in zip(panels, places, strict=True):
        axes.text(x + 0.5, y + 0.08, panel.title, fontsize=9, ha="center", va="bottom")
        axes.text(x + _LEFT, y + _BOTTOM + 0.03, f"{panel.edges[0]:.4g}", fontsize=8, ha="left", va="top")
        axes.text(x + _RIGHT, y + _BOTTOM + 0.03, f"{panel.edges[-1]:.4g}", fontsize=8, ha="right", va="top")
        if panel.note:
            axes.text(x + 0.5, y + _BOTTOM + 0.03, panel.note, fontsize=8, ha="center", va="top")
    idle = "" if np.isnan(summary.idle) else f", {summary.idle:.0%} idle steps"
    about = f"{survey.path.name}: {len(survey.names)} episodes, {summary.steps:,} steps{idle}"
    axes.text(columns / 2, -0.08, about, fontsize=10, ha="center", va="center")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.part")
    with partial.open("wb") as file:
        canvas.print_png(file)
    partial.replace(path)


@dataclass(frozen=True)
class Panel:
    """One histogram of the picture, in a square of side 1; y grows downwards.

    Attributes:
        title, note: above and below it.
        edges, counts: of its B bins, B + 1 and B.
        limits: where a line is drawn, if it is between the first edge and the last.
    """

    title: str
    edges: Sequence[float] | Array
    counts: Sequence[int] | Array
    limits: Sequence[float] = ()
    note: str = ""

    def outline(self) -> Array:
        """The bars as one polygon `[2 B + 2, 2]`."""
        x = np.repeat(self._across(np.asarray(self.edges)), 2)
        counts = np.asarray(self.counts)
        heights = np.concatenate([[0], np.repeat(counts, 2), [0]]) / max(counts.max(), 1)
        return np.stack([x, _BOTTOM - 0.96 * (_BOTTOM - _TOP) * heights], 1)

    def lines(self) -> list[Array]:
        """Vertical lines at the limits, each `[2, 2]`."""
        inside = [limit for limit in self.limits if self.edges[0] <= limit <= self.edges[-1]]
        return [np.array([[x, _TOP], [x, _BOTTOM]]) for x in self._across(np.array(inside))]

    def _across(self, values: Array) -> Array:
        share = (values - self.edges[0]) / (self.edges[-1] - self.edges[0])
        return np.asarray(_LEFT + (_RIGHT - _LEFT) * (0.03 + 0.94 * share))
