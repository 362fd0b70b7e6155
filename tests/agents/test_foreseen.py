"""What a frozen base does is worked out before training: the same as if it were asked at every step, and asked once."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from agents.policies import foreseen
from agents.policies.base_policy import BASES, BaseConfig, BasePolicy
from agents.policies.noise import BatchNoise
from agents.policies.training import ImitationAgent
from agents.registry import make_agent, make_policy
from difftop.data.demonstrations import Demonstration, Demonstrations, EnvInfo
from difftop.data.windows import WindowBatch, Windows
from tests.agents.imitators import SMALL, SPEC, base_run, observations

LENGTHS = (9, 4, 7, 6)
ABOVE: dict[str, dict[str, Any]] = {
    "residual": SMALL["residual"] | {"horizon": 2},
    "difftop_il": {"model": {"encoder_dims": [16], "posterior_dims": [16]}, "base_window": 4, "horizon": 2},
}


def made_demonstrations() -> Demonstrations:
    """Four of noise, of which the third is left out, so that rows aren't counted through."""
    g = torch.Generator().manual_seed(1)
    episodes = [
        Demonstration(f"demo_{k}", 1.6 * torch.rand(n, 4, generator=g) - 0.8, observations(n, seed=k))
        for k, n in enumerate(LENGTHS)
    ]
    return Demonstrations.of(Path("made.hdf5"), EnvInfo("made"), episodes).only([0, 1, 3])


def base(name: str, home: Path) -> BasePolicy:
    policy = BasePolicy(BaseConfig(name, str(base_run(home, name))), SPEC, make_policy)
    policy.read_()
    return policy


def made_agent(name: str, base: str, home: Path, **more: Any) -> ImitationAgent:
    """An agent with a base, which was not prepared."""
    values = {"name": name, **ABOVE[name], "base": base, "base_checkpoint": str(base_run(home, base)), **more}
    agent = make_agent(values, SPEC, seed=0, total_steps=10)
    agent.fit_normalizer_(made_demonstrations())
    return agent


def windows_of(agent: ImitationAgent) -> Windows:
    shape = agent.windows
    return made_demonstrations().windows(shape.window, shape.horizon, pad_before=shape.pad_before, pad_after=shape.pad_after)


def noise(rows: int, seed: int = 0) -> BatchNoise:
    return BatchNoise(rows, torch.Generator().manual_seed(seed), torch.device("cpu"))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(9)


@pytest.mark.parametrize("name", ["bc", "rnn_gmm"])
def test_mixtures_are_what_they_would_be(name: str, tmp_path: Path) -> None:
    """With the same random numbers the same actions, whatever mode they choose, at every step that counts of every window."""
    policy, windows = base(name, tmp_path), made_demonstrations().windows(6, 1, pad_before=5, pad_after=4)
    batch = windows.gather(torch.arange(len(windows)))
    begin = batch.mask[:, :6].int().argmax(1)
    asked, latest = (ask(batch.obs, noise(len(begin)), begin) for ask in (policy.plans, policy.latest))
    policy.foresee_(made_demonstrations(), 6, 8, generator())
    kept, kept_latest = (ask(batch.obs, noise(len(begin)), begin, batch.rows) for ask in (policy.plans, policy.latest))
    counts = batch.mask[:, :6] & (torch.arange(6) >= policy.check().lead)
    counts |= batch.mask[:, :6] & (begin > 0)[:, None] & (torch.arange(6) >= begin[:, None])
    assert bool(batch.mask[0, :6].sum() == 1) and 60 < int(counts.sum()) < counts.numel()
    torch.testing.assert_close(kept[counts], asked[counts], rtol=0, atol=1e-5)
    torch.testing.assert_close(kept_latest[counts[:, -1]], latest[counts[:, -1]], rtol=0, atol=1e-5)
    assert len(asked[counts].round(decimals=2).unique()) > 20


def test_a_diffusion_base_s_chunks_are_drawn_once(tmp_path: Path) -> None:
    policy, made = base("diffusion", tmp_path), made_demonstrations()
    windows = made.windows(3, 1, pad_before=2)
    batch = windows.gather(torch.arange(len(windows)))
    policy.foresee_(made, 3, 4, generator())
    plans = torch.stack([policy.plans(batch.obs, noise(len(batch.mask), k), None, batch.rows) for k in range(40)])
    assert batch.rows is not None and policy.foreseen is not None
    for b, t in itertools.product(range(len(batch.mask)), range(3)):
        table = policy.foreseen.table[batch.rows[b, t], 0].view(4, 3, 4).clamp(-1, 1)
        drawn = plans[:, b, t].unique(dim=0)
        assert len(drawn) == 4 and torch.equal(drawn, table.unique(dim=0))  # each of them, and no other
    left_out = torch.arange(13, 20)
    assert not bool(policy.foreseen.table[left_out].any())
    again = base("diffusion", tmp_path)
    again.foresee_(made, 3, 4, generator())
    assert torch.equal(again.foreseen.table, policy.foreseen.table)  # type: ignore[union-attr]


