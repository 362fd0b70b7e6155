"""A run of difftop as a folder for LeRobot: `python -m lerobot_policy_difftop RUN OUT`, then `--policy.path=OUT`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from difftop.options import ConfigError
from difftop.run.checkpoint import CheckpointError
from lerobot_policy_difftop.configuration_difftop import DifftopConfig
from lerobot_policy_difftop.modeling_difftop import DifftopPolicy
from lerobot_policy_difftop.processor_difftop import make_difftop_pre_post_processors


def export(run: Path | str, out: Path | str) -> Path:
    """Writes what `--policy.path` wants: configuration, weights, and what is done before and after the policy.

    Args:
        run: run folder or checkpoint of difftop.
        out: folder, made; must not hold another policy.
    Raises:
        FileExistsError: it does.
        CheckpointError, ConfigError: there is no checkpoint, or it doesn't imitate.
    """
    folder = Path(out)
    if (folder / "config.json").exists():
        raise FileExistsError(f"{folder}: it holds a policy already; give another folder, or delete it.")
    policy = DifftopPolicy(DifftopConfig(checkpoint=str(run), device="cpu")).eval()
    policy.save_pretrained(folder)
    for pipeline in make_difftop_pre_post_processors(policy.config):
        pipeline.save_pretrained(folder)
    return folder


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m lerobot_policy_difftop", description=__doc__)
    parser.add_argument("run", help="run folder or checkpoint of difftop")
    parser.add_argument("out", help="folder to write")
    given = parser.parse_args(arguments)
    try:
        folder = export(given.run, given.out)
    except (FileExistsError, CheckpointError, ConfigError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(f"{folder}: use it by --policy.path={folder}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
