"""ACT: its loss by hand, what the CVAE sees, ensembling against a plain loop, and every kind of observation."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from agents.act import ACT
from agents.policies.noise import BatchNoise
from difftop.nn.transformer import drawing_from
from tests.agents.imitators import make, observations, padded_batch, random_batch, rolled
from tests.conftest import task_spec

KINDS = task_spec("test/kinds", {"eye": (3, 48, 48), "hand": (3,), "cloud": (20, 3)}, 4)


def acted_with(agent: Any, chunks: Tensor, begins: list[int], **how: Any) -> Tensor:
    """Actions `[T, A]` in one environment whose network foresees `chunks [T, T_p, A]`."""
    told = iter(chunks)
    agent.policy.chunk = lambda obs, noise: next(told)[None]
    t0 = torch.tensor([[t in begins for t in range(len(chunks))]])
    return rolled(agent.actor(1, seed=0, **how), observations(1, len(chunks)), t0)[0]


@pytest.mark.parametrize("begins", [[0], [0, 5]])
@pytest.mark.parametrize("rate", [0.01, 0.7, 0.0])
def test_ensembling_is_the_papers_loop(rate: float, begins: list[int]) -> None:
    agent = make("act", ensemble_rate=rate)
    chunks = torch.rand(9, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    actions = acted_with(agent, chunks, begins)
    for t in range(9):
        began = max(b for b in begins if b <= t)
        seen = [chunks[s, t - s] for s in range(max(began, t - 3), t + 1)]  # the oldest first
        weights = [math.exp(-rate * i) for i in range(len(seen))]
        expected = sum(w * a for w, a in zip(weights, seen, strict=True)) / sum(weights)
        torch.testing.assert_close(actions[t], expected)
    newest = acted_with(make("act", ensemble=False), chunks, begins)
    assert torch.equal(newest, chunks[:, 0]) and not torch.allclose(newest, actions)


def test_chunks_that_are_two_steps_apart_are_ensembled_too() -> None:
    agent, chunks = make("act", execute=2, ensemble_rate=0.5), torch.rand(4, 4, 4) * 2 - 1
    told = iter(chunks)
    agent.policy.chunk = lambda obs, noise: next(told)[None]
    actions = rolled(agent.actor(1, seed=0), observations(1, 6))[0]
    old, new = 1.0, math.exp(-0.5)
    expected = [*chunks[0, :2]]
    for k in (1, 2):
        expected += [(old * chunks[k - 1, 2 + j] + new * chunks[k, j]) / (old + new) for j in range(2)]
    torch.testing.assert_close(actions, torch.stack(expected))


def test_the_head_limits_what_is_ensembled() -> None:
    chunks = torch.ones(9, 4, 4)
    agent = make("act", limits={"acceleration": 0.1})
    actions = acted_with(agent, chunks, [0], head="qp")[:, :3]
    changes = torch.cat([actions[:1], actions[1:] - actions[:-1]])
    assert float(changes.max()) <= 0.1 + 1e-6 and float(actions[-1].min()) > 0.85  # as fast as it may
    clipped = acted_with(agent, chunks, [0], head="clip")[:, :3]
    torch.testing.assert_close(clipped, 0.1 * torch.arange(1, 10)[:, None].expand(9, 3))


def test_loss_by_hand() -> None:
    agent = make("act", dropout=0.0)
    policy: ACT = agent.policy
    batch = padded_batch(agent)
    loss, metrics = policy.loss(batch, torch.Generator().manual_seed(5))
    assert policy.vectors == ["eef_pos", "object"]
    vectors = torch.cat([batch.obs["eef_pos"][:, 0], batch.obs["object"][:, 0]], -1)
    mean, log_variance = policy.posterior(vectors, batch.actions, batch.mask)
    noise = BatchNoise(6, torch.Generator().manual_seed(5), torch.device("cpu"))
    w = mean + (log_variance / 2).exp() * noise.normal(3)
    errors = (policy.decoded(batch.obs, w, noise) - batch.actions).abs()[batch.mask]
    assert len(errors) < 24
    standard = torch.distributions.Normal(torch.zeros(6, 3), 1.0)
    kl = torch.distributions.kl_divergence(torch.distributions.Normal(mean, (log_variance / 2).exp()), standard).sum(1)
    torch.testing.assert_close(loss, errors.mean() + 10 * kl.mean())
    torch.testing.assert_close(torch.stack([metrics["l1"], metrics["kl"]]), torch.stack([errors.mean(), kl.mean()]))


def test_the_posterior_sees_the_chunk_and_its_order_but_no_padding() -> None:
    policy: ACT = make("act").policy.eval()
    batch = random_batch(make("act"))
    vectors = torch.cat([batch.obs["eef_pos"][:, 0], batch.obs["object"][:, 0]], -1)

    def told(actions: Tensor, mask: Tensor) -> Tensor:
        return torch.cat(policy.posterior(vectors, actions, mask), -1)

    whole = told(batch.actions, batch.mask)
    assert not torch.allclose(told(batch.actions.flip(1), batch.mask), whole)
    assert not torch.allclose(torch.cat(policy.posterior(vectors + 1, batch.actions, batch.mask), -1), whole)
    short = batch.mask.clone()
    short[:, 2:] = False
    other = torch.cat([batch.actions[:, :2], batch.actions[:, 2:] + 1], 1)
    assert torch.equal(told(other, short), told(batch.actions, short))
    assert not torch.allclose(told(batch.actions, short), whole)


def test_two_ways_are_told_apart_by_the_latent() -> None:
    """Left or right from the same observation: the CVAE's latent says which, and without it there is only the middle."""
    agent = make("act", training={"learning_rate": 3e-3, "warmup_steps": 0}, kl=0.01, dropout=0.0)
    batch = random_batch(agent, 8)
    side = torch.tensor([0.6, -0.6]).repeat(4)[:, None, None].expand(8, 4, 4)
    batch = replace(batch, actions=side.contiguous(), obs={key: torch.zeros_like(x) for key, x in batch.obs.items()})
    for k in range(150):
        metrics = agent.update(batch, k).metrics
    assert float(metrics["train/l1"]) < 0.2  # the middle is off by 0.6


