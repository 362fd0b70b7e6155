"""Weights of a checkpoint that belong to other networks, and checkpoints that are made small."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from agents.registry import make_agent
from difftop.policy import load_policy
from difftop.run.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from difftop.run.weights import load_weights
from tests.conftest import SMALL, STATE
from tools.small_checkpoint import small

OPTIONS = {"name": "tdmpc", **SMALL}


def saved(folder: Path) -> Path:
    agent = make_agent(OPTIONS, STATE, seed=1)
    state = {"agent": agent.train_state()}
    config = {"agent": OPTIONS}
    return save_checkpoint(
        folder, step=7, agent_name="tdmpc", config=config, spec=STATE, model=agent.state_dict(), train_state=state
    )


def test_other_networks_are_one_sentence(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(saved(tmp_path))
    other = make_agent(OPTIONS | {"model": dict(SMALL["model"]) | {"mlp_dim": 48}}, STATE, seed=1)
    with pytest.raises(
        CheckpointError, match=r"this version's tdmpc has other networks than the checkpoint .*size mismatch"
    ) as error:
        load_weights(other, checkpoint)
    assert "\n" not in str(error.value)


def test_a_small_checkpoint_acts_alike_and_holds_nothing_else(tmp_path: Path) -> None:
    path = saved(tmp_path / "run")
    size = small(path, tmp_path / "small")
    assert size == sum(file.stat().st_size for file in (tmp_path / "small").iterdir())
    assert (tmp_path / "small" / "model.safetensors").stat().st_size < 0.65 * (path / "model.safetensors").stat().st_size
    original, rounded = load_policy(path, "cpu"), load_policy(tmp_path / "small", "cpu")
    obs = np.random.default_rng(0).normal(size=(16, *STATE.obs["state"].shape)).astype(np.float32)
    np.testing.assert_allclose(rounded.act(obs), original.act(obs), atol=0.02)
    assert rounded.steps == 7
    assert {value.dtype for value in load_checkpoint(tmp_path / "small").model.values()} <= {torch.float16, torch.bool}
    with pytest.raises(FileExistsError):
        small(path, tmp_path / "small")
