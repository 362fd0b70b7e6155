"""README and pages against the code: commands compose, targets exist, logged tags are explained, links lead somewhere."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents.registry import AGENTS, make_agent, names
from difftop.command import make_registry
from difftop.compare.config import compare_config, status_config
from difftop.data.robomimic import Recording, write_demonstrations
from difftop.datasets.convert import ConvertConfig
from difftop.datasets.look import DataConfig
from difftop.key_values import parsed
from difftop.options import build
from difftop.run.checkpoint import load_checkpoint
from difftop.run.cli import composed
from difftop.run.imitate import as_saved
from difftop.run.opening import opened
from difftop.run.serve_options import ServeConfig
from difftop.run.session import with_overrides
from difftop.run.settings import SETTABLE
from envs import make_env
from tests.conftest import SMALL, STATE, random_batch

Array = np.ndarray[Any, np.dtype[Any]]
ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
MAKEFILE = (ROOT / "Makefile").read_text()
CI = (ROOT / ".ci" / "run").read_text()


def commands(page: Path) -> list[str]:
    """Lines of the page's shell blocks, continuations joined, comments dropped."""
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split("#")[0].strip() for line in lines if line.split("#")[0].strip()]


COMMANDS = [(page, command) for page in PAGES for command in commands(page)]


@pytest.mark.parametrize("command", sorted({c for _, c in COMMANDS if c.startswith("python train.py") and " -" not in c}))
def test_every_train_command_composes(command: str) -> None:
    overrides = [word for word in shlex.split(command)[2:] if "..." not in word]
    if "mode=compare" in overrides or "mode=status" in overrides:
        make = compare_config if "mode=compare" in overrides else status_config
        assert make(parsed(overrides))
        return
    if "mode=serve" in overrides:
        assert build(ServeConfig, parsed(overrides)).checkpoint
        return
    settings = composed(make_registry(), overrides)
    assert settings.agent["name"] in AGENTS


PLAYED = sorted({c for _, c in COMMANDS if c.startswith("python train.py") and ("mode=eval" in c or "mode=diagnose" in c)})


@pytest.mark.parametrize("command", PLAYED)
def test_a_checkpoint_takes_what_a_command_sets_of_its_evaluation(command: str) -> None:
    """A run that is named by its folder stands for a checkpoint of that agent on that task, others for one of examples/."""
    overrides, registry = shlex.split(command)[2:], make_registry()
    _, _, path = next(word for word in overrides if word.startswith("checkpoint=")).partition("=")
    saved = load_checkpoint(ROOT / "examples" / "checkpoints" / "cartpole-swingup")
    if path.startswith("runs/"):
        _, task, agent, *_ = path.split("/")
        config = composed(registry, [f"agent={agent}", f"env={task.replace('-', '/', 1)}"]).plain()
        saved = replace(saved, agent_name=agent, config=config)
    named = [f"agent={saved.agent_name}", f"env={saved.config['env']['name']}"]
    settings = composed(registry, [*named, *overrides])
    imitates = saved.agent_name in registry.imitators
    keys = SETTABLE["diagnose" if "mode=diagnose" in overrides else "eval"]
    played = (
        as_saved(saved, settings, registry, overrides) if imitates else with_overrides(saved, settings, registry, overrides, keys)
    )
    for word in overrides:
        if word.startswith("run."):
            key, _, value = word.partition("=")
            assert str(getattr(played.run, key.removeprefix("run."))) == value
    assert played.agent["name"] == saved.agent_name


SUITES = {"metaworld": "metaworld", "pusht": "gym_pusht", "toy": "numpy"}  # whose simulators start in a second; and their package
REWARDED = "|".join(names("rewards"))
SHOWN = sorted(
    c
    for c in {c for _, c in COMMANDS if c.startswith("python train.py") and " -m " not in c and "mode=" not in c}
    if re.search(rf"env=({'|'.join(SUITES)})/", c) and re.search(rf"(agent|experiment)=(?!({REWARDED})\b)", c)
)


