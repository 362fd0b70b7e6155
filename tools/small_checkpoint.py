"""A checkpoint to act with, small enough for a repository: weights in half precision, nothing that only training needs.

    python tools/small_checkpoint.py runs/dmc-cheetah-run/difftop_rl/cpu/seed1 examples/checkpoints/cheetah-run

`mode=eval checkpoint=examples/checkpoints/cheetah-run` and `difftop.load_policy` read it. Rounding weights to 11 bits changes
returns by less than seeds of an episode do; check it before you commit one.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from difftop.run.checkpoint import CheckpointError, load_checkpoint, save_checkpoint


def small(run: Path, out: Path) -> int:
    """Writes `out` from a run's last checkpoint (or the one given), and returns its size in bytes.

    Raises:
        CheckpointError: there is no checkpoint, or it is damaged.
        FileExistsError: `out` is there already.
    """
    saved = load_checkpoint(run, training=False)
    model = {name: value.half() if value.dtype == torch.float32 else value for name, value in saved.model.items()}
    if any(not torch.isfinite(value).all() for value in model.values() if value.is_floating_point()):
        raise CheckpointError(f"{run}: a weight is beyond half precision's range.")
    config = dict(saved.config)
    if "top" in config:
        config["top"] = dict(config["top"]) | {"root": "runs"}  # where it was on one machine is nobody's business
    if "run" in config:
        config["run"] = dict(config["run"]) | {"video": True}  # it is there to be looked at
    with tempfile.TemporaryDirectory() as folder:
        path = save_checkpoint(
            folder,
            step=saved.step,
            agent_name=saved.agent_name,
            config=config,
            spec=saved.spec,
            model=model,
            train_state={},
        )
        shutil.copytree(path, out)
    return sum(file.stat().st_size for file in out.iterdir())


def main() -> None:
    """From the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run or of a checkpoint")
    parser.add_argument("out", type=Path, help="folder to make")
    options = parser.parse_args()
    try:
        sys.stdout.write(f"{options.out}: {small(options.run, options.out) / 1e6:.2f} MB\n")
    except (CheckpointError, FileExistsError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
