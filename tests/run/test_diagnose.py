"""`mode=diagnose` on a small run, for both world models."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from difftop.command import main

QUICK = [
    "env=toy/point-mass", "run.frames=75", "run.seed_steps=50", "run.batch_size=8", "run.eval_every=1000", "run.eval_episodes=2",
    "run.video=false", "run.capacity=200", "agent.model.mlp_dim=16", "agent.model.encoder_dim=16", "agent.model.latent_dim=8",
    "agent.acting.mppi.samples=16", "agent.acting.mppi.elites=4", "threads=1", "device=cpu",
]  # fmt: skip


@pytest.mark.parametrize("world", ["tdmpc", pytest.param("tdmpc2", marks=pytest.mark.slow)])
def test_it_writes_numbers_a_picture_and_what_to_try(tmp_path: Path, world: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*QUICK, f"world_model={world}", f"root={tmp_path}"]) == 0
    run = next(tmp_path.glob("*/*/*/seed1"))
    assert main(["mode=diagnose", f"checkpoint={run}", "run.eval_episodes=2", "device=cpu"]) == 0
    folder = run / "diagnosis" / "step_000000075"
    found = json.loads((folder / "diagnosis.json").read_text())
    assert list(found["returns"]) == ["prior", "lm", "lm, damping 1", "lm, damping 100", "mppi"]
    assert all(np.isfinite(value) for value in found["returns"].values()) and found["episodes"] == 2
    assert len(found["measures"]["value_r2"]) == 6 and -1 <= found["measures"]["value_correlation"] <= 1
    assert (folder / "diagnosis.png").stat().st_size > 5000


def test_agents_without_a_latent_model_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["agent=bc", "env=toy/reach", "run.demos=3", "run.grad_steps=2", "run.select_episodes=0", "run.eval_episodes=0"]
    assert main([*options, "agent.hidden_dims=[8]", f"root={tmp_path / 'runs'}", f"data={tmp_path / 'data'}", "device=cpu"]) == 0
    run = next((tmp_path / "runs").glob("*/*/*/seed1"))
    assert main(["mode=diagnose", f"checkpoint={run}", "device=cpu"]) == 2
    assert "agent=bc has no latent model" in capsys.readouterr().err
