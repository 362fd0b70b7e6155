"""The comparison itself: reads, computes, and writes the report."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from difftop.compare.config import CompareConfig
from difftop.compare.curves import CompareError, Reading, read
from difftop.compare.document import Document, Picture, Section
from difftop.compare.imitation import Evaluation, imitation_blocks, read_evaluations
from difftop.compare.notes import LEFT_OUT, UNEQUAL, Note, listed, plural
from difftop.compare.page import page
from difftop.compare.pictures import NAMES
from difftop.compare.report import curve_sections, methods_section, notes_section
from difftop.compare.scores import Cut, Scale, common_frames, cut_at, frames_for_all, method_of, scales
from difftop.compare.tables import markdown
from difftop.compare.unequal import unequal
from difftop.curves import Curve
from difftop.options import ConfigError, suggest


@dataclass(frozen=True)
class Report:
    """What `compare` wrote, and found.

    Attributes:
        html, markdown: the files.
        curves, tasks, evaluations: how many there are; `evaluations` of imitation.
        notes: what was left out or is unequal.
        cuts: scores, aggregates and probabilities at each number of frames.
    """

    html: Path
    markdown: Path
    curves: int
    tasks: int
    evaluations: int
    notes: Sequence[Note]
    cuts: Sequence[Cut]

    def line(self) -> str:
        """One line to say at the end."""
        left = sum(note.kind == LEFT_OUT for note in self.notes)
        found = f"{plural(self.curves, 'curve')} on {plural(self.tasks, 'task')}"
        found += f", {plural(self.evaluations, 'imitation evaluation')}" if self.evaluations else ""
        return f"{found}; {plural(left, 'note')} on what was left out: {self.html} and {self.markdown}"


def compare(config: CompareConfig) -> Report:
    """Reads everything, and writes report.html, report.md, scores.csv and pictures/ into `config.out`.

    Raises:
        ConfigError: nothing to read was named, or a filter names nothing that there is.
        CompareError: no file named holds a curve or evaluated episodes.
    """
    if not config.runs and not config.references:
        raise ConfigError("nothing to compare: give runs=FOLDER or runs=[FOLDER,...], and references=FOLDER beside it.")
    enough = float(min(config.frames, default=np.inf))
    reading = read(config.runs, config.references, min_coverage=config.min_coverage, enough=enough)
    evaluations, notes = read_evaluations(reading.episodes, reading.imitators)
    reading.notes += notes
    _leave_out_begun(reading)
    if not reading.curves and not evaluations:
        raise CompareError(_nothing(config, reading))
    evaluations = _filter(reading, evaluations, config)
    scale = scales(reading.curves, config.scale)
    cuts = _cuts(reading.curves, scale, config) if reading.curves else []
    reading.notes += [*(note for cut in cuts for note in cut.notes), *unequal(reading, scale, cuts)]
    sections = curve_sections(reading, scale, cuts, config) if reading.curves else []
    if evaluations:
        sections.append(Section("Imitation", "imitation", imitation_blocks(evaluations)))
    sections = [*notes_section(reading.notes), *sections, methods_section(reading, scale, config)]
    document = Document(config.title, _lead(reading.curves, evaluations), sections)
    html, text = _write(document, reading.curves, Path(config.out))
    tasks = {curve.task for curve in reading.curves} | {e.task for e in evaluations}
    return Report(html, text, len(reading.curves), len(tasks), len(evaluations), reading.notes, cuts)


def _leave_out_begun(reading: Reading) -> None:
    """Runs that have only just begun would put every comparison at 0 frames."""
    ours = [curve for curve in reading.curves if not curve.reference]
    begun = [curve for curve in ours if common_frames([curve]) == 0]
    if len(begun) < len(ours):
        text = "has only its evaluation at 0 frames"
        reading.notes += [Note(LEFT_OUT, f"{method_of(curve).name} on {curve.task}", text) for curve in begun]
        reading.curves = [curve for curve in reading.curves if not any(curve is other for other in begun)]


def _cuts(curves: Sequence[Curve], scale: dict[str, Scale], config: CompareConfig) -> list[Cut]:
    """Scores at the frames that are asked for; else as far as all of ours go, with a note on what limits them."""
    ours = [curve for curve in curves if not curve.reference] or list(curves)
    frames = [float(f) for f in sorted(set(config.frames))] or [frames_for_all(ours, config.max_gap)]
    options = {"resamples": config.resamples, "seed": config.seed}
    cuts = [cut_at(curves, scale, f, max_gap=config.max_gap, **options) for f in frames]
    longest = max(common_frames([curve]) for curve in ours)
    if not config.frames and longest > frames[0]:
        shortest = common_frames(ours)
        limits = [f"{method_of(c).name} on {c.task}" for c in ours if common_frames([c]) == shortest]
        text = (
            f"compared over all tasks at {frames[0]:,.0f} frames, because {listed(limits)} ends at {shortest:,.0f}; others go "
            f"up to {longest:,.0f}; frames=[N] compares at N and leaves out what doesn't reach it"
        )
        cuts[0].notes.append(Note(UNEQUAL, "Frames", text))
    return cuts


def _filter(reading: Reading, evaluations: list[Evaluation], config: CompareConfig) -> list[Evaluation]:
    """Keeps the tasks and methods that are asked for, in place and of the evaluations."""
    tasks = sorted({curve.task for curve in reading.curves} | {e.task for e in evaluations})
    methods = sorted({method_of(curve).name for curve in reading.curves} | {e.label for e in evaluations})
    for key, wanted, known in (("tasks", config.tasks, tasks), ("methods", config.methods, methods)):
        unknown = [name for name in wanted if name not in known]
        if unknown:
            raise ConfigError(f"{key}={unknown[0]}: not there.{suggest(unknown[0], known)} There are: {', '.join(known)}.")
    chosen_tasks, chosen = config.tasks or tasks, config.methods or methods
    reading.curves = [c for c in reading.curves if c.task in chosen_tasks and method_of(c).name in chosen]
    kept = [e for e in evaluations if e.task in chosen_tasks and e.label in chosen]
    if not reading.curves and not kept:
        raise ConfigError(f"tasks={config.tasks} with methods={config.methods}: no curve is of both.")
    ours = {(c.task, c.label) for c in reading.curves if not c.reference}
    reading.runs = {key: run for key, run in reading.runs.items() if key[:2] in ours}
    return kept


def _nothing(config: CompareConfig, reading: Reading) -> str:
    where = listed([*config.runs, *config.references], most=5)
    if reading.imitators:
        return f"{where}: {plural(len(reading.imitators), 'imitation run')} without evaluated episodes yet; nothing to compare."
    why = f" The first problem: {reading.notes[0].subject} {reading.notes[0].text}." if reading.notes else ""
    return f"no curve and no evaluated episodes in {where}: nothing to compare.{why}"


def _lead(curves: Sequence[Curve], evaluations: Sequence[Evaluation]) -> str:
    parts = []
    if curves:
        methods = sorted({method_of(curve) for curve in curves})
        tasks = {curve.task for curve in curves}
        published = sum(m.reference for m in methods)
        parts.append(
            f"{plural(len(methods) - published, 'method')} of ours and {published} published on {plural(len(tasks), 'task')}"
        )
    if evaluations:
        tasks = {e.task for e in evaluations}
        parts.append(f"{plural(len({e.label for e in evaluations}), 'imitation method')} on {plural(len(tasks), 'task')}")
    return "; ".join(parts) + "."


def _write(document: Document, curves: Sequence[Curve], out: Path) -> tuple[Path, Path]:
    (out / "pictures").mkdir(parents=True, exist_ok=True)
    pictures = [block for section in document.sections for block in section.blocks if isinstance(block, Picture)]
    for old in {file for kind in NAMES for file in (out / "pictures").glob(f"{kind}.png")}:
        old.unlink()  # of an earlier report in this folder
    for picture in pictures:
        _replace(out / "pictures" / f"{picture.name}.png", picture.png)
    html, text = out / "report.html", out / "report.md"
    _replace(out / "scores.csv", _table(curves).encode())
    _replace(text, markdown(document).encode())
    _replace(html, page(document).encode())
    return html, text


def _table(curves: Sequence[Curve]) -> str:
    """Every evaluation that counted, for others to read."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("task", "method", "published", "step", "reward", "seed"))
    for curve in curves:
        for seed, series in curve.seeds.items():
            pairs = zip(series.steps.tolist(), series.returns.tolist(), strict=True)
            rows = ((curve.task, curve.label, int(curve.reference), f"{s:.10g}", f"{r:.8g}", seed) for s, r in pairs)
            writer.writerows(rows)
    return text.getvalue()


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".writing_{path.name}")
    temporary.write_bytes(data)
    os.replace(temporary, path)
