"""Coloured noise for exploration: sequences whose power falls with frequency, so that actions hang together in time."""

from __future__ import annotations

import random

import torch
from torch import Tensor

EXPONENTS = (0.0, 0.5, 1.0, 1.5, 2.0)  # white, between, pink, between, red: no single colour finds every task's first reward


def coloured_noise(steps: int, size: int, exponent: float, generator: torch.Generator) -> Tensor:
    """`size` independent Gaussian sequences with power spectrum 1/f^exponent, `[steps, size]`.

    Each number has variance 1, over draws. The zero frequency gets the power of the lowest one.

    Args:
        steps: length, at least 1.
        size: number of sequences.
        exponent: 0 is white, 1 pink, 2 red.
        generator: on the CPU.
    Source: Timmer and Koenig 1995; for exploration Eberhard et al., "Pink Noise Is All You Need", ICLR 2023.
    """
    even = steps + steps % 2  # the highest frequency then is real, and every length is cut from an even one
    frequency = torch.fft.rfftfreq(even, dtype=torch.float64)
    frequency[0] = frequency[1]
    amplitude = frequency ** (-exponent / 2)
    real = torch.randn(2, len(frequency), size, generator=generator, dtype=torch.float64)
    real[1, 0] = real[1, -1] = 0.0
    real[0, 0] *= 2**0.5
    real[0, -1] *= 2**0.5
    wave = torch.fft.irfft(torch.complex(real[0], real[1]) * amplitude[:, None], n=even, dim=0)
    power = amplitude.square()
    power[1:-1] *= 2
    std = (2 * power.sum()).sqrt() / even
    noise: Tensor = (wave[:steps] / std).float()
    return noise


def mixed_noise(steps: int, size: int, seed: int) -> Tensor:
    """`coloured_noise` of an exponent that `seed` draws from `EXPONENTS`: each episode explores on a time scale of its own."""
    return coloured_noise(steps, size, random.Random(seed).choice(EXPONENTS), torch.Generator().manual_seed(seed))
