"""Random colours in every imitation policy: drawn once for a window, in training only, the same again after a resume."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import difftop.nn.observation
from agents.policies.noise import BatchNoise
from agents.policies.observing import Observer
from agents.policies.training import ImitationAgent
from agents.registry import make_agent
from difftop.nn.colour import DRAWS
from difftop.nn.observation import EncoderConfig
from tests.agents.imitators import CASES, rolled
from tests.agents.test_imitation_images import ENCODER, SPEC, made, seen

NAMES = (*CASES, "difftop_il")
COLOURED = ENCODER | {"crop": 0, "colour": 0.5}


def coloured(name: str, home: Path, **more: Any) -> ImitationAgent:
    """A small policy without crops, so that colours alone are drawn."""
    encoder = COLOURED | more
    if name == "difftop_il":
        return make_agent({"name": name, "encoder": encoder}, SPEC, seed=0, total_steps=10)
    return made(name, home, encoder=encoder, training={"warmup_steps": 0, "learning_rate": 1e-3})


def jitters(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, float]]:
    """Collects the draws of every call."""
    calls: list[tuple[Tensor, float]] = []
    true = difftop.nn.observation.jittered

    def watched(image: Tensor, draws: Tensor, strength: float) -> Tensor:
        calls.append((draws.clone(), strength))
        return true(image, draws, strength)

    monkeypatch.setattr(difftop.nn.observation, "jittered", watched)
    return calls


@pytest.mark.parametrize("name", NAMES)
def test_colours_change_in_training_alone(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = jitters(monkeypatch)
    agent = coloured(name, tmp_path)
    batch = seen(agent, 3)
    agent.update(batch, 0)
    assert len(calls) == 1 and calls[0][1] == 0.5
    draws = calls[0][0].view(3, -1, DRAWS)  # windows, their frames
    assert torch.equal(draws, draws[:, :1].expand_as(draws)) and len(draws[:, 0].unique()) == 3 * DRAWS
    agent.validate(batch, seed=0)
    rolled(agent.actor(3, seed=0), batch.obs)
    assert len(calls) == 1


@pytest.mark.parametrize("name", NAMES)
def test_training_goes_on_with_the_same_colours(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = jitters(monkeypatch)
    agent = coloured(name, tmp_path, crop=0.9)
    batches = [seen(agent, 3, k) for k in range(3)]
    agent.update(batches[0], 0)
    other = coloured(name, tmp_path, crop=0.9)
    other.load_state_dict(copy.deepcopy(agent.state_dict()))
    other.load_train_state(copy.deepcopy(agent.train_state()))
    for it in (agent, other):
        for k in (1, 2):
            it.update(batches[k], k)
    first, again = [d for d, _ in calls[1:3]], [d for d, _ in calls[3:]]
    assert len(again) == 2 and all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(*first)
    mine, theirs = agent.state_dict(), other.state_dict()
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_without_colours_nothing_more_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """With colour=0 images, and the numbers that come after the crops', are bit for bit what they were without the option."""
    calls = jitters(monkeypatch)
    obs = {"camera_image": torch.randint(0, 256, (2, 5, 3, 32, 32), dtype=torch.uint8), "eef_pos": torch.randn(2, 5, 3)}
    left = []
    for colour in (0.0, 0.3):
        observer = Observer(SPEC.shapes, [], "identity", replace(EncoderConfig(**ENCODER), colour=colour)).train()
        generator = torch.Generator().manual_seed(0)
        observer(obs, BatchNoise(2, generator, torch.device("cpu")))
        left.append(torch.rand(2, 3, generator=generator))
    assert len(calls) == 1 and calls[0][0].shape == (10, DRAWS)
    generator = torch.Generator().manual_seed(0)
    torch.rand(2, 5, 1, 2, generator=generator)  # the crops
    assert torch.equal(torch.rand(2, 3, generator=generator), left[0]) and not torch.equal(left[0], left[1])
