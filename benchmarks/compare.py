"""Speed of the comparison: 500 synthetic curves, from CSVs on disk to the written report.

    python benchmarks/compare.py [--quick] [--json PATH]

100 tasks x 5 methods with 5 seeds of 41 evaluations each (2,500 runs, 102,500 rows), three methods as run folders (eval.csv,
metrics.csv, config.json), two as published tables. One process; seconds are wall-clock of `compare` alone, after its imports,
beside the CPU time, and memory is the peak of the whole process. The bar: 20 s and 2 GB.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.command import parse, save
from difftop.compare import compare, compare_config

METHODS, RUN_METHODS, SEEDS, EVALUATIONS = 5, 3, 5, 41
FRAMES = 1_000_000
BAR_S, BAR_GB = 20.0, 2.0


def write_curves(folder: Path, tasks: int, random: np.random.Generator) -> None:
    """Saturating learning curves with noise, as run folders and as tables."""
    steps = np.linspace(0, FRAMES, EVALUATIONS).astype(int)
    for t in range(tasks):
        task, level = f"walker-task{t:03d}", random.uniform(300, 950)
        for m in range(METHODS):
            rate = random.uniform(2, 8)
            noise = random.normal(0, 30, size=(SEEDS, EVALUATIONS))
            returns = level * (1 - np.exp(-rate * steps / FRAMES)) + noise
            if m < RUN_METHODS:
                for s in range(SEEDS):
                    write_run(
                        folder / "runs" / f"dmc-{task}" / f"method{m}" / "default" / f"seed{s + 1}", steps, returns[s], task
                    )
            else:
                table = folder / "published" / f"method{m}" / f"{task}.csv"
                table.parent.mkdir(parents=True, exist_ok=True)
                rows = [f"{f},{r:.1f},{s + 1}" for s in range(SEEDS) for f, r in zip(steps, returns[s], strict=True)]
                table.write_text("\n".join(["step,reward,seed", *rows]) + "\n")


def write_run(folder: Path, steps: np.ndarray, returns: np.ndarray, task: str) -> None:
    """A run folder with what the comparison reads of one."""
    folder.mkdir(parents=True)
    run = {"frames": FRAMES, "seed_steps": 1000, "updates_per_step": 1.0, "num_envs": 1, "eval_episodes": 10}
    config = {"top": {"seed": 1}, "run": run, "env": {"name": f"dmc/{task}"}, "agent": {"name": "method"}}
    (folder / "config.json").write_text(json.dumps(config))
    evals = [f"{f},{f // 2},{r:.4f},10.0,,10,{f * 0.01:.2f}" for f, r in zip(steps, returns, strict=True)]
    head = "env_frames,agent_steps,return_mean,return_std,success_mean,episodes,wall_s"
    (folder / "eval.csv").write_text("\n".join([head, *evals]) + "\n")
    training = [f"{f},{r:.4f},1,{f // 2},{f * 0.01:.2f}" for f, r in zip(steps[1:], returns[1:], strict=True)]
    (folder / "metrics.csv").write_text("\n".join(["step,reward,seed,agent_steps,wall_s", *training]) + "\n")


def main() -> None:
    """Prints the table; writes `{measure: value}` with --json."""
    options = parse(__doc__, "10 curves: shows that it runs, measures nothing")
    tasks = 2 if options.quick else 100
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_curves(folder, tasks, np.random.default_rng(0))
        import matplotlib.figure  # noqa: F401  (its import is not what is measured)

        begun, cpu = time.perf_counter(), time.process_time()
        report = compare(
            compare_config({"runs": str(folder / "runs"), "references": str(folder / "published"), "out": str(folder / "out")})
        )
        measures = {"curves": report.curves, "seconds": time.perf_counter() - begun, "cpu_seconds": time.process_time() - cpu}
        measures["html_mb"] = report.html.stat().st_size / 1e6
    measures["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{tasks} tasks x {METHODS} methods x {SEEDS} seeds, {EVALUATIONS} evaluations each\n")
    print(f"{'measure':18s}{'ours':>10s}{'bar':>8s}")
    for measure, bar in (("curves", None), ("seconds", BAR_S), ("cpu_seconds", None), ("peak_gb", BAR_GB), ("html_mb", None)):
        met = "" if bar is None else f"{bar:8.0f}  {'met' if measures[measure] <= bar else 'not met'}"
        print(f"{measure:18s}{measures[measure]:10.2f}{met}")
    save(measures, options.json)


if __name__ == "__main__":
    main()
