"""How long a loaded policy takes for one action: `difftop.load_policy(...).act(obs)`, one observation, default sizes.

    python benchmarks/latency.py [--quick] [--json PATH]

One thread, medians of process CPU time, untrained weights: the arithmetic is the same. Policies of chunks are timed where a new
chunk is due (`agent.execute=1` predicts at every step). Observations: a vector of 17 numbers, actions of 6.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import difftop
from benchmarks.command import parse, save
from benchmarks.update import medians
from difftop.run.checkpoint import save_checkpoint
from difftop.types import EnvSpec, ObsSpec

SPEC = EnvSpec("benchmark/vector", {"state": ObsSpec("vector", (17,))}, 6, 250, 0.04, gives=frozenset({"reward"}))
AGENTS: dict[str, dict[str, Any]] = {
    "tdmpc": {},
    "tdmpc2": {},
    "difftop_rl": {},
    "difftop_rl, world_model=tdmpc": {"world_model": "tdmpc"},
    "difftop_rl, planner=none": {"acting": {"planner": "none"}},
    "bc": {"execute": 1},
    "rnn_gmm": {},
    "leto": {},
    "ibc": {"execute": 1},
    "diffusion": {"execute": 1},
    "diffusion, backbone=transformer": {"execute": 1, "backbone": "transformer"},
    "act": {},
    "difftop_il": {"execute": 1},
}
STEPS = 100_000  # of training: plans have their full length


def loaded(label: str, folder: Path) -> difftop.Policy:
    """A policy from a checkpoint, as a program has it."""
    values = {"name": label.partition(",")[0], **AGENTS[label]}
    agent = difftop.make_agent(**values, spec=SPEC, total_steps=1)
    named = {"agent_name": values["name"], "config": {"agent": values}, "spec": SPEC}
    save_checkpoint(folder, step=STEPS, **named, model=agent.state_dict(), train_state={})
    return difftop.load_policy(folder, device="cpu")


def main() -> None:
    """Prints the table; writes `{measure: value}` with --json."""
    options = parse(__doc__)
    obs = np.random.default_rng(0).normal(size=17).astype(np.float32)
    candidates: dict[str, Callable[[], object]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for label in AGENTS:
            policy = loaded(label, Path(folder) / label.replace(" ", ""))
            candidates[label] = lambda policy=policy: policy.act(obs)
        ms = medians(candidates, 3 if options.quick else 15)
    print(f"{'agent':28s}{'ms per action':>14s}")
    for label, value in ms.items():
        print(f"{label:28s}{value:14.2f}")
    save({f"act_ms {label}": value for label, value in ms.items()}, options.json)


if __name__ == "__main__":
    main()