def test_what_it_has_learned_it_does() -> None:
    """The demonstrated chunks come out of the prior's mean, from the observations alone."""
    agent = make("act", steps=300, training={"learning_rate": 3e-3, "warmup_steps": 0}, dropout=0.0)
    batch = random_batch(agent, 6)
    with torch.no_grad():
        before = agent.policy.chunk(batch.obs, BatchNoise(6, None, torch.device("cpu")))
    for k in range(200):
        agent.update(batch, k)
    agent.policy.eval()
    with torch.no_grad():
        chunks = agent.policy.chunk(batch.obs, BatchNoise(6, None, torch.device("cpu")))
    error, first = (float((x - batch.actions).abs().mean()) for x in (chunks, before))
    assert error < 0.1 < 0.3 < first, (error, first)


def test_images_clouds_and_vectors_are_seen() -> None:
    agent = make("act", spec=KINDS, encoder={"norm": "group", "features": 8}, dropout=0.0)
    g = torch.Generator().manual_seed(1)
    batch = random_batch(agent, 2, spec=KINDS)
    batch.obs["eye"] = torch.randint(0, 256, (2, 1, 3, 48, 48), generator=g, dtype=torch.uint8)
    loss, _ = agent.policy.loss(batch)
    loss.backward()
    assert [name for name, p in agent.policy.named_parameters() if p.grad is None] == []
    now = {key: x[:, 0] for key, x in batch.obs.items()}
    first = torch.ones(2, dtype=torch.bool)
    actions = agent.actor(2, seed=0).act(now, first)
    assert actions.shape == (2, 4)
    for key in now:
        assert not torch.allclose(agent.actor(2, seed=0).act(now | {key: now[key].flip(0)}, first), actions, atol=1e-6), key


@pytest.mark.parametrize("shapes", [{"eye": (3, 48, 48)}, {"cloud": (20, 3)}])
def test_without_vectors_the_posterior_sees_the_chunk_alone(shapes: dict[str, tuple[int, ...]]) -> None:
    spec = task_spec("test/one", shapes, 4)
    agent = make("act", spec=spec, encoder={"norm": "group"})
    agent.update(random_batch(agent, 2, spec=spec), 0)
    assert agent.policy.vectors == [] and agent.policy.posterior.from_vectors is None


def test_training_draws_dropout_from_its_generator_alone() -> None:
    one, other = make("act", dropout=0.4), make("act", dropout=0.4)
    batch = random_batch(one)
    for k in range(2):
        first = one.update(batch, k).metrics
        torch.manual_seed(k + 7)  # torch's own numbers don't matter
        assert all(torch.equal(a, b) for a, b in zip(first.values(), other.update(batch, k).metrics.values(), strict=True))
    policy = one.policy.eval()
    noise = BatchNoise(6, None, torch.device("cpu"))
    with torch.no_grad(), drawing_from(policy, torch.Generator()):
        assert torch.equal(policy.chunk(batch.obs, noise), policy.chunk(batch.obs, noise))


def test_what_is_held_is_learned_like_what_was_done() -> None:
    """pad=hold on windows that end early, and pad=mask on the same windows with their rest written out: one loss."""
    held, masked = make("act", pad="hold"), make("act", pad="mask")
    masked.policy.load_state_dict(held.policy.state_dict())
    batch = padded_batch(held)
    written = batch.actions.clone()
    for row, known in zip(written, batch.mask, strict=True):
        last = int(known.nonzero()[-1])
        row[last + 1 :] = torch.stack([torch.zeros(()), torch.zeros(()), torch.zeros(()), row[last, 3]])  # the gripper stays
    assert not bool(batch.mask.all())
    whole = replace(batch, actions=written, mask=torch.ones_like(batch.mask))
    losses = [
        agent.policy.loss(windows, torch.Generator().manual_seed(1))[0]
        for agent, windows in ((held, batch), (masked, whole), (masked, batch))
    ]
    assert torch.equal(losses[0], losses[1]) and not torch.allclose(losses[0], losses[2])
