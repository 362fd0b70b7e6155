"""Speed of `mode=status`: a sweep of 1,000 runs, from the command line to its table.

    python benchmarks/status.py [--quick] [--json PATH]

10 tasks x 2 agents x 50 seeds, each with 200 evaluations, 2,000 rows of training (0.3 MB) and the configuration of a real run.
Seconds are of the whole command, interpreter and imports included, best of three; beside them the time of a CPU, which
is what other work leaves alone. The bar: 3 s.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.command import parse, save
from difftop.run.logger import EVAL_COLUMNS, TRAINING_COLUMNS

ROOT = Path(__file__).resolve().parents[1]
BAR_S = 3.0
FRAMES, EVALUATIONS, ROWS, TAGS = 1_000_000, 200, 2_000, 12


def write_sweep(root: Path, seeds: int) -> int:
    """Run folders as training leaves them; returns their number."""
    names = [f"loss/tag{k}" for k in range(TAGS)]
    numbers = ",".join(["0.12345678"] * TAGS)
    training = [",".join([*TRAINING_COLUMNS, *names])]
    training += [f"{k * FRAMES // ROWS},123.45678,1,{k * FRAMES // ROWS // 2},{k},{numbers}" for k in range(1, ROWS + 1)]
    evaluation = [",".join(EVAL_COLUMNS)]
    evaluation += [f"{k * FRAMES // EVALUATIONS},{k},345.67891,12.345678,,10,{k}" for k in range(EVALUATIONS + 1)]
    run = {"frames": FRAMES, "eval_episodes": 10} | {f"option{k}": k for k in range(100)}
    texts = {"metrics.csv": training, "eval.csv": evaluation, "config.json": [json.dumps({"run": run}, indent=2)]}
    count = 0
    for task in range(10):
        for agent in ("tdmpc", "difftop_rl"):
            for seed in range(1, seeds + 1):
                folder = root / f"dmc-task{task}" / agent / "default" / f"seed{seed}"
                for inner in ("checkpoints/step_000500000", "checkpoints/replay", "tensorboard"):
                    (folder / inner).mkdir(parents=True)
                for name, lines in texts.items():
                    (folder / name).write_text("\n".join(lines) + "\n")
                count += 1
    return count


def main() -> None:
    """Prints one line."""
    args = parse(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        count, seconds, busy = write_sweep(Path(folder), 2 if args.quick else 50), [], []
        for _ in range(1 if args.quick else 3):
            begun, used = time.perf_counter(), cpu_s()
            command = [sys.executable, "train.py", "mode=status", f"root={folder}"]
            said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
            seconds.append(time.perf_counter() - begun)
            busy.append(cpu_s() - used)
        assert f"{count} runs: {count} finished" in said.splitlines()[0], said.splitlines()[0]
    met = "yes" if min(seconds) <= BAR_S else "NO"
    print(f"mode=status of {count:,} runs: {min(seconds):.2f} seconds ({min(busy):.2f} of a CPU), bar {BAR_S:g} s, met: {met}")
    save({"status_s": min(seconds), "status_cpu_s": min(busy)}, args.json)


def cpu_s() -> float:
    """Of the commands so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
