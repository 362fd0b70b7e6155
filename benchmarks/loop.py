"""The whole loop against an older commit: frames/s of `preset=cpu` on cheetah-run, simulator, acting, updates and records.

    python benchmarks/loop.py [--quick] [--json PATH]

Both trees train the same task on TD-MPC's world by `preset=cpu`, one thread each, in turn (ours, theirs, ours, ...), each in a
process of its own. What counts is the time from the first episode after the random ones to the end, as metrics.csv has it:
starting Python, random steps and the first burst of updates are not in it. The older tree is from this repository's history.

    speedup_loop          frames/s here over frames/s there, medians            at least 2
"""

from __future__ import annotations

import csv
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.command import parse, save

ROOT = Path(__file__).resolve().parents[1]
AGAINST = "6dbe338"
BAR = 2.0
SEED_FRAMES = 4000  # of preset=cpu on cheetah-run: 1,000 steps of 4 frames


def older(commit: str, folder: Path) -> Path:
    """The tree of a commit."""
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=True).stdout
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, check=True)
    return folder


def frames_per_s(tree: Path, frames: int, extra: list[str]) -> float:
    """Of one training run in `tree`, after its random episodes and the burst that follows them."""
    with tempfile.TemporaryDirectory() as runs:
        options = ["preset=cpu", "env=dmc/cheetah-run", f"run.frames={frames}", "run.eval_episodes=1", "run.eval_every=1000000"]
        options += ["run.video=false", "threads=1", "device=cpu", f"root={runs}", *extra]
        environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, "train.py", *options], cwd=tree, env=environment, check=True, capture_output=True)
        rows = list(csv.DictReader(next(Path(runs).rglob("metrics.csv")).read_text().splitlines()))
    timed = [(int(row["step"]), float(row["wall_s"])) for row in rows if int(row["step"]) > SEED_FRAMES]
    (first, begun), (last, ended) = timed[0], timed[-1]
    return (last - first) / (ended - begun)


def main() -> None:
    """Prints the table; writes `{measure: value}` with --json."""
    options = parse(__doc__)
    frames, repeats = (7000, 1) if options.quick else (12_000, 3)
    found: dict[str, list[float]] = {"here": [], AGAINST: []}
    with tempfile.TemporaryDirectory() as folder:
        trees = {"here": ROOT, AGAINST: older(AGAINST, Path(folder))}
        for _ in range(repeats):
            for name, tree in trees.items():
                found[name].append(frames_per_s(tree, frames, ["world_model=tdmpc"] if name == "here" else []))
                print(f"{name:10s}{found[name][-1]:8.1f} frames/s", flush=True)
    here, there = (statistics.median(found[name]) for name in ("here", AGAINST))
    print(f"\nspeedup_loop {here / there:.2f}, bar {BAR}: {'met' if here / there >= BAR else 'not met'}")
    save({"frames_per_s": here, "frames_per_s_before": there, "speedup_loop": here / there}, options.json)


if __name__ == "__main__":
    main()
