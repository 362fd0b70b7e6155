"""Squashed Gaussians against torch.distributions."""

from __future__ import annotations

import torch
from torch.distributions import Normal, TanhTransform, TransformedDistribution

from difftop.nn.gaussian import bounded_log_std, squashed_sample


def test_density_of_the_squashed_action() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, log_std, noise = (torch.randn(50, 3, generator=generator, dtype=torch.float64).clamp(-1, 1) for _ in range(3))
    a, log_p = squashed_sample(mean, log_std, noise)
    torch.testing.assert_close(a, torch.tanh(mean + log_std.exp() * noise))
    distribution = TransformedDistribution(Normal(mean, log_std.exp()), [TanhTransform(cache_size=1)])
    torch.testing.assert_close(log_p, distribution.log_prob(a).sum(-1))


def test_density_integrates_to_one() -> None:
    """Over a fine grid of noise: E[1] under p(a) da = sum p(a) da/dnoise dnoise."""
    noise = torch.linspace(-9, 9, 20001, dtype=torch.float64).unsqueeze(1)
    a, log_p = squashed_sample(torch.full_like(noise, 0.4), torch.full_like(noise, -0.3), noise)
    total = torch.trapezoid(log_p.exp(), a.squeeze(1))
    torch.testing.assert_close(total, torch.ones((), dtype=torch.float64), rtol=1e-6, atol=1e-6)


def test_finite_where_tanh_rounds_to_one() -> None:
    mean = torch.tensor([[40.0], [-40.0]], requires_grad=True)
    a, log_p = squashed_sample(mean, torch.zeros(2, 1), torch.zeros(2, 1))
    log_p.sum().backward()
    assert a.abs().max() <= 1 and torch.isfinite(log_p).all() and torch.isfinite(mean.grad).all()


def test_log_std_stays_in_its_range() -> None:
    x = torch.tensor([-100.0, 0.0, 100.0])
    torch.testing.assert_close(bounded_log_std(x, -10, 2), torch.tensor([-10.0, -4.0, 2.0]))
