"""A summary as text for the terminal, and as a picture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from difftop.datasets.summary import Summary, shares

_WIDTH = 26
_BARS = " .:-=+*#%@"
_NAMED = 4


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
    """A picture: lengths of the episodes, and a histogram of each entry of the action; written beside and renamed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    survey, count = summary.survey, len(summary.actions) + 1
    columns = min(count, 4)
    rows = -(-count // columns)
    width, height = 3.2 * columns, 2.4 * rows
    figure = Figure(figsize=(width, height))
    # Fixed margins, in inches: a layout that is looked for draws everything three times.
    sides = {"left": 0.6 / width, "right": 1 - 0.15 / width, "bottom": 0.35 / height, "top": 1 - 0.75 / height}
    figure.subplots_adjust(**sides, wspace=0.25, hspace=0.4)
    canvas: Any = FigureCanvasAgg(figure)
    axes = np.atleast_1d(figure.subplots(rows, columns)).flatten()
    axes[0].hist(survey.lengths, 20, color="tab:gray")
    axes[0].ticklabel_format(useOffset=False)
    axes[0].set_title("length of an episode, steps", fontsize=9)
    for i, action in enumerate(summary.actions):
        axis, edges = axes[i + 1], np.array(action.edges)
        axis.stairs(action.counts, edges, fill=True, color="tab:blue")
        axis.locator_params(axis="x", nbins=5)
        for limit in (-1, 1):
            axis.axvline(limit, color="tab:red", linewidth=0.8, linestyle="--")
        axis.set_title(f"action {i} ({action.kind})", fontsize=9)
        axis.set_yticks([])
    for axis in axes[count:]:
        axis.set_visible(False)
    idle = "" if np.isnan(summary.idle) else f", {summary.idle:.0%} idle steps"
    figure.suptitle(f"{survey.path.name}: {len(survey.names)} episodes, {summary.steps:,} steps{idle}", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.part")
    with partial.open("wb") as file:
        canvas.print_png(file)
    partial.replace(path)
