"""Losses of latent world models, and the arithmetic of a gradient step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn


class NonFiniteLossError(RuntimeError):
    """A loss or its gradient is NaN or infinite; raised before the step that would spread it."""


def td_target(reward: Tensor, terminated: Tensor, next_value: Tensor, discount: Tensor | float) -> Tensor:
    """One-step targets y = r + gamma (1 - terminated) V(s'); a time limit is not a termination and is bootstrapped.

    Args:
        reward, terminated, next_value: the same shape; `terminated` bool.
        discount: gamma in [0, 1].
    """
    return reward + discount * torch.where(terminated, 0.0, next_value)


def n_step_targets(reward: Tensor, terminated: Tensor, next_value: Tensor, discount: Tensor | float, n: int) -> Tensor:
    """Targets of n replayed rewards, or of as many as the slice still has, and the value after them.

        y_t = r_t + gamma r_{t+1} + ... + gamma^{m-1} r_{t+m-1} + gamma^m V(s_{t+m}),   m = min(n, T - t)

    cut at a termination. n = 1 is `td_target`.

    Args:
        reward, terminated, next_value: `[T, B]`; `next_value[t]` is of the state after step t.
        discount: gamma in [0, 1].
        n: at least 1.
    """
    y = next_value
    for k in range(n):  # after pass k, y[t] holds k + 1 rewards, or all there are
        after = y if k == 0 else torch.cat([y[1:], next_value[-1:]])
        y = td_target(reward, terminated, after, discount)
    return y


def decayed_sum(errors: Tensor, rho: float, bound: float = 1e4) -> Tensor:
    """sum_t rho^t e_t per sample, bounded above so that one broken sample can't drown the batch.

    Args:
        errors: `[T, B]`, non-negative.
        rho: decay in [0, 1].
    Returns:
        `[B]`.
    Source: TD-MPC, arXiv:2203.04955, equation 7; the bound is the official code's.
    """
    weights = rho ** torch.arange(errors.shape[0], device=errors.device, dtype=errors.dtype)
    with torch.autocast(errors.device.type, enabled=False):  # a sum, which bfloat16 would round as a product
        return (weights @ errors).clamp(max=bound)


def full_precision(x: Tensor) -> Tensor:
    """float32 where autocast made it bfloat16; anything else as it is."""
    return x.float() if x.dtype == torch.bfloat16 else x


class FiniteWatch:
    """Stops training at a non-finite loss or gradient, before a weight takes it in.

    At once where numbers can be read for nothing, on a CPU. On a GPU, where the host would wait for each of them, the first
    one is kept on the device: from then on the optimizers' steps are skipped there, and `raise_found` tells of it, which the
    loops call before they write a row of metrics or a checkpoint.

    Args:
        device: of the losses.
        deferred: keep them for `raise_found`; None: not on a CPU.
    Attributes:
        found: 0-d, 1 from the first non-finite number on; what fused optimizers take as `found_inf`.
    """

    def __init__(self, device: torch.device, deferred: bool | None = None) -> None:
        self.deferred = device.type != "cpu" if deferred is None else deferred
        self.found = torch.zeros((), device=device)
        self._value, self._which = torch.zeros((), device=device), torch.zeros((), dtype=torch.int64, device=device)
        self._names: list[str] = []

    def check(self, number: Tensor, name: str) -> None:
        """Raises `NonFiniteLossError`, now or later, where `number` (a scalar) is NaN or infinite."""
        number = number.detach()
        if not self.deferred:
            if not torch.isfinite(number):
                raise NonFiniteLossError(f"{name} is {number.item()}")
            return
        if name not in self._names:
            self._names.append(name)
        fresh = ~torch.isfinite(number) & (self.found == 0)
        self._value.copy_(torch.where(fresh, number.to(self._value), self._value))
        self._which.copy_(torch.where(fresh, self._names.index(name), self._which))
        self.found.copy_(torch.where(fresh, 1.0, self.found))

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """The optimizer's step; none where a non-finite number was found. Deferred, the optimizer has to be a fused one."""
        if self.deferred:
            optimizer.found_inf = self.found  # type: ignore[attr-defined]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def clipped_step(
        self, optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], max_norm: float, name: str
    ) -> Tensor:
        """Clips the joint gradient norm, steps, forgets the gradients.

        Returns:
            The norm before clipping, a 0-d tensor.
        Raises:
            NonFiniteLossError: now or later, the norm of `name` isn't finite (a finite loss can have such a gradient); no weight
                has moved.
        """
        norm = nn.utils.clip_grad_norm_(parameters, max_norm, foreach=True)
        try:
            self.check(norm, f"the norm of {name}")
        except NonFiniteLossError:
            optimizer.zero_grad(set_to_none=True)
            raise
        self.step(optimizer)
        return norm.detach()

    def raise_found(self) -> None:
        """Raises `NonFiniteLossError` for the first non-finite number since the start; waits for the device."""
        if self._names and bool(self.found):
            raise NonFiniteLossError(f"{self._names[int(self._which)]} is {self._value.item()}")