def test_kept_chunks_are_distributed_as_the_base_s(tmp_path: Path) -> None:
    policy, made, count = base("diffusion", tmp_path), made_demonstrations().only([1]), 400
    batch = made.windows(2, 1, pad_before=1).gather(torch.arange(3))
    policy.foresee_(made, 2, count, generator())
    repeated = {key: x.repeat_interleave(count, 0) for key, x in batch.obs.items()}
    asked = policy.latest(repeated, noise(3 * count)).view(3, count, 3, 4)
    table = policy.foreseen.table[batch.rows[:, -1], 0].view(3, count, 3, 4).clamp(-1, 1)  # type: ignore[index, union-attr]
    spread, error = asked.std(1), (2 / count) ** 0.5
    assert float(spread.mean()) > 0.1 and not torch.equal(asked, table)
    assert float(((asked.mean(1) - table.mean(1)) / spread).square().mean().sqrt()) < 1.6 * error
    assert float((spread / table.std(1) - 1).square().mean().sqrt()) < 1.6 * error
    assert float(((table[:1].mean(1) - table[1:].mean(1)) / spread[1:]).square().mean().sqrt()) > 2 * error  # windows differ


@pytest.mark.parametrize("name", ABOVE)
@pytest.mark.parametrize("base", ["bc", "rnn_gmm"])
def test_the_loss_is_the_same(name: str, base: str, tmp_path: Path) -> None:
    agent = made_agent(name, base, tmp_path)
    windows = windows_of(agent)
    batch = windows.gather(torch.arange(len(windows)))

    def loss(rows: Tensor | None) -> Tensor:
        found: Tensor = agent.policy.loss(replace(batch, rows=rows), generator())[0]
        return found.detach()

    asked = loss(None)
    agent.prepare_(windows)
    torch.testing.assert_close(loss(batch.rows), asked, rtol=1e-4, atol=1e-6)
    assert torch.equal(loss(None), asked)
    with torch.no_grad():
        agent.policy.base.foreseen.table[:] = agent.policy.base.foreseen.table.flip(0)
    assert not torch.allclose(loss(batch.rows), asked, rtol=1e-3)


@pytest.mark.parametrize("name", ABOVE)
@pytest.mark.parametrize("base", BASES)
def test_the_base_is_not_asked_again(name: str, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = made_agent(name, base, tmp_path)
    windows = windows_of(agent)
    batch: WindowBatch = windows.gather(torch.arange(5))
    held_out = agent.validate(batch, seed=3)
    agent.prepare_(windows)
    assert all(torch.equal(value, held_out[tag]) for tag, value in agent.validate(batch, seed=3).items())

    def asked(*_: Any) -> Any:
        raise AssertionError("asked")

    monkeypatch.setattr(agent.policy.base.check().observer, "forward", asked)
    agent.update(batch, 0)
    for unprepared in (replace(batch, rows=None), batch):
        with pytest.raises(AssertionError, match="asked"):
            agent.update(unprepared, 1)
        agent.policy.base.foreseen = None
    anew = made_agent(name, base, tmp_path, base_draws=0)
    anew.prepare_(windows)
    assert anew.policy.base.foreseen is None


@pytest.mark.parametrize("name", ABOVE)
@pytest.mark.parametrize("base", BASES)
def test_a_run_that_goes_on_learns_from_the_same_numbers(name: str, base: str, tmp_path: Path) -> None:
    whole, rest = (made_agent(name, base, tmp_path) for _ in range(2))
    windows = windows_of(whole)
    whole.prepare_(windows)
    assert not [key for key in whole.state_dict() if "foreseen" in key]

    def batch(k: int) -> WindowBatch:
        return windows.gather(torch.arange(4 * k, 4 * k + 4))

    for k in range(2):
        whole.update(batch(k), k)
    rest.load_state_dict(copy.deepcopy(whole.state_dict()))
    rest.load_train_state(copy.deepcopy(whole.train_state()))
    rest.prepare_(windows)
    for k in range(2, 4):
        one, other = whole.update(batch(k), k).metrics, rest.update(batch(k), k).metrics
        assert all(torch.equal(one[tag], other[tag]) for tag in one)
    assert all(torch.equal(value, rest.state_dict()[key]) for key, value in whole.state_dict().items())


def test_a_table_that_is_too_large_is_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    agent = made_agent("residual", "bc", tmp_path)
    monkeypatch.setattr(foreseen, "_MOST_BYTES", 1000)
    agent.prepare_(windows_of(agent))
    assert agent.policy.base.foreseen is None and "takes too much memory to be kept" in caplog.text


def test_what_takes_long_says_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(foreseen, "_BATCH", 8)
    monkeypatch.setattr(foreseen, "_TELL_S", -1.0)
    caplog.set_level("INFO")
    made_agent("residual", "diffusion", tmp_path).prepare_(Windows(made_demonstrations(), 1, 1))
    told = [record.getMessage() for record in caplog.records if " left" in record.getMessage()]
    assert [line.split(",")[0] for line in told] == [f"what the base does: {k} of 19 observations" for k in (8, 16)]
