"""docs/extend.md, done from outside the tree: its files become an installed package, and each of its commands runs."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extend.md").read_text()
FILES = {block.splitlines()[0].removeprefix("# "): block for block in re.findall(r"```(?:python|toml)\n(.*?)```", PAGE, re.S)}
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.S) for line in block.splitlines()]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the page's package as pip would leave it."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "my_lab").mkdir()
    (folder / "my_lab" / "__init__.py").touch()
    for name, text in FILES.items():
        (folder / name).write_text(text)
    project = tomllib.loads(FILES["pyproject.toml"])["project"]
    (about := folder / "my_lab-0.1.dist-info").mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = [
        f"[{group}]\n" + "".join(f"{name} = {where}\n" for name, where in entries.items())
        for group, entries in project["entry-points"].items()
    ]
    (about / "entry_points.txt").write_text("\n".join(groups))
    return folder


def python(lab: Path, *arguments: str) -> str:
    """Runs Python beside the package; returns what it prints."""
    env = os.environ | {"PYTHONPATH": f"{lab}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *arguments], cwd=lab, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "is left out" not in done.stderr
    return done.stdout + done.stderr


def difftop(lab: Path, command: str) -> Path:
    """Runs a command of the page; returns the folder of the run."""
    words = shlex.split(command)
    assert words[0] == "difftop"
    values = dict(word.split("=", 1) for word in words[1:])
    root = lab / "runs" / str(COMMANDS.index(command))
    python(lab, str(ROOT / "train.py"), *words[1:], f"root={root}", "threads=1", "device=cpu", "run.video=false")
    found = sorted(root.glob(f"{values['env'].replace('/', '-')}/{values['agent']}/*/seed1"))
    assert len(found) == 1, sorted(root.rglob("*"))
    return found[0]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def command(*parts: str) -> str:
    (found,) = [line for line in COMMANDS if all(part in line.split() for part in parts)]
    return found


def test_every_file_is_short_and_every_entry_has_its_file() -> None:
    lengths = {name: len(text.splitlines()) for name, text in FILES.items() if name.endswith(".py")}
    assert lengths and max(lengths.values()) < 40, lengths
    entries = tomllib.loads(FILES["pyproject.toml"])["project"]["entry-points"]
    modules = {where.partition(":")[0] for group in entries.values() for where in group.values()}
    assert modules == {name.removesuffix(".py").replace("/", ".") for name in lengths}
    assert set(entries) == set(re.findall(r"`(difftop\.\w+)` \|$", PAGE, re.M))  # the table's groups


def test_tables_are_where_the_page_says() -> None:
    for contract, table, file in re.findall(r"^\| an? [\w ]+ \| (.*?) \| `(\w+)` in `(.*?)` \|", PAGE, re.M):
        assert re.search(rf"^{table}\b", (ROOT / file).read_text(), re.M), (table, file)
        assert all((ROOT / name).is_file() for name in re.findall(r"`(.*?)`", contract)), contract


def test_names_are_known_and_nothing_is_imported_before_it_is_needed(lab: Path) -> None:
    code = (
        "import sys, agents.registry, envs, difftop.data.files, difftop.qp, agents.latent.planners\n"
        "loaded = {name for name in sys.modules if name.startswith('my_lab')}\n"
        "assert loaded <= {'my_lab', 'my_lab.line'}, loaded  # a suite's tasks are registered with Gymnasium\n"
        "from agents.registry import AGENTS\n"
        "print(*AGENTS, *envs.list_envs(), *difftop.data.files.FORMATS, *difftop.qp.HEADS, *agents.latent.planners.PLANNERS)"
    )
    found = python(lab, "-c", code).split()
    assert {"gentle", "linear", "line/reach", "npz", "shorten", "shooting"} <= set(found)


def test_the_suite_is_a_gymnasium_environment(lab: Path) -> None:
    code = """
import gymnasium
from gymnasium.utils.env_checker import check_env
from envs import EnvConfig, gives, make_env
env = gymnasium.make("envs:difftop/line-reach-v0")
check_env(env.unwrapped, skip_render_check=True)
env = make_env(EnvConfig(name="line/reach"))
obs, _ = env.reset(seed=3)
assert env.observation_space.contains(obs) and sorted(gives("line/reach")) == ["reward", "success"]
steps, ended = 0, False
while not ended:
    obs, reward, terminated, truncated, info = env.step([-1.0 if obs["state"].sum() > 0 else 1.0])
    steps, ended = steps + 1, terminated or truncated
assert steps == 20 and truncated and not terminated and info["success"] in (0.0, 1.0), (steps, info)
assert env.render().shape == (256, 256, 3)
"""
    python(lab, "-c", code)


@pytest.mark.slow
def test_the_suite_is_trained_on(lab: Path) -> None:
    run = difftop(lab, command("env=line/reach", "run.frames=200"))
    last = rows(run / "eval.csv")[-1]
    assert (
        int(float(last["env_frames"])) == 200
        and np.isfinite(float(last["return_mean"]))
        and 0 <= float(last["success_mean"]) <= 1
    )


@pytest.mark.slow
def test_the_agent_that_learns_from_rewards_trains_and_goes_on(lab: Path) -> None:
    line = command("agent=gentle")
    run = difftop(lab, line)
    assert json.loads((run / "config.json").read_text())["agent"]["effort"] == 0.2
    logged = rows(run / "metrics.csv")
    assert np.isfinite([float(row["train/effort"]) for row in logged if row["train/effort"]]).all() and logged
    assert difftop(lab, line) == run  # finished already: the same command has nothing left to do


@pytest.mark.slow
def test_the_agent_that_imitates_trains_and_is_evaluated(lab: Path) -> None:
    run = difftop(lab, command("agent=linear"))
    summary = json.loads((run / "evaluation" / "summary.json").read_text())
    assert summary["grad_steps"] == 100 and summary["head"] == "none"


def test_the_planner_chooses_what_the_model_likes_best(lab: Path) -> None:
    code = """
