"""Diffusion of data to noise, and the way back: DDPM and DDIM."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

_LARGEST_BETA = 0.999


class Denoising(nn.Module):
    """The chain q(x_k | x_0) = N(sqrt(abar_k) x_0, (1 - abar_k) I), k = 0 .. K-1, with the squared-cosine schedule

        f(u) = cos((u + 0.008) / 1.008 pi / 2)^2
        beta_k = min(1 - f((k+1)/K) / f(k/K), 0.999),   abar_k = prod_{j<=k} (1 - beta_j)

    Args:
        steps: K.
    Buffers (float64):
        beta, abar: `[K]`.
    Source: Nichol & Dhariwal, arXiv:2102.09672, section 3.2 (`squaredcos_cap_v2` in Hugging Face's diffusers).
    """

    beta: Tensor
    abar: Tensor

    def __init__(self, steps: int) -> None:
        super().__init__()
        edge = [math.cos((k / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for k in range(steps + 1)]
        beta = [min(1 - after / before, _LARGEST_BETA) for before, after in pairwise(edge)]
        self.steps = steps
        self.register_buffer("beta", torch.tensor(beta, dtype=torch.float64), persistent=False)
        self.register_buffer("abar", (1 - torch.tensor(beta, dtype=torch.float64)).cumprod(0), persistent=False)

    def noised(self, x: Tensor, noise: Tensor, step: Tensor) -> Tensor:
        """x_k `[B, ...]` of data and standard normal noise `[B, ...]`, at steps k `[B]`."""
        abar = self.abar[step].view(-1, *[1] * (x.dim() - 1))
        return abar.sqrt().to(x.dtype) * x + (1 - abar).sqrt().to(x.dtype) * noise

    def sample(self, model: Callable[[Tensor, int], Tensor], start: Tensor, draws: Tensor, *, bound: float = 1.0) -> Tensor:
        """All K steps back, each from the posterior q(x_{k-1} | x_k, x_0) at the x_0 that the model's noise implies.

            x_0 = clip((x_k - sqrt(1 - abar_k) eps) / sqrt(abar_k))
            x_{k-1} = (sqrt(abar_{k-1}) beta_k x_0 + sqrt(1 - beta_k) (1 - abar_{k-1}) x_k) / (1 - abar_k) + sigma_k z
            sigma_k^2 = (1 - abar_{k-1}) / (1 - abar_k) beta_k,   no noise in the last step

        Args:
            model: `(x_k [B, ...], k)` to the noise in it, eps.
            start: x_{K-1}, standard normal `[B, ...]`.
            draws: z, standard normal `[B, K-1, ...]`, the first for step K-1.
            bound: data lie in [-bound, bound]; infinite for no clipping.
        Source: DDPM, arXiv:2006.11239, equation 7, with the smaller of its two variances, as Diffusion Policy takes it.
        """
        x, abars, betas = start, self.abar.tolist(), self.beta.tolist()  # read once: a GPU waits for each reading
        for k in reversed(range(self.steps)):
            abar, beta, before = abars[k], betas[k], abars[k - 1] if k else 1.0
            data = self._data(x, model(x, k), abar, bound)
            x = math.sqrt(before) * beta / (1 - abar) * data + math.sqrt(1 - beta) * (1 - before) / (1 - abar) * x
            if k:
                x = x + math.sqrt((1 - before) / (1 - abar) * beta) * draws[:, self.steps - 1 - k]
        return x

    def sample_fast(self, model: Callable[[Tensor, int], Tensor], start: Tensor, steps: int, *, bound: float = 1.0) -> Tensor:
        """`steps` deterministic steps back, evenly spaced from k = (steps - 1) K / steps down to 0.

            x' = sqrt(abar') x_0 + sqrt(1 - abar') (x - sqrt(abar) x_0) / sqrt(1 - abar)

        Source: DDIM, arXiv:2010.02502, equation 12 with eta = 0.
        Differs: the noise is recomputed where x_0 was clipped (diffusers keeps the model's).
        """
        x, abars = start, self.abar.tolist()
        chain = [i * self.steps // steps for i in reversed(range(steps))]
        for i, k in enumerate(chain):
            abar, before = abars[k], abars[chain[i + 1]] if i + 1 < len(chain) else 1.0
            data = self._data(x, model(x, k), abar, bound)
            noise = (x - math.sqrt(abar) * data) / math.sqrt(1 - abar)
            x = math.sqrt(before) * data + math.sqrt(1 - before) * noise
        return x

    def _data(self, x: Tensor, noise: Tensor, abar: float, bound: float) -> Tensor:
        return ((x - math.sqrt(1 - abar) * noise) / math.sqrt(abar)).clamp(-bound, bound)
