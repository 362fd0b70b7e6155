"""Rollouts of open-loop plans under a latent model."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from difftop.planning.model import LatentModel, check_shape


class Rollout(NamedTuple):
    """Attributes: latents `[B, H+1, Z]`, rewards `[B, H]`, terminal `[B]` (zeros where the model has no terminal value)."""

    latents: Tensor
    rewards: Tensor
    terminal: Tensor


def rollout(model: LatentModel, z0: Tensor, actions: Tensor) -> Rollout:
    """Latents, rewards and terminal value of plans.

        z_{t+1} = dynamics(z_t, a_t),   R_t = reward(z_t, a_t),   V = terminal(z_H)

    Args:
        model: needs `reward`.
        z0: `[B, Z]`.
        actions: `[B, H, A]`.
    """
    if model.reward is None:
        raise ValueError("model.reward is None: a rollout with rewards needs LatentModel(reward=...).")
    latents = rollout_latents(model, z0, actions)
    batch, horizon = actions.shape[:2]
    rewards = model.reward(latents[:, :-1].flatten(0, 1), actions.flatten(0, 1))
    check_shape("reward", rewards, (batch * horizon,))
    terminal = rewards.new_zeros(batch) if model.terminal is None else model.terminal(latents[:, -1])
    check_shape("terminal", terminal, (batch,))
    return Rollout(latents, rewards.view(batch, horizon).to(z0.dtype), terminal.to(z0.dtype))


def rollout_latents(model: LatentModel, z0: Tensor, actions: Tensor) -> Tensor:
    """Latents `[B, H+1, Z]` of plans `[B, H, A]`."""
    latents = [z0]
    for action in actions.unbind(1):
        latents.append(check_shape("dynamics", model.dynamics(latents[-1], action), tuple(z0.shape)))
    return torch.stack(latents, 1)


def rollout_return(model: LatentModel, z0: Tensor, actions: Tensor) -> Tensor:
    """Discounted return of open-loop plans.

        G = sum_{t<H} gamma^t R_t + gamma^H V

    Args:
        model: needs `reward`.
        z0: `[B, Z]`.
        actions: `[B, H, A]`.
    Returns:
        G `[B]`; row i depends on row i of the inputs only.
    Source: TD-MPC, arXiv:2203.04955, equation 3. Differs: no noise on the terminal action.
    """
    _, rewards, terminal = rollout(model, z0, actions)
    horizon = actions.shape[1]
    return (rewards * discounts(model.discount, horizon, rewards)).sum(1) + model.discount**horizon * terminal


def rollout_cost(model: LatentModel, z0: Tensor, actions: Tensor) -> Tensor:
    """Discounted cost of open-loop plans `[B]`: `sum_{t<H} gamma^t 1/2 |cost(z_t, a_t)|^2`."""
    if model.cost is None:
        raise ValueError("model.cost is None: objective 'cost' needs LatentModel(cost=...).")
    latents = rollout_latents(model, z0, actions)
    batch, horizon = actions.shape[:2]
    rows = model.cost(latents[:, :-1].flatten(0, 1), actions.flatten(0, 1))
    steps = rows.square().sum(-1).view(batch, horizon) / 2
    return (steps * discounts(model.discount, horizon, steps)).sum(1)


def discounts(gamma: float, count: int, like: Tensor) -> Tensor:
    """`[1, gamma, ..., gamma^(count-1)]` with the dtype and device of `like`."""
    return gamma ** torch.arange(count, dtype=like.dtype, device=like.device)


def shift_plan(actions: Tensor, horizon: int | None = None) -> Tensor:
    """The plan one step later: action 0 dropped, zeros appended, cut or padded to `horizon` (its own length if None).

    Args:
        actions: plans of the last agent step `[B, H, A]`.
        horizon: H of the next plan; a schedule may have changed it.
    """
    batch, length, action_dim = actions.shape
    shifted = actions.new_zeros(batch, length if horizon is None else horizon, action_dim)
    kept = min(length - 1, shifted.shape[1])
    shifted[:, :kept] = actions[:, 1 : kept + 1]
    return shifted