@pytest.mark.parametrize("command", SHOWN)
def test_commands_that_imitate_open_a_file_of_their_task(command: str, tmp_path: Path) -> None:
    """Of two short episodes with what the task shows, as `mode=demos` would write it: the agent's windows come out."""
    registry = make_registry()
    settings = composed(registry, shlex.split(command)[2:])
    assert settings.agent["name"] in registry.imitators
    pytest.importorskip(SUITES[settings.env.name.split("/")[0]])
    env = make_env(settings.env)
    spec, rng = env.difftop_spec, np.random.default_rng(0)
    env.close()

    def values(kind: str, shape: tuple[int, ...]) -> Array:
        if kind == "image":
            return rng.integers(0, 256, (60, *shape[1:], shape[0]), dtype=np.uint8)
        return rng.uniform(0, 1, (60, *shape[1:], shape[0]) if kind == "depth" else (60, *shape)).astype(np.float32)

    seen = {key: (obs.kind, tuple(obs.shape)) for key, obs in spec.obs.items()}
    episodes = [
        Recording({key: values(*of) for key, of in seen.items()}, rng.uniform(-1, 1, (60, spec.action_dim)), np.zeros(60))
        for _ in range(2)
    ]
    suite, _, task = settings.env.name.partition("/")
    write_demonstrations(
        tmp_path / "d.hdf5", episodes, {"env_name": task, "type": 2, "env_version": "1", "env_kwargs": {"suite": suite}}
    )
    found = opened([tmp_path / "d.hdf5"], settings, spec, evaluated=True)
    assert found.shapes == {key: shape for key, (_, shape) in seen.items()}
    wanted = settings.agent.get("obs_keys", [])
    assert set(wanted) <= set(found.shapes)
    window = found.windows(settings.agent.get("window", 1), settings.agent.get("horizon", 1)).gather(torch.tensor([0, 11]))
    assert all(torch.isfinite(x.float()).all() for x in window.obs.values())


def test_files_of_the_repository_that_commands_name_exist_and_open() -> None:
    words = [word for page, command in COMMANDS for word in re.split(r"[\s=,\[\]]", command)]
    named = {word for word in words if word.startswith(("docs/", "examples/", "benchmarks/", "tools/", "configs/", "tests/"))}
    assert len(named) > 5 and sorted(word for word in named if not (ROOT / word).exists()) == []
    checkpoints = [ROOT / word for word in named if word.startswith("examples/checkpoints/")]
    assert checkpoints and all(load_checkpoint(path).model for path in checkpoints)
    tables = [ROOT / word for word in named if word.endswith(".csv")]
    assert tables and all(path.read_text().startswith("method,task,") for path in tables)


def test_commands_that_read_data_sets_are_taken() -> None:
    found = {command for _, command in COMMANDS if re.match(r"(difftop|python train.py) .*mode=(data|convert)", command)}
    assert len(found) > 1
    for command in found:
        overrides = [word for word in shlex.split(command) if "=" in word and not word.startswith("-")]
        made = build(ConvertConfig if "mode=convert" in overrides else DataConfig, parsed(overrides))
        assert made.dataset


def test_make_targets_exist_and_ci_runs_the_readme_s_test_command() -> None:
    targets = {command.split()[1] for page, command in COMMANDS if command.startswith("make ") and page.name == "README.md"}
    assert {"train", "test"} <= targets
    assert all(re.search(rf"^{target}:", MAKEFILE, re.MULTILINE) for target in targets)
    assert re.search(r"^make test$", CI, re.MULTILINE)


def test_the_training_preset_of_the_makefile_composes() -> None:
    line = re.search(r"^train:.*\n\t(.*)", MAKEFILE, re.MULTILINE)
    assert line is not None
    settings = composed(make_registry(), line[1].split("train.py")[1].split())
    assert settings.run.frames == 24_000 and settings.env.name == "dmc/cartpole-swingup"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_named_files_exist(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", page.read_text())
    missing = [target for target in targets if "://" not in target and not (page.parent / target).exists()]
    assert missing == []


@pytest.mark.parametrize("name", names("rewards"))
def test_every_logged_tag_is_explained_on_the_agent_s_page(name: str) -> None:
    text = (ROOT / "docs" / "tdmpc.md").read_text() + (ROOT / "docs" / "planner.md").read_text()
    if name != "tdmpc":
        text += (ROOT / "docs" / f"{name}.md").read_text()
    agent = make_agent({"name": name, **SMALL}, STATE, seed=0)
    batch = random_batch(STATE)
    actor = agent.actor(2, seed=0, explore=True)
    for index in range(2):
        actor.begin(index, index)
    actor.act({STATE.only_key: batch.obs[:2, 0]}, batch.terminated[:2, 0], 0)
    tags = {*agent.update(batch, 0).metrics, *actor.metrics()}
    assert len(tags) > 8
    assert sorted(tag for tag in tags if f"`{tag}`" not in text) == []