import torch
from agents.registry import make_agent
from difftop.planning.rollout import rollout_return
from difftop.types import EnvSpec, ObsSpec
spec = EnvSpec("line/reach", {"state": ObsSpec("vector", (2,))}, 1, 20, 0.1, gives=frozenset({"reward"}))
agent = make_agent({"name": "tdmpc", "acting": {"planner": "shooting", "horizon_start": 5}}, spec, seed=0)
assert type(agent.planner).__name__ == "Shooting"
actor = agent.actor(3, seed=0, explore=False)
for i in range(3):
    actor.begin(i, i)
action = actor.act({"state": torch.randn(3, 2)}, torch.ones(3, dtype=torch.bool), 0)
assert action.shape == (3, 1) and float(action.abs().max()) <= 1 and actor.metrics()["plan/failures"] == 0
"""
    python(lab, "-c", code)


@pytest.mark.slow
def test_the_planner_trains(lab: Path) -> None:
    run = difftop(lab, command("planner=shooting"))
    assert "planner-shooting" in run.parent.name and len(rows(run / "eval.csv")) >= 1


def test_the_head_keeps_the_limits(lab: Path) -> None:
    code = """
import torch
from difftop.options import ConfigError
from difftop.qp import TrajectoryLimits, make_head
limits = TrajectoryLimits(3, 8, (0, 1), velocity_min=-0.6, velocity_max=0.6, acceleration_min=-0.2, acceleration_max=0.2)
head, e, previous = make_head("shorten", limits), torch.randn(50, 24, requires_grad=True), torch.rand(50, 3) - 0.5
y, info = head(e, None, previous)
v = torch.cat([previous[:, None], y], 1)[..., :2]
assert bool(info.certified.all()) and v.abs().max() <= 0.6 + 1e-6 and v.diff(dim=1).abs().max() <= 0.2 + 1e-6
torch.testing.assert_close(y[..., 2], -e.view(50, 8, 3)[..., 2])
alone, _ = head(torch.tensor([[-0.05, -0.1, 0.0] * 8]), None, torch.zeros(1, 3))
torch.testing.assert_close(alone[0, -1, :2], torch.tensor([0.05, 0.1]))  # what is inside stays as it is
assert torch.autograd.grad(y.sum(), e)[0].isfinite().all()
try:
    make_head("shorten", TrajectoryLimits(1, 4, position_matrix=[[1.0]]))
except ConfigError as error:
    assert str(error).startswith("head=shorten: position limits can't be kept")
"""
    python(lab, "-c", code)


@pytest.mark.slow
def test_a_policy_wears_the_head(lab: Path) -> None:
    run = difftop(lab, command("agent.head=shorten"))
    assert json.loads((run / "evaluation" / "summary.json").read_text())["head"] == "shorten"
    arguments = ["mode=eval", f"checkpoint={run}", "head=none", "run.eval_episodes=1", "run.video=false", "threads=1"]
    python(lab, str(ROOT / "train.py"), *arguments)


@pytest.mark.slow
def test_the_format_is_opened_and_trained_on(lab: Path) -> None:
    code = """
import json
import numpy as np
import torch
from difftop.data.files import open_demonstrations, recorded_env
from envs import EnvConfig, record
made = open_demonstrations(record(EnvConfig(name="toy/reach", obs="low_dim"), 4, seed=0, folder="data"))
arrays = {"env": np.array(json.dumps(dict(made.env.raw)))}
for k, episode in enumerate(made.episodes()):
    arrays[f"{k}/actions"] = episode.actions.numpy()
    arrays |= {f"{k}/{key}": values.numpy() for key, values in episode.obs.items()}
np.savez("reach.npz", **arrays)
again = open_demonstrations("reach.npz", obs_keys=list(made.shapes), limit=3)
assert recorded_env("reach.npz") == made.env and len(again) == 3 and again.shapes == made.shapes
for key in made.shapes:
    assert torch.equal(again.low_dim[key], made.low_dim[key][: len(again.low_dim[key])])
"""
    python(lab, "-c", code)
    run = difftop(lab, command("dataset=reach.npz"))
    assert json.loads((run / "evaluation" / "summary.json").read_text())["grad_steps"] == 100


def test_every_command_of_the_page_is_run() -> None:
    run = re.findall(r"command\((.*?)\)", Path(__file__).read_text())
    named = [re.findall(r'"(.*?)"', words) for words in run]
    covered = {command(*words) for words in named if words}
    assert covered == set(COMMANDS) and len(COMMANDS) == 6
