"""The values that `benchmarks/values.py` tells of, and what came after their states."""

from __future__ import annotations

import pytest
import torch

from benchmarks.values import main, parsed, states_of
from difftop.data.replay import Episode, ReplayBuffer
from tests.conftest import STATE


def episode(number: float, rewards: list[float]) -> Episode:
    steps = len(rewards)
    return Episode(
        obs=torch.full((steps + 1, *STATE.obs[STATE.only_key].shape), number),
        action=torch.zeros(steps, STATE.action_dim),
        reward=torch.tensor(rewards),
        terminated=torch.zeros(steps, dtype=torch.bool),
    )


def test_states_know_what_came_after_them() -> None:
    replay = ReplayBuffer(STATE, capacity=200, horizon=2)
    for number, rewards in enumerate(([0.0, 0.0, 0.0], [0.0, 0.0, 4.0], [0.0, 0.0, 0.0])):
        replay.add(episode(float(number), rewards))
    states = states_of(replay, 0.5, 500)
    came = {(float(obs[0]), float(followed)) for obs, followed in zip(states.obs, states.followed, strict=True)}
    assert came == {(0.0, 0.0), (1.0, 1.0), (1.0, 2.0), (1.0, 4.0), (2.0, 0.0)}
    assert bool(states.barren.any()) and torch.equal(states.barren, states.obs[:, 0] != 1.0)


def test_changes_are_options_of_the_agent() -> None:
    assert parsed("agent.loss.n_step=3,agent.discount=0.97") == {"loss": {"n_step": 3}, "discount": 0.97}
    assert parsed("") == {}
    with pytest.raises(SystemExit, match="n_step=3: must be an option of the agent"):
        parsed("n_step=3")


def test_a_run_that_is_not_there_is_one_sentence(capsys, tmp_path) -> None:  # type: ignore[no-untyped-def]
    assert main([str(tmp_path / "none")]) == 1
    assert capsys.readouterr().err.startswith("error: there is no checkpoint in")
