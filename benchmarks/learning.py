"""Runs a study of training runs (settings x tasks x seeds), what is missing of it, and reports it.

    python benchmarks/learning.py benchmarks/studies/dmcontrol15.yaml --root runs/dmcontrol15 --jobs 2
    python benchmarks/learning.py benchmarks/studies/dmcontrol15.yaml --root runs/dmcontrol15 --report

Each run is a process of train.py with one thread; Ctrl-C lets all save, and the same command goes on. `--results` counts the
runs of a tidy table as done, such as those of another machine. The study's file is explained in docs/results/README.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.study import Study, read_study
from benchmarks.study_queue import Records, costs, longest, pending, read_rows, run_queue, survivors, timed
from benchmarks.study_report import report
from difftop.curves import CurveError
from difftop.options import ConfigError


def plan_text(study: Study, records: Records) -> str:
    """What would be run, in order, with what it costs."""
    jobs = pending(study, records, set())
    cost = costs(study, records, jobs)
    unit = (60.0, "min") if timed(study, records) else (1000.0, "thousand agent steps and updates")
    lines = [f"{len(jobs)} to run now, {sum(cost.values()) / unit[0]:,.0f} {unit[1]} together:"]
    for job in jobs:
        begun = records.frames(job.cell)
        where = f" to {job.frames:,} frames, {begun:,.0f} done" if job.what == "train" else ""
        lines.append(f"{cost[job] / unit[0]:8.1f}  {job.what}: {job.cell}{where}")
    if study.halving:
        alive = survivors(study, records, set())
        lines += [f"round {k + 1}: {', '.join(settings)}" for k, settings in enumerate(alive)]
        lines += [f"round {k + 1}: chosen when the round before has ended" for k in range(len(alive), len(study.rounds))]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="YAML file, as in benchmarks/studies")
    parser.add_argument("--root", type=Path, help="folder of the runs; default runs/STUDY")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--only", default="", metavar="SETTING,..", help="these settings only")
    parser.add_argument("--tasks", default="", metavar="TASK,..", help="these tasks only")
    parser.add_argument("--seeds", default="", metavar="SEED,..", help="these seeds only")
    parser.add_argument("--results", type=Path, action="append", default=[], help="tidy table of runs that count as done")
    parser.add_argument("--dry-run", action="store_true", help="say what would be run")
    parser.add_argument("--report", action="store_true", help="write a table, a page and a picture of what is there")
    parser.add_argument("--out", type=Path, metavar="STEM", help="of the report's files; default ROOT/report")
    parser.add_argument("--into", type=Path, metavar="TABLE", help="with --report: a tidy table that the rows are added to")
    options = parser.parse_args(arguments)
    try:
        part = {key: [word for word in getattr(options, key).split(",") if word] for key in ("only", "tasks")}
        seeds = [int(word) if word.isdecimal() else -1 for word in options.seeds.split(",") if word]
        study = read_study(options.study, **part, seeds=seeds)
        elsewhere = longest(map(read_rows, options.results))
        records = Records(study, (options.root or Path("runs") / study.name).resolve(), elsewhere)
        if options.jobs < 1:
            raise ConfigError(f"--jobs {options.jobs}: must be at least 1.")
        if options.dry_run:
            print(plan_text(study, records))
            return 0
        if options.report:
            for path in report(study, records, options.out or records.root / "report", options.into):
                print(path)
            return 0
        return run_queue(study, records, options.jobs)
    except (ConfigError, CurveError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("ended at once: what was saved before is whole, and the same command goes on from there.\n")
        return 130


if __name__ == "__main__":
    sys.exit(main())
