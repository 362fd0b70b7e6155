"""The pictures of a report, as PNG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from difftop.compare.document import Picture
from difftop.compare.notes import listed, plural
from difftop.compare.scores import Cut, Method, Scale, aggregate_curve, method_of
from difftop.curves import Curve
from difftop.plot import draw_curve, dress, short, shows, style_of
from difftop.stats import mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

NAMES = ("curve-*", "aggregates-*", "efficiency")  # of the files
AGGREGATES = {"iqm": "IQM", "mean": "mean", "median": "median", "optimality_gap": "optimality gap"}


def positions(methods: Sequence[Method]) -> dict[Method, int]:
    """Position of each method among those of its kind, which gives it one colour and marker in all pictures."""
    return {m: [other for other in methods if other.reference is m.reference].index(m) for m in methods}


class CurvePainter:
    """Draws tasks one after another on the same figure, because making axes and legends takes longer than drawing curves.

    Args:
        place: see `positions`.
        frames: where scores are compared; a fine line stands there.
        resamples, seed: of the bootstrap.
    """

    def __init__(
        self, place: Mapping[Method, int], *, frames: Sequence[float] = (), resamples: int = 1000, seed: int = 0
    ) -> None:
        self.place, self.frames, self.resamples, self.seed = place, frames, resamples, seed
        self._canvases: dict[int, tuple[Figure, Axes]] = {}
        self._legends: dict[Any, Any] = {}

    def picture(self, curves: Sequence[Curve]) -> Picture:
        """All methods on one task."""
        task = curves[0].task
        ends = [float(s.steps[-1]) for c in curves if not c.reference for s in c.seeds.values()]
        end = max(ends) if ends else None
        drawn, told = [curve for curve in curves if shows(curve, end)], []
        rows = -(-len(drawn) // 2)
        figure, panel = self._canvases.get(rows) or self._canvases.setdefault(rows, _canvas(rows))
        for curve in drawn:
            steps, values = curve.common()
            seen = steps if end is None else steps[steps <= end]
            draw_curve(panel, curve, self.place[method_of(curve)], mean, end=end, resamples=self.resamples, seed=self.seed)
            told.append(f"{method_of(curve).name} {values[:, len(seen) - 1].mean():.0f} at {short(seen[-1])}")
        dress(panel, task, end)
        for at in self.frames:
            if end is None or at < end:
                panel.axvline(at, color="#999999", linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
        _legend(figure, panel, self._legends)
        png = _png(figure)
        _wipe(figure, panel)
        undrawn = [method_of(curve).name for curve in curves if not any(curve is other for other in drawn)]
        published = any(c.reference for c in curves)
        cut = f" Published curves are cut at {short(end)} frames, where ours end." if published and end else ""
        cut += f" Not drawn, for want of an evaluation in that range: {listed(undrawn)}." if undrawn else ""
        return Picture(
            png,
            f"curve-{task}",
            f"Return against environment frames on {task}; mean return at the last evaluation that is shown: {'; '.join(told)}.",
            f"{task}. Mean over seeds with 95 % bootstrap interval; thin lines are seeds.{cut}",
        )


def aggregate_intervals(cut: Cut, place: Mapping[Method, int]) -> Picture:
    """The four aggregates of every method as points with intervals, one panel each."""
    from matplotlib.figure import Figure

    methods = list(cut.aggregates)
    figure = Figure(figsize=(11.0, 0.75 + 0.27 * len(methods)), dpi=110)
    left, bottom, height = 0.22, 0.36 / figure.get_figheight(), 0.27 * len(methods) / figure.get_figheight()
    for i, (key, title) in enumerate(AGGREGATES.items()):
        panel = figure.add_axes((left + i * 0.195, bottom, 0.175, height))
        for y, method in enumerate(methods):
            interval = getattr(cut.aggregates[method], key)
            colour = style_of(place[method], method.reference)["color"]
            if cut.seeds(method)[0] > 1:
                panel.barh(y, interval.high - interval.low, left=interval.low, height=0.5, color=colour, alpha=0.35)
            panel.plot([interval.point] * 2, [y - 0.32, y + 0.32], color=colour, linewidth=2)
        panel.use_sticky_edges = False
        panel.margins(x=0.08)
        panel.set_title(title, fontsize=9)
        panel.set_yticks(range(len(methods)), [m.name for m in methods] if i == 0 else [], fontsize=8)
        panel.tick_params(axis="x", labelsize=8)
        panel.set_ylim(len(methods) - 0.4, -0.6)
        panel.grid(axis="x", alpha=0.25, linewidth=0.6)
        panel.spines[["top", "right", "left"]].set_visible(False)
        panel.tick_params(axis="y", length=0)
    told = "; ".join(f"{m.name} IQM {a.iqm.point:.3f}" for m, a in cut.aggregates.items())
    return Picture(
        _png(figure),
        f"aggregates-{cut.frames:.0f}",
        f"Aggregate scores at {cut.frames:,.0f} frames over {plural(len(cut.tasks), 'task')}: {told}.",
        f"Normalized scores at {cut.frames:,.0f} frames over {plural(len(cut.tasks), 'task')}: the line is the estimate, "
        "the bar its 95 % stratified bootstrap interval (none where a task has a single seed). Of the optimality gap less is "
        "better, of the others more.",
        wide=True,
    )


def efficiency(
    curves: Sequence[Curve], scale: dict[str, Scale], cut: Cut, place: Mapping[Method, int], *, resamples: int, seed: int = 0
) -> Picture | None:
    """IQM over the tasks of the aggregates against frames; None where no method has two points."""
    end = max((float(s.steps[-1]) for c in curves if not c.reference for s in c.seeds.values()), default=None)
    figure, panel = _canvas(-(-len(cut.aggregates) // 2))
    told = []
    for method in cut.aggregates:
        mine = [curve for curve in curves if method_of(curve) == method]
        steps, point, low, high = aggregate_curve(
            mine, scale, cut.tasks, resamples=resamples, seed=seed, end=np.inf if end is None else end, keep=[cut.frames]
        )
        if len(steps) < 2:
            continue
        style = style_of(place[method], method.reference)
        panel.fill_between(steps, low, high, color=style["color"], alpha=0.18, linewidth=0)
        panel.plot(steps, point, label=method.name, **style)
        told.append(f"{method.name} {point[-1]:.2f} at {short(steps[-1])}")
    if not told:
        return None
    title = f"IQM over {plural(len(cut.tasks), 'task')}"
    dress(panel, title, end, score="normalized return")
    _legend(figure, panel, {})
    return Picture(
        _png(figure),
        "efficiency",
        f"{title} against environment frames; at the last common evaluation: {'; '.join(told)}.",
        f"{title}, all seeds together, with 95 % stratified bootstrap interval, on the range of frames that every seed on "
        "every task covers; between evaluations interpolated linearly.",
    )


def _canvas(rows: int) -> tuple[Figure, Axes]:
    """A figure of one panel, with room for a legend of so many rows below it."""
    from matplotlib.figure import Figure

    height = 3.65 + 0.19 * rows
    figure = Figure(figsize=(6.2, height), dpi=110)
    return figure, figure.add_axes((0.115, (0.6 + 0.19 * rows) / height, 0.86, 2.75 / height))


def _wipe(figure: Figure, panel: Axes) -> None:
    """Takes away what was drawn; ticks, labels and grid stay."""
    from matplotlib.transforms import Bbox

    for artist in [*panel.lines, *panel.collections, *figure.images]:
        artist.remove()
    panel.dataLim.set(Bbox.null())
    panel.ignore_existing_data_limits = True
    panel.set_prop_cycle(None)
    panel.autoscale(True)


def _legend(figure: Figure, panel: Axes, kept: dict[Any, Any]) -> None:
    """Puts the legend below the panel, as a picture that figures with the same lines share."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    artists, labels = panel.get_legend_handles_labels()
    handles = cast("list[Line2D]", artists)
    key = tuple(
        (label, handle.get_color(), handle.get_linestyle(), handle.get_marker())
        for handle, label in zip(handles, labels, strict=True)
    )
    if key not in kept:
        rows = -(-len(labels) // 2)
        own = Figure(figsize=(figure.get_figwidth(), 0.12 + 0.19 * rows), dpi=figure.dpi, facecolor="white")
        own.legend(handles, labels, loc="lower center", ncols=2, frameon=False, fontsize=8, borderaxespad=0.2)
        canvas: Any = FigureCanvasAgg(own)
        canvas.draw()
        kept[key] = np.asarray(canvas.buffer_rgba())
    figure.figimage(kept[key], 0, 0, zorder=5)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None}, pil_kwargs={"compress_level": 3})
    return buffer.getvalue()
