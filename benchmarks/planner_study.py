"""Which planner settings learn: the same agent trained with each of them, judged by episode return and not by plan value.

    python benchmarks/planner_study.py train  [--root runs/study] [--jobs 2]      trains what is missing (resumable)
    python benchmarks/planner_study.py report [--root runs/study] [--out docs/results/planner_study.csv]

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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents.latent.prior import policy_plan
from agents.registry import make_agent
from difftop.options import build
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
STATES, EPISODES = 8, 3


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


def command(task: str, planner: str, seed: int, root: Path) -> list[str]:
    """The training run of one cell."""
    settings = [f"agent.acting.{option}={value}" for option, value in PLANNERS[planner].items()]
    options = ["agent=difftop_rl", "agent.policy_gradient.mode=none", *settings, f"env=dmc/{task}"]
    sizes = [
        "preset=cpu",
        "run.batch_size=128",
        f"run.frames={TASKS[task]}",
        "run.eval_every=4000",
        "run.video=false",
        "threads=1",
    ]
    return [sys.executable, "train.py", *options, *sizes, f"seed={seed}", f"name={planner}", f"root={root}"]


def folder(task: str, planner: str, seed: int, root: Path) -> Path:
    """Where that run is."""
    return root / f"dmc-{task}" / "difftop_rl" / planner / f"seed{seed}"


def train_all(root: Path, jobs: int) -> None:
    """Runs all cells, `jobs` at a time; finished ones end at once."""
    cells = [(task, planner, seed) for planner in PLANNERS for seed in SEEDS for task in TASKS]

    def work(cell: tuple[str, str, int]) -> None:
        subprocess.run(command(*cell, root), cwd=ROOT, check=True, stderr=subprocess.DEVNULL)
        print("done", *cell, flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(work, cells))


@torch.no_grad()
def plans_at(agent: Any, obs: np.ndarray, horizon: int) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """The prior's and the optimized plan, and the model's return of each."""
    z = agent.model.encode(torch.from_numpy(obs)[None])
    prior = policy_plan(agent.model, z, horizon, 0.0, None)
    optimized = agent.lm.plan(agent.latent_model, z, prior, scale=agent.step_scale()).actions
    plans = {"prior": prior, "optimized": optimized}
    values = {name: float(rollout_return(agent.latent_model, z, plan)) for name, plan in plans.items()}
    return {name: plan[0].numpy() for name, plan in plans.items()}, values


@torch.no_grad()
def true_return(env: Any, agent: Any, seed: int, before: list[np.ndarray], plan: np.ndarray) -> float:
    """Return of a plan played open loop from the state that `before` leads to, and of the prior after it."""
    obs, _ = env.reset(seed=seed)
    for action in before:
        env.step(action)
    rewards, over = [], False
    while not over:
        if len(rewards) < len(plan):
            action = plan[len(rewards)]
        else:
            action = agent.model.policy(agent.model.encode(torch.from_numpy(obs)[None]))[0].numpy()
        obs, reward, terminated, truncated, _ = env.step(action)
        rewards.append(float(reward))
        over = terminated or truncated
    return float(np.dot(rewards, agent.config.discount ** np.arange(len(rewards))))


def measure(task: str, planner: str, seed: int, root: Path) -> Row:
    """One row, from the run's tables and from its last checkpoint."""
    path = folder(task, planner, seed, root)
    frames, returns = read_table(path / "eval.csv", ("env_frames", "return_mean")).T
    scores = [float(x) for x in (returns[-1], returns.max(), returns[2 * frames > frames[-1]].mean())]
    checkpoint = load_checkpoint(path)
    config = build(EnvConfig, checkpoint.config["env"], "env")
    spec = env_spec(config)
    agent: Any = make_agent(checkpoint.config["agent"], spec, seed=0)
    agent.load_state_dict(checkpoint.model)
    horizon = agent.config.acting.plan_length(checkpoint.step)
    env, other = make_env(config), make_env(config)
    gains: list[tuple[float, float, float]] = []
    for episode in range(EPISODES):
        start = stream(seed, "planner_study", episode)
        actor = agent.actor(1, seed=0, explore=False)
        obs, _ = env.reset(seed=start)
        before: list[np.ndarray] = []
        for t in range(spec.episode_steps - horizon):
            if t % (spec.episode_steps // STATES) == 0:
                plans, values = plans_at(agent, obs, horizon)
                true = {name: true_return(other, agent, start, before, plan) for name, plan in plans.items()}
                scale = float(agent.step_scale())
                step = float(np.sqrt(np.mean((plans["optimized"] - plans["prior"]) ** 2)))
                gains.append(((values["optimized"] - values["prior"]) / scale, (true["optimized"] - true["prior"]) / scale, step))
            action = actor.act(torch.from_numpy(obs)[None], torch.tensor([t == 0]), checkpoint.step)[0].numpy()
            before.append(action)
            obs = env.step(action)[0]
    model_gain, true_gain, step = np.mean(gains, axis=0)
    return Row(task, planner, seed, *scores, float(model_gain), float(true_gain), float(step))


def finished(task: str, planner: str, seed: int, root: Path) -> bool:
    """Whether that run has reached its last frame."""
    last = folder(task, planner, seed, root) / "checkpoints" / "last"
    return last.exists() and float(read_table(last.parents[1] / "eval.csv", ("env_frames",))[-1, 0]) >= TASKS[task]


def earlier_rows(path: Path) -> dict[tuple[str, str, int], Row]:
    """Rows of an earlier report by task, planner and seed; none where there is no such file."""
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        read = [
            {key: value if key in ("task", "planner") else float(value) for key, value in row.items()}
            for row in csv.DictReader(file)
        ]
    made = [Row(**row | {"seed": int(row["seed"])}) for row in read]  # type: ignore[arg-type]
    return {(row.task, row.planner, row.seed): row for row in made}


def report(root: Path, out: Path) -> None:
    """Writes the table and, beside it, the picture. A cell without a run keeps its row of an earlier report, or is missing."""
    rows = []
    earlier = earlier_rows(out)
    for task in TASKS:
        for planner in PLANNERS:
            for seed in SEEDS:
                if finished(task, planner, seed, root):
                    rows.append(measure(task, planner, seed, root))
                    print(json.dumps(asdict(rows[-1])), flush=True)
                elif (task, planner, seed) in earlier:
                    rows.append(earlier[task, planner, seed])
                else:
                    print(f"missing: {task}, {planner}, seed {seed}", flush=True)
    if not rows:
        raise SystemExit(f"{root}: no finished run of the study; run `train` first.")
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(asdict(rows[0])), lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    draw(rows, out.with_suffix(".png"))


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
    parser.add_argument("what", choices=("train", "report"))
    parser.add_argument("--root", type=Path, default=Path("runs/study"))
    parser.add_argument("--out", type=Path, default=Path("docs/results/planner_study.csv"))
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.what == "train":
        train_all(options.root.resolve(), options.jobs)
    else:
        report(options.root, options.out)


if __name__ == "__main__":
    main()
