"""`world_model=`: what it composes, how its runs are named, and that they go on bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from agents.difftop_rl import DiffTOPConfig, DiffTOPOnTDMPC2Config, DiffTOPOnTDMPCConfig
from agents.registry import make_agent
from difftop.command import main, make_registry
from difftop.options import ConfigError, build, defaults
from difftop.run.checkpoint import load_checkpoint
from difftop.run.cli import Registry, Settings, checked, composed, run_name
from difftop.run.help import help_text
from envs import env_spec

QUICK = [
    "env=toy/point-mass", "run.seed_steps=50", "run.batch_size=8", "run.eval_every=1000", "run.eval_episodes=1",
    "run.video=false", "run.capacity=200", "agent.model.mlp_dim=16", "agent.model.encoder_dim=16", "agent.model.latent_dim=8",
    "threads=1", "device=cpu",
]  # fmt: skip


@pytest.fixture(scope="module")
def registry() -> Registry:
    return make_registry()


def again(registry: Registry, settings: Settings) -> Settings:
    """From what a run saves, as `mode=eval` does."""
    plain = settings.plain()
    return checked(registry, plain["top"] | {key: plain[key] for key in ("run", "agent", "env")}, plain["choices"])


@pytest.mark.parametrize("world", ["auto", "scaled"])
def test_difftop_on_its_own_world_model(registry: Registry, world: str) -> None:
    settings = composed(registry, ["agent=difftop_rl", f"world_model={world}"])
    assert settings.agent == defaults(DiffTOPConfig)
    assert (settings.run.batch_size, settings.run.updates_per_step) == (64, 4)
    assert settings.run.prioritized and settings.run.prioritized_while_rare


def test_difftop_on_tdmpc_s(registry: Registry) -> None:
    settings = composed(registry, ["agent=difftop_rl", "world_model=tdmpc"])
    assert settings.agent == defaults(DiffTOPOnTDMPCConfig)
    assert settings.run == composed(registry, ["agent=tdmpc"]).run


def test_difftop_on_tdmpc2_s(registry: Registry) -> None:
    settings = composed(registry, ["agent=difftop_rl", "world_model=tdmpc2"])
    assert settings.agent == defaults(DiffTOPOnTDMPC2Config)
    assert settings.agent["acting"]["planner"] == "lm" and settings.agent["loss"]["consistency"] == 20.0
    assert settings.run.batch_size == 256 and not settings.run.prioritized
    assert again(registry, settings) == settings
    agent = make_agent(settings.agent | {"model": {"mlp_dim": 8, "latent_dim": 8}}, env_spec(settings.env), seed=0)
    assert agent.config == build(DiffTOPOnTDMPC2Config, {"model": {"mlp_dim": 8, "latent_dim": 8}})


def test_tdmpc2_on_its_batches(registry: Registry) -> None:
    settings = composed(registry, ["agent=tdmpc2", "planner=lm", "preset=cpu"])
    assert settings.agent["acting"]["planner"] == "lm" and settings.agent["model"]["mlp_dim"] == 256
    assert settings.run.batch_size == 256 and not settings.run.prioritized
    assert composed(registry, ["agent=tdmpc2", "run.batch_size=64"]).run.batch_size == 64


def test_names_of_runs_tell_the_world_model(registry: Registry) -> None:
    assert run_name(composed(registry, ["world_model=tdmpc2", "preset=cpu"])) == "cpu-world_model-tdmpc2"
    assert run_name(composed(registry, ["world_model=tdmpc2", "planner=mppi"])) == "world_model-tdmpc2-planner-mppi"
    saved = composed(registry, [])
    choices = {key: value for key, value in saved.choices.items() if key != "world_model"}  # of a run older than the option
    assert (
        run_name(checked(registry, saved.plain()["top"] | {k: saved.plain()[k] for k in ("run", "agent", "env")}, choices))
        == "default"
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["agent=tdmpc", "world_model=tdmpc2"], "world_model=tdmpc2: agent=tdmpc has its own; one can be chosen for difftop_rl."),
        (["agent=tdmpc2", "world_model=tdmpc"], "world_model=tdmpc: agent=tdmpc2 has its own"),
        (["world_model=tdmcp2"], "world_model=tdmcp2: unknown. Did you mean 'tdmpc2'? Known: auto, scaled, tdmpc, tdmpc2."),
        (["world_model=tdmpc2", "agent.model.size=7M"], "agent.model.size=7M: must be 1M | 5M ("),
        (["agent.model.size=5M"], "agent.model.size: is an option of agent=tdmpc2; leave it out"),
    ],
)
def test_mistakes(registry: Registry, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        composed(registry, overrides)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_help_shows_the_choice(registry: Registry) -> None:
    assert "world_model=" in help_text(registry)
    assert "simplex_dim" in help_text(registry, ["--help", "agent=difftop_rl", "world_model=tdmpc2"])


@pytest.mark.parametrize(
    "agent",
    [
        pytest.param(["agent=tdmpc2", "agent.acting.mppi.samples=32", "agent.acting.mppi.elites=8"], marks=pytest.mark.slow),
        pytest.param(["world_model=tdmpc2"], marks=pytest.mark.slow),
    ],
)
def test_a_run_in_two_parts_ends_as_one(tmp_path: Path, agent: list[str]) -> None:
    for root, lengths in (("whole", [75]), ("parts", [60, 75])):
        for frames in lengths:
            assert main([*QUICK, *agent, f"run.frames={frames}", f"root={tmp_path / root}"]) == 0
    ends = [load_checkpoint(next((tmp_path / root).glob("*/*/*/seed1"))) for root in ("whole", "parts")]
    assert ends[0].model.keys() == ends[1].model.keys() and len(ends[0].model) > 40
    assert all(torch.equal(tensor, ends[1].model[key]) for key, tensor in ends[0].model.items())
    optimizers = [end.train_state["agent"]["optimizer"]["state"] for end in ends]
    assert all(torch.equal(s["exp_avg"], optimizers[1][i]["exp_avg"]) for i, s in optimizers[0].items())
