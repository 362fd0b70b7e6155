"""A trained policy inside another one: read once, frozen, and carried along with the weights."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from agents.policies.base_policy import BASES, BaseConfig, BasePolicy
from agents.policies.noise import BatchNoise
from agents.registry import make_agent, make_policy
from difftop.options import ConfigError
from difftop.run.checkpoint import CheckpointError
from difftop.types import EnvSpec
from tests.agents.imitators import SMALL, SPEC, base_run, make, observations, random_batch, rolled
from tests.conftest import task_spec


@pytest.mark.parametrize("name", BASES)
def test_evaluation_needs_no_base_run(name: str, tmp_path: Path) -> None:
    folder = base_run(tmp_path, name)
    values = {"name": "residual", **SMALL["residual"], "base": name, "base_checkpoint": str(folder), "horizon": 2}
    made = make_agent(values, SPEC, seed=0, total_steps=10)
    made.policy.base.read_()
    base = made.policy.base.check()
    plain = rolled(base.actor(2, seed=3), observations(2, 5))
    assert torch.equal(plain, rolled(make(name, seed=7).actor(2, seed=3), observations(2, 5)))
    made.update(random_batch(made), 0)
    obs = observations(2, 5)
    actions = rolled(made.actor(2, seed=1), obs)
    shutil.rmtree(folder)
    fresh = make_agent(values, SPEC, seed=1, total_steps=10)
    with pytest.raises(ConfigError, match="the base was not read yet"):
        fresh.actor(1, seed=0)
    buffer = io.BytesIO()
    torch.save(made.state_dict(), buffer)
    buffer.seek(0)
    fresh.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(rolled(fresh.actor(2, seed=1), obs), actions)


def test_the_averaged_base_is_taken(tmp_path: Path) -> None:
    folder = base_run(tmp_path, "bc", training={"ema": 0.5})
    policy = BasePolicy(BaseConfig("bc", str(folder)), SPEC, make_policy)
    policy.read_()
    trained = make("bc", seed=7, training={"ema": 0.5})
    expected = trained.average.policy.state_dict()  # type: ignore[union-attr]
    assert all(torch.equal(value, expected[key]) for key, value in policy.check().state_dict().items())


def test_it_is_frozen_and_never_in_training_mode(tmp_path: Path) -> None:
    agent = make("residual", home=tmp_path)
    agent.policy.train()
    before = {key: value.clone() for key, value in agent.policy.base.state_dict().items()}
    assert not any(module.training for module in agent.policy.base.modules())
    for k in range(3):
        agent.update(random_batch(agent), k)
    assert all(torch.equal(value, before[key]) for key, value in agent.policy.base.state_dict().items())
    assert not any(p.requires_grad for p in agent.policy.base.parameters())
    ids = {id(p) for p in agent.policy.base.parameters()}
    assert not any(id(p) in ids for group in agent.optimizer.param_groups for p in group["params"])


class Same:
    """Numbers that are the same for every row and step, and differ from action to action."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def normal(self, *shape: int) -> Tensor:
        return torch.linspace(-0.7, 0.9, shape[-1]).expand(self.rows, *shape)

    def uniform(self, *shape: int) -> Tensor:
        return torch.full((self.rows, *shape), 0.7)


@pytest.mark.parametrize("name", BASES)
def test_plans_are_what_the_base_does(name: str, tmp_path: Path) -> None:
    """Along a window, as an actor that predicts at every step, with the same random numbers."""
    policy = BasePolicy(BaseConfig(name, str(base_run(tmp_path, name))), SPEC, make_policy)
    policy.read_()
    obs = observations(2, 4)
    plans = policy.plans(obs, Same(2))
    assert plans.shape[:2] == (2, 4) and plans.shape[3] == 4 and bool((plans.abs() <= 1).all())
    torch.testing.assert_close(policy.latest(obs, Same(2)), plans[:, -1], rtol=0, atol=1e-5)
    predictor: Any = policy.predictor(2, seed=0)
    predictor.noise.of = lambda rows: Same(len(rows))
    due = torch.ones(2, dtype=torch.bool)
    for t in range(4):
        chunk = predictor.predict({key: x[:, t] for key, x in obs.items()}, torch.full((2,), t == 0), due)
        torch.testing.assert_close(chunk.clamp(-1, 1), plans[:, t], rtol=0, atol=1e-5)
    assert float(plans.std(1).mean()) > 0.01 and float((plans[0] - plans[1]).abs().mean()) > 0.01  # it looks at something


@pytest.mark.parametrize("name", ["bc", "rnn_gmm"])
def test_a_base_begins_where_the_episode_does(name: str, tmp_path: Path) -> None:
    """Windows that begin with copies of an episode's first observation: as an actor does that never saw the copies."""
    policy = BasePolicy(BaseConfig(name, str(base_run(tmp_path, name, modes=1))), SPEC, make_policy)
    policy.read_()
    obs, begin = observations(3, 6), torch.tensor([0, 2, 5])
    for b, first in enumerate(begin.tolist()):
        for x in obs.values():
            x[b, :first] = x[b, first]
    plans = policy.plans(obs, BatchNoise(3, torch.Generator().manual_seed(0), torch.device("cpu")), begin)
    for b, first in enumerate(begin.tolist()):
        predictor = policy.predictor(1, seed=0)
        for t in range(first, 6):
            now = {key: x[b : b + 1, t] for key, x in obs.items()}
            chunk = predictor.predict(now, torch.tensor([t == first]), torch.tensor([True]))
            torch.testing.assert_close(chunk[0].clamp(-1, 1), plans[b, t], rtol=0, atol=2e-3)  # its noise is 1e-4


def test_mistakes_get_one_sentence(tmp_path: Path) -> None:
    def reading(base: str, folder: str, spec: EnvSpec = SPEC) -> None:
        BasePolicy(BaseConfig(base, folder), spec, make_policy).read_()

    with pytest.raises(ConfigError, match=r"agent.base=none, agent.base_checkpoint='': name both, one of bc, rnn_gmm, diffusion"):
        reading("none", "")
    with pytest.raises(ConfigError, match="no such folder; train the base first"):
        reading("bc", str(tmp_path / "nowhere"))
    folder = str(base_run(tmp_path, "bc"))
    with pytest.raises(CheckpointError, match="was saved by agent 'bc', not 'rnn_gmm'"):
        reading("rnn_gmm", folder)
    with pytest.raises(ConfigError, match="its weights don't fit the task test/other"):
        reading("bc", folder, task_spec("test/other", {"eef_pos": (3,)}, 4, 60, 0.05))
