"""What a recurrent policy remembers while it acts, against the LSTM run over the observations it should remember."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from agents.policies.noise import EnvironmentNoise
from tests.agents.imitators import make, observations

STEPS = 30


def remembered(memory: str, window: int, calls: int) -> int:
    """First call of the observations that the action of a call rests on."""
    newest = calls - calls % window
    if memory == "restart":
        return newest
    half = window // 2
    return min(newest, calls - (calls - half) % window if calls >= half else 0)


@pytest.mark.parametrize("name", ["leto", "rnn_gmm"])
@pytest.mark.parametrize("memory", ["restart", "overlap"])
@pytest.mark.parametrize("window", [1, 4, 7])
def test_memory(name: str, memory: str, window: int) -> None:
    policy = make(name, memory=memory, window=window).policy.eval()
    heard: list[Tensor] = []
    policy.chunk = lambda features, noise: heard.append(features) or torch.zeros(len(features), policy.windows.horizon, 4)
    predictor = policy.predictor(2, seed=0)
    obs = observations(2, STEPS)
    begins = torch.zeros(2, STEPS, dtype=torch.bool)
    begins[:, 0] = begins[1, 9] = True
    with torch.no_grad():
        for t in range(STEPS):
            predictor.predict({key: x[:, t] for key, x in obs.items()}, begins[:, t], torch.ones(2, dtype=torch.bool))
        for t, features in enumerate(heard):
            for env in range(2):
                episode = 9 if env == 1 and t >= 9 else 0
                start = episode + remembered(memory, window, t - episode)
                span = {key: x[env : env + 1, start : t + 1] for key, x in obs.items()}
                expected, _ = policy.outputs(span, EnvironmentNoise(1, 0, policy.device).of(torch.arange(1)))
                torch.testing.assert_close(features[env], expected[0, -1], rtol=1e-4, atol=1e-5)
    assert len(heard) == STEPS


@pytest.mark.parametrize("memory", ["restart", "overlap"])
@pytest.mark.parametrize("window", [1, 4, 7])
def test_ages_are_those_while_acting(memory: str, window: int) -> None:
    ages = make("rnn_gmm", memory=memory, window=window).policy.ages()
    assert sorted(ages) == sorted(t - remembered(memory, window, t) for t in range(3 * window, 4 * window))


def test_overlapping_memories_never_know_less_than_half_a_window() -> None:
    ages = [t - remembered("overlap", 12, t) + 1 for t in range(12, 100)]
    assert min(ages) == 7 and max(ages) == 12
