"""Which planner settings learn: the same agent trained with each of them, judged by episode return and not by plan value.

    python benchmarks/planner_study.py train  [--root runs/study] [--jobs 2]      trains what is missing (resumable)
    python benchmarks/planner_study.py report [--root runs/study] [--out docs/results/planner_study.csv]
    python benchmarks/planner_study.py quick  --root FOLDER                       both, of three short runs: shows that it works

The report plays evaluation episodes with each trained agent. At some of their states it takes the prior's plan and the
optimized plan. The model's return of a plan is what the planner maximizes: discounted rewards and the terminal value. Its
true return is played in the simulator: from the episode's seed, by its actions up to that state, then by the plan, open loop,
then by the policy prior (whose value the terminal value stands for) to the end. Both in units of the agent's step scale.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from agents.latent.prior import policy_plan
from agents.registry import make_agent
from difftop.options import build
from difftop.planning import LMPlanner
from difftop.planning.rollout import rollout_return
from difftop.plot import read_table
from difftop.run.checkpoint import load_checkpoint
from difftop.run.seeding import stream
from envs import EnvConfig, env_spec, make_env

ROOT = Path(__file__).resolve().parent.parent
TASKS = {"cartpole-swingup": 20_000, "cheetah-run": 12_000}  # environment frames
PLANNERS = {  # name to options of agent.acting; the default is damping-10: horizon 5, five iterations, started from the prior
    "prior-alone": {"planner": "none"},
    "damping-0.1": {"lm.damping": 0.1},
    "damping-1": {"lm.damping": 1.0},
    "damping-10": {"lm.damping": 10.0},
    "damping-100": {"lm.damping": 100.0},
    "proximal-1": {"lm.damping": 0.1, "lm.proximal": 1.0},
    "start-previous": {"lm.start_previous": "true"},
    "iterations-10": {"lm.iterations": 10},
    "horizon-1": {"horizon": 1, "horizon_start": 1},
    "horizon-schedule": {"horizon_start": 1, "horizon_steps": 2_500},  # TD-MPC's shape; these runs have 2,500 and 3,000 steps
    "papers-5": {  # the papers' planner with five larger steps in place of a hundred
        "lm.objective": "return",
        "lm.scale": 1.0,
        "lm.step_size": 2e-3,
        "lm.damping": 1e-3,
        "lm.bounds": "clamp",
    },
}
SEEDS = (1, 2, 3)
QUICK = ("prior-alone", "damping-10", "papers-5")
STATES, EPISODES = 8, 3


class Cell(NamedTuple):
    """One run of the study."""

    task: str
    planner: str
    seed: int


@dataclass(frozen=True)
class Study:
    """What is trained and reported.

    Attributes:
        root: folder of the runs.
        tasks: environment frames of each.
        planners, seeds: of each task.
        extra: options of all runs.
    """

    root: Path
    tasks: Mapping[str, int] = field(default_factory=lambda: TASKS)
    planners: Sequence[str] = tuple(PLANNERS)
    seeds: Sequence[int] = SEEDS
    extra: Sequence[str] = ()

    @property
    def cells(self) -> list[Cell]:
        """All runs, task by task."""
        return [Cell(task, planner, seed) for task in self.tasks for planner in self.planners for seed in self.seeds]

    def command(self, cell: Cell) -> list[str]:
        """The training run of one cell."""
        settings = [f"agent.acting.{option}={value}" for option, value in PLANNERS[cell.planner].items()]
        options = ["agent=difftop_rl", "world_model=tdmpc", "agent.policy_gradient.mode=none", *settings, f"env=dmc/{cell.task}"]
        sizes = ["preset=cpu", "run.batch_size=128", f"run.frames={self.tasks[cell.task]}", "run.eval_every=4000"]
        where = [f"seed={cell.seed}", f"name={cell.planner}", f"root={self.root}"]
        return [sys.executable, "train.py", *options, *sizes, "run.video=false", "threads=1", *where, *self.extra]

    def folder(self, cell: Cell) -> Path:
        """Where that run is."""
        return self.root / f"dmc-{cell.task}" / "difftop_rl" / cell.planner / f"seed{cell.seed}"

    def finished(self, cell: Cell) -> bool:
        """Whether that run has reached its last frame."""
        last = self.folder(cell) / "checkpoints" / "last"
        frames = self.tasks[cell.task]
        return last.exists() and float(read_table(last.parents[1] / "eval.csv", ("env_frames",))[-1, 0]) >= frames

    def train(self, jobs: int) -> None:
        """Runs all cells, `jobs` at a time; finished ones end at once."""

        def work(cell: Cell) -> None:
            subprocess.run(self.command(cell), cwd=ROOT, check=True, stderr=subprocess.DEVNULL)
            print("done", *cell, flush=True)

        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(work, self.cells))

    def report(self, out: Path) -> None:
        """Writes the table and, beside it, the picture. A cell without a run keeps its earlier row, or is missing."""
        rows, earlier = [], earlier_rows(out)
        for cell in self.cells:
            if self.finished(cell):
                rows.append(measure(cell, self.folder(cell)))
                print(json.dumps(asdict(rows[-1])), flush=True)
            elif cell in earlier:
                rows.append(earlier[cell])
            else:
                print(f"missing: {cell.task}, {cell.planner}, seed {cell.seed}", flush=True)
        if not rows:
            raise SystemExit(f"{self.root}: no finished run of the study; run `train` first.")
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(asdict(rows[0])), lineterminator="\n")
            writer.writeheader()
            writer.writerows(asdict(row) for row in rows)
        draw(rows, out.with_suffix(".png"))


def quick(root: Path) -> Study:
    """Three short runs on small networks."""
    few = ["run.eval_episodes=1", "run.eval_every=1000", "run.seed_steps=100", "run.batch_size=8", "env.episode_steps=40"]
    small = ["agent.model.mlp_dim=16", "agent.model.encoder_dim=16", "run.updates_per_step=0.1"]
    return Study(root, {"cartpole-swingup": 1600}, QUICK, (1,), [*few, *small])


@dataclass(frozen=True)
class Row:
    """One trained agent.

    Attributes:
        episode_return, best: mean return of the last evaluation, and of the best one.
        late_return: mean over the evaluations in the second half of the run, which single unlucky evaluations move less.
        model_gain, true_gain: return of the optimized plan minus that of the prior's, by the model and in the simulator.
        step: root mean square distance of the optimized plan from the prior's, in action units. Of prior-alone, these three
            are what the default planner would do with its model.
    """

    task: str
    planner: str
    seed: int
    episode_return: float
    best: float
    late_return: float
    model_gain: float
    true_gain: float
    step: float


@torch.no_grad()
def plans_at(agent: Any, z: torch.Tensor, horizon: int) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """The prior's and the optimized plan from a latent `[1, Z]`, and the model's return of each."""
    world = agent.world
    prior = policy_plan(world.model, z, horizon, 0.0, None)
    planner = LMPlanner(agent.config.acting.lm, world.spec.action_dim)  # prior-alone acts without one
    plans = {"prior": prior, "optimized": planner.plan(world.latent_model, z, prior, scale=world.step_scale()).actions}
    values = {name: float(rollout_return(world.latent_model, z, plan)) for name, plan in plans.items()}
    return {name: plan[0].numpy() for name, plan in plans.items()}, values


@torch.no_grad()
def latent(agent: Any, obs: Mapping[str, np.ndarray]) -> torch.Tensor:
    """Of one observation, `[1, Z]`."""
    return cast(torch.Tensor, agent.world.model.encode(torch.from_numpy(obs["state"])[None]))


@torch.no_grad()
def true_return(env: Any, agent: Any, seed: int, before: list[np.ndarray], plan: np.ndarray) -> float:
    """Return of a plan played open loop from the state that `before` leads to, and of the prior after it."""
    obs, _ = env.reset(seed=seed)
    for action in before:
        env.step(action)
    rewards, over = [], False
    while not over:
        action = plan[len(rewards)] if len(rewards) < len(plan) else agent.world.model.policy(latent(agent, obs))[0].numpy()
        obs, reward, terminated, truncated, _ = env.step(action)
        rewards.append(float(reward))
        over = terminated or truncated
    return float(np.dot(rewards, agent.world.discount ** np.arange(len(rewards))))


def measure(cell: Cell, path: Path) -> Row:
    """One row, from the run's tables and from its last checkpoint."""
    frames, returns = read_table(path / "eval.csv", ("env_frames", "return_mean")).T
    scores = [float(x) for x in (returns[-1], returns.max(), returns[2 * frames > frames[-1]].mean())]
    checkpoint = load_checkpoint(path)
    config = build(EnvConfig, checkpoint.config["env"], "env")
    spec = env_spec(config)
    agent: Any = make_agent(checkpoint.config["agent"], spec, seed=0)
    agent.load_state_dict(checkpoint.model)
    horizon = agent.config.acting.plan_length(checkpoint.step)
    scale = float(agent.world.step_scale())
    env, other = make_env(config), make_env(config)
    gains: list[tuple[float, float, float]] = []
    for episode in range(EPISODES):
        start = stream(cell.seed, "planner_study", episode)
        actor = agent.actor(1, seed=0, explore=False)
        obs, _ = env.reset(seed=start)
        before: list[np.ndarray] = []
        for t in range(spec.episode_steps - horizon):
            if t % (spec.episode_steps // STATES) == 0:
                plans, values = plans_at(agent, latent(agent, obs), horizon)
                true = {name: true_return(other, agent, start, before, plan) for name, plan in plans.items()}
                step = float(np.sqrt(np.mean((plans["optimized"] - plans["prior"]) ** 2)))
                gains.append(((values["optimized"] - values["prior"]) / scale, (true["optimized"] - true["prior"]) / scale, step))
            seen = {key: torch.from_numpy(value)[None] for key, value in obs.items()}
            action = actor.act(seen, torch.tensor([t == 0]), checkpoint.step)[0].numpy()
            before.append(action)
            obs = env.step(action)[0]
    model_gain, true_gain, step = np.mean(gains, axis=0)
    return Row(*cell, *scores, float(model_gain), float(true_gain), float(step))


def earlier_rows(path: Path) -> dict[Cell, Row]:
    """Rows of an earlier report by task, planner and seed; none where there is no such file."""
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        read = [
            {key: value if key in ("task", "planner") else float(value) for key, value in row.items()}
            for row in csv.DictReader(file)
        ]
    made = [Row(**row | {"seed": int(row["seed"])}) for row in read]  # type: ignore[arg-type]
    return {Cell(row.task, row.planner, row.seed): row for row in made}


def draw(rows: list[Row], path: Path) -> None:
    """Episode return, the model's gain, the true gain and the step by planner; a bar per task, a dot per seed."""
    from matplotlib.figure import Figure

    panels = {
        "late_return": "episode return, second half of the run",
        "model_gain": "plan over prior, by the model",
        "true_gain": "plan over prior, in the simulator",
        "step": "RMS step from the prior",
    }
    planners = [name for name in PLANNERS if any(row.planner == name for row in rows)]
    tasks = list(dict.fromkeys(row.task for row in rows))
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    for axes, (name, title) in zip(figure.subplots(1, 4), panels.items(), strict=True):
        for k, task in enumerate(tasks):
            for x, planner in enumerate(planners):
                values = [getattr(row, name) for row in rows if (row.task, row.planner) == (task, planner)]
                place = x + 0.4 * (k - (len(tasks) - 1) / 2)
                if values:
                    axes.bar(place, np.mean(values), 0.36, color=f"C{k}", alpha=0.45, label=task if x == 0 else None)
                axes.plot([place] * len(values), values, ".", color=f"C{k}")
        axes.set_xticks(range(len(planners)), planners, rotation=40, ha="right")
        axes.set_title(title)
        axes.grid(axis="y", alpha=0.2)
        axes.axhline(0, color="black", linewidth=0.8)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(tasks), frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "report", "quick"))
    parser.add_argument("--root", type=Path, default=Path("runs/study"))
    parser.add_argument("--out", type=Path, default=Path("docs/results/planner_study.csv"))
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.what == "quick":
        study = quick(options.root.resolve())
        study.train(options.jobs)
        study.report(study.root / "planner_study.csv")
    elif options.what == "train":
        Study(options.root.resolve()).train(options.jobs)
    else:
        Study(options.root).report(options.out)


if __name__ == "__main__":
    main()
