"""Nothing lost, counted: runs that are killed, disks that fill up, files that are damaged, problems without a solution.

    python benchmarks/endurance.py [--quick] [--only ITEM,...] [--root FOLDER] [--seed N] [--json PATH] [--minutes M]

    kills      SIGKILL at random moments of online and offline runs; the same command ends as a run that was left alone
    disk       a disk that is full at every kind of write of a run; file systems that are too small (where one may be mounted)
    damage     bits that flip in, and ends that are missing of, checkpoint, train state, replay, HDF5 and Parquet
    qps        quadratic programs, degenerate and infeasible ones among them
    plans      plans of batches in which the model breaks for some rows
    rollouts   episodes with the QP head, whose actions are measured
    memory     resident memory of runs that don't end, carried on to a day (20 minutes each; `--minutes`)

All sizes together take an hour or two on one core, `--quick` two minutes. An item that has been measured with the same seed is
in FOLDER and isn't measured again, so what was stopped goes on. Prints a table as Markdown; exit status 1 where something falls
short. Every random moment, byte and problem is a function of the seed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.command import save
from benchmarks.endurance_acting import memory, rollouts
from benchmarks.endurance_files import damage
from benchmarks.endurance_rows import Row, Setting, say, table
from benchmarks.endurance_runs import full_disk, kills
from benchmarks.endurance_solvers import plans, qps

ITEMS: dict[str, Callable[[Setting], Iterator[Row]]] = {
    "kills": kills,
    "disk": full_disk,
    "damage": damage,
    "qps": qps,
    "plans": plans,
    "rollouts": rollouts,
    "memory": memory,
}


def measured(name: str, root: Path, quick: bool, seed: int, minutes: float) -> list[Row]:
    """The rows of an item: those that are in `root`, else measured and put there."""
    kept = root / f"{name}{'-quick' if quick else ''}-seed{seed}.json"
    if kept.is_file():
        say(f"{name}: measured before, {kept}")
        return [Row(**row) for row in json.loads(kept.read_text())["rows"]]
    say(f"{name}, seed {seed}")
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="endurance-") as folder:
        rows = list(ITEMS[name](Setting(Path(folder), quick, seed, minutes)))
        for left in [*Path(folder).glob("*.txt"), *Path(folder).glob("*/memory.csv")]:  # what was said where something fell short
            target = root / f"{name}-{'-'.join(left.relative_to(folder).parts)}"
            shutil.copy(left, target)
    seconds = time.monotonic() - begun
    kept.write_text(
        json.dumps({"seed": seed, "seconds": round(seconds, 1), "rows": [vars(row) for row in rows]}, indent=1) + "\n"
    )
    say(f"{name}: {seconds:.0f} s")
    return rows


def main() -> int:
    """Prints the table; 1 where an item falls short."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes: every item in about two minutes together")
    parser.add_argument("--only", default=",".join(ITEMS), metavar="ITEM,...", help="these items")
    parser.add_argument("--root", type=Path, help="folder of what has been measured; none: measure everything anew")
    parser.add_argument("--seed", type=int, default=0, help="of moments, bytes and problems")
    parser.add_argument("--minutes", type=float, default=0.0, help="of each run of `memory`")
    parser.add_argument("--json", metavar="PATH", help="write {measure: number that fell short} there")
    args = parser.parse_args()
    names = [name for name in args.only.split(",") if name]
    unknown = [name for name in names if name not in ITEMS]
    if unknown:
        parser.error(f"--only {unknown[0]}: no such item; there are {', '.join(ITEMS)}.")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as nowhere:
        root = args.root or Path(nowhere)
        root.mkdir(parents=True, exist_ok=True)
        rows = [row for name in names for row in measured(name, root, args.quick, args.seed, args.minutes)]
    print(table(rows), end="")
    save({row.what: float(row.short) for row in rows}, args.json)
    return int(any(row.short for row in rows))


if __name__ == "__main__":
    sys.exit(main())
