"""Coloured noise: its variance, its spectrum, and that an episode's noise is a function of its seed."""

from __future__ import annotations

import pytest
import torch

from difftop.noise import EXPONENTS, coloured_noise, mixed_noise


@pytest.mark.parametrize("steps", [1, 2, 3, 250])
@pytest.mark.parametrize("exponent", EXPONENTS)
def test_every_step_has_unit_variance(steps: int, exponent: float) -> None:
    noise = coloured_noise(steps, 4000, exponent, torch.Generator().manual_seed(1))
    assert noise.shape == (steps, 4000) and noise.dtype == torch.float32
    torch.testing.assert_close(noise.var(dim=1), torch.ones(steps), rtol=0, atol=0.12)  # five standard errors


@pytest.mark.parametrize("exponent", EXPONENTS)
def test_power_falls_as_the_exponent_says(exponent: float) -> None:
    noise = coloured_noise(512, 400, exponent, torch.Generator().manual_seed(2)).double()
    power = torch.fft.rfft(noise, dim=0).abs().square().mean(dim=1)[1:-1]
    frequency = torch.arange(1, 256, dtype=torch.float64)
    x, y = frequency.log(), power.log()
    slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    assert slope == pytest.approx(-exponent, abs=0.05)


def test_mixed_noise_draws_every_colour_and_repeats_itself() -> None:
    def roughness(seed: int) -> float:
        noise = mixed_noise(200, 8, seed)
        return float(noise.diff(dim=0).square().mean() / noise.square().mean())

    found = [roughness(seed) for seed in range(40)]
    assert found == [roughness(seed) for seed in range(40)]
    assert max(found) > 1.7 and min(found) < 0.1  # white steps are twice as large as the noise, slow ones small
