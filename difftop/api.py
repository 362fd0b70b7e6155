"""What the command line does, from Python: environments, agents and training, by the names that the command line knows."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from difftop.types import EnvSpec


@dataclass(frozen=True)
class Trained:
    """What `train` gives back.

    Attributes:
        folder: of the run; `load_policy(folder)` takes it.
        finished: False where it was stopped (Ctrl-C, SIGTERM), and saved: the same call goes on.
        evaluation: the last one: the row of eval.csv as numbers, or in imitation the metrics of the reported episodes.
    """

    folder: Path
    finished: bool
    evaluation: Mapping[str, float]


def train(overrides: Sequence[str]) -> Trained:
    """Trains, or goes on with a run that was stopped, as `python train.py OVERRIDES` does.

    Processes for environments (`run.parallel=true`) are started where they are asked for only: each imports the script that calls
    this, which then needs its `if __name__ == "__main__":`.

    Args:
        overrides: `KEY=VALUE` or `GROUP=OPTION`; `python train.py --help` lists them.
    Raises:
        ConfigError and the library's other errors: one sentence that says what is wrong.
    """
    from difftop.command import run

    end = run(list(overrides), spawns=False)
    return Trained(end.folder, end.finished, last_evaluation(end.folder))


def last_evaluation(folder: Path | str) -> dict[str, float]:
    """The last evaluation of the run in `folder`; empty where there was none."""
    summary, table = Path(folder) / "evaluation" / "summary.json", Path(folder) / "eval.csv"
    if summary.is_file():
        found: dict[str, float] = json.loads(summary.read_text())["metrics"]
        return found
    rows = list(csv.DictReader(table.read_text().splitlines())) if table.is_file() else []
    return {key: float(value) for key, value in rows[-1].items() if value} if rows else {}


def make_env(name: str, **options: Any) -> Any:
    """A Gymnasium environment, observations by key, actions in [-1, 1]; its `difftop_spec` is what agents are built from.

    Args:
        name: SUITE/TASK, such as `dmc/walker-walk`; `python train.py mode=envs` lists all.
        options: of `envs.EnvConfig`, such as `obs="pixels"`; `render_mode` beside them.
    Raises:
        ConfigError: an unknown name or option.
        EnvError: its simulator is missing.
    """
    return import_module("envs.registry").make_registered(name, **options)


def make_agent(
    name: str,
    spec: EnvSpec,
    *,
    seed: int = 1,
    device: str = "cpu",
    precision: str = "auto",
    total_steps: int = 0,
    capture: str = "auto",
    **options: Any,
) -> Any:
    """An untrained agent; see `difftop.contract.Agent`.

    Args:
        name: registry name, such as `difftop_rl`.
        spec: of the environment, `make_env(...).difftop_spec`.
        seed: of its weights and its generator.
        device, precision: `cpu | cuda`, `auto | fp32 | bf16`.
        total_steps: imitation: gradient steps of the training, for the learning rate's schedule.
        capture: `auto | true | false`: CUDA graphs of updates and plans.
        options: of the agent, nested groups as dictionaries (`model={"mlp_dim": 128}`).
    """
    make = import_module("agents.registry").make_agent
    how = {"device": device, "precision": precision, "total_steps": total_steps, "capture": capture}
    return make({"name": name, **options}, spec, seed=seed, **how)
