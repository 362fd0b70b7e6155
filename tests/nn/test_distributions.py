"""Mixtures against torch.distributions."""

from __future__ import annotations

import torch
from torch import distributions

from difftop.nn.distributions import GaussianMixture, MixtureHead


def mixture(*lead: int, modes: int = 4, size: int = 3, seed: int = 0) -> GaussianMixture:
    g = torch.Generator().manual_seed(seed)
    shape = (*lead, modes, size)
    logits, mean, spread = (
        torch.randn(*lead, modes, generator=g),
        torch.randn(shape, generator=g),
        torch.randn(shape, generator=g),
    )
    return GaussianMixture(logits.double(), mean.double(), spread.double().exp())


def torchs(made: GaussianMixture) -> distributions.MixtureSameFamily:
    components = distributions.Independent(distributions.Normal(made.mean, made.std), 1)
    return distributions.MixtureSameFamily(distributions.Categorical(logits=made.logits), components)


def test_log_density_is_torchs() -> None:
    made, g = mixture(5, 2), torch.Generator().manual_seed(1)
    x = torch.randn(5, 2, 3, generator=g).double() * 3
    torch.testing.assert_close(made.log_prob(x), torchs(made).log_prob(x))


def test_unknown_entries_are_integrated_out() -> None:
    made = mixture(6)
    x, known = torch.randn(6, 3).double(), torch.tensor([True, False, True]).expand(6, 3)
    marginal = GaussianMixture(made.logits, made.mean[..., [0, 2]], made.std[..., [0, 2]])
    torch.testing.assert_close(made.log_prob(x, known), torchs(marginal).log_prob(x[:, [0, 2]]))
    spoiled = torch.where(known, x, 1e6)
    assert torch.equal(made.log_prob(spoiled, known), made.log_prob(x, known))


def test_gradients_are_finite_far_from_every_mode() -> None:
    head = MixtureHead(4, 2, 3, 1e-4)
    made = head(torch.randn(8, 4))
    made.log_prob(torch.full((8, 2), 0.9)).sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in head.parameters() if p.grad is not None)
    assert bool((made.mean.abs() <= 1).all()) and bool((made.std >= 1e-4).all())


def test_samples_have_the_mixtures_moments() -> None:
    made, g = mixture(), torch.Generator().manual_seed(2)
    n = 200_000
    many = GaussianMixture(*(x.expand(n, *x.shape) for x in (made.logits, made.mean, made.std)))
    uniform, normal = torch.rand(n, generator=g, dtype=torch.float64), torch.randn(n, 3, generator=g, dtype=torch.float64)
    drawn, expected = many.sample(uniform, normal), torchs(made)
    assert bool(((drawn.mean(0) - expected.mean).abs() < 5 * (expected.variance / n).sqrt()).all())
    torch.testing.assert_close(drawn.var(0), expected.variance, rtol=0.05, atol=0)
    sharp = many.sample(uniform, normal, 1e-4)
    distance = (sharp[:, None] - made.mean).abs().amax(-1)
    share = (distance < 1e-3).double().mean(0)
    torch.testing.assert_close(share, made.logits.softmax(-1), rtol=0, atol=0.01)
    assert float(distance.amin(1).max()) < 1e-3


def test_the_last_mode_is_in_reach() -> None:
    made = GaussianMixture(torch.zeros(2, 3), torch.arange(6.0).view(2, 3, 1), torch.ones(2, 3, 1))
    drawn = made.sample(torch.tensor([0.0, 1 - 2**-24]), torch.zeros(2, 1))
    assert drawn.flatten().tolist() == [0.0, 5.0]