@torch.no_grad()
def ema_(target: Iterable[Tensor], online: Iterable[Tensor], tau: float) -> None:
    """target <- (1 - tau) target + tau online, in place."""
    torch._foreach_lerp_(list(target), list(online), tau)


@torch.no_grad()
def average_(average: nn.Module, online: nn.Module, rate: float | Tensor) -> None:
    """As `ema_`, of a module's parameters; buffers (statistics) are copied. `rate` may be 0-d, where it changes under capture."""
    for mine, theirs in zip(average.parameters(), online.parameters(), strict=True):
        mine.lerp_(theirs, rate)
    for kept, new in zip(average.buffers(), online.buffers(), strict=True):
        kept.copy_(new)


class RunningScale(nn.Module):
    """A running scale of numbers: their spread between two percentiles, averaged over updates, or a share of the largest seen.

        S <- (1 - tau) S + tau max(P95(x) - P5(x), floor),     M <- max(M, max |x|),     value = max(S, peak M)

    The second term holds the scale up where most numbers are zero, as rewards are in sparse tasks: there both percentiles are
    zero until the task is solved. Kept as buffers, so that it is saved with the weights. The first batch sets S.

    Source: TD-MPC2, arXiv:2310.16828, appendix A (the scale of its policy loss).  Differs: the peak.
    """

    spread: Tensor
    largest: Tensor
    filled: Tensor
    ends: Tensor

    def __init__(self, tau: float = 0.01, floor: float = 1e-3, peak: float = 0.1) -> None:
        super().__init__()
        self.tau, self.floor, self.peak = tau, floor, peak
        self.register_buffer("spread", torch.ones(()))
        self.register_buffer("largest", torch.zeros(()))
        self.register_buffer("filled", torch.zeros((), dtype=torch.bool))
        self.register_buffer("ends", torch.tensor([0.05, 0.95]), persistent=False)

    @property
    def value(self) -> Tensor:
        """The scale now, 0-d; 1 before the first batch."""
        return torch.maximum(self.spread, self.peak * self.largest)

    @torch.no_grad()
    def update(self, numbers: Tensor) -> None:
        """Takes in a batch, any shape; one with a non-finite number, which the loss will tell, is passed over."""
        values = numbers.to(self.spread.dtype).flatten()
        ends = torch.quantile(values, self.ends)
        spread, largest = (ends[1] - ends[0]).clamp(min=self.floor), values.abs().amax()
        sound = torch.isfinite(largest)
        spread = torch.where(self.filled, torch.lerp(self.spread, spread, self.tau), spread)
        self.spread.copy_(torch.where(sound, spread, self.spread))
        self.largest.copy_(torch.where(sound, torch.maximum(self.largest, largest), self.largest))
        self.filled.logical_or_(sound)


def input_gradient(output: Tensor, inputs: Sequence[nn.Parameter]) -> list[Tensor]:
    """Gradients of the scalar `output` for `inputs` alone: networks on the way get no weight gradients, nor pay for them."""
    return cast("list[Tensor]", list(torch.autograd.grad(output, list(inputs))))
