"""Measures of a latent world model on played episodes: how well it predicts what a planner asks of it.

A plan compares action sequences by predicted rewards and by the value where they end. So what counts is not whether the model
predicts the latent, but whether it predicts how the value *changes*:

    z_0 = h(s_t),   z^_{k+1} = d(z^_k, a_{t+k}),   z_k = h(s_{t+k}),   V(z) = min_j Q_j(z, pi(z))

    latent error    rms_t |z^_k - z_k| / rms_t |z_0 - z_k|                       1: as good as a model that stands still
    reward R2       of R(z^_{k-1}, a) against the reward that came
    value R2        of V(z^_k) - V(z_0) against V(z_k) - V(z_0)                  0: no better than their mean
    bias, corr.     of V(h(s_t)) against sum_{i>=0} gamma^i r_{t+i}

The last line's episodes are played by the prior as its values mean it, with no more noise than their targets have: a policy that
noise brings down would look overestimated. The others' have more noise, because a planner leaves what the prior does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

_FIRST_SHARE = 0.4  # of an episode that a time limit ended: of later states too little of the return was seen
_SATURATED = 0.95


@dataclass(frozen=True)
class LatentView:
    """What is asked of an agent's model; all callables work row by row, without gradient.

    Attributes:
        encode: observations `[N, *shape]` to latents `[N, Z]`.
        step: latents and actions `[N, A]` to rewards `[N]` and next latents.
        values: latents and actions to the action values of every member `[E, N]`.
        policy: latents to the prior's actions `[N, A]`.
        sample: the same with the noise that the values' targets have, drawn from a generator.
        discount: gamma per agent step.
    """

    encode: Callable[[Tensor], Tensor]
    step: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    values: Callable[[Tensor, Tensor], Tensor]
    policy: Callable[[Tensor], Tensor]
    sample: Callable[[Tensor, torch.Generator], Tensor]
    discount: float

    def value(self, z: Tensor) -> Tensor:
        """V `[N]`: the lowest member's, at the prior's action."""
        return self.values(z, self.policy(z)).amin(dim=0)


@dataclass(frozen=True)
class Played:
    """One episode.

    Attributes:
        obs: `[T+1, *shape]`.
        action: `[T, A]`.
        reward: `[T]`.
        terminated: whether it ended in a state from which nothing follows.
    """

    obs: Tensor
    action: Tensor
    reward: Tensor
    terminated: bool = False


@dataclass(frozen=True)
class Diagnosis:
    """What was measured; lists are by step ahead, from 1. NaN where there was nothing to measure.

    Attributes:
        latent_error, reward_r2, value_r2: see the module.
        value_mean, return_mean: of the states of `own` that are compared: V, and the discounted return that followed,
            with V of the last state where a time limit ended the episode.
        value_correlation: of the two.
        value_error: rms difference of the two.
        ensemble_spread: mean largest difference of members' values; where the error is far larger, the members don't know.
        latent_rms: root mean square of latents' entries.
        prior_saturation: share of the prior's actions beyond 0.95.
        own_return, noisy_return: mean undiscounted return of the values' own episodes, and of those with more noise.
    """

    latent_error: list[float]
    reward_r2: list[float]
    value_r2: list[float]
    value_mean: float
    return_mean: float
    value_correlation: float
    value_error: float
    ensemble_spread: float
    latent_rms: float
    prior_saturation: float
    own_return: float
    noisy_return: float

    def plain(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self)


@torch.no_grad()
def diagnose(view: LatentView, noisy: Sequence[Played], own: Sequence[Played], steps: int = 6) -> Diagnosis:
    """Measures a model on episodes.

    Args:
        view: of the agent's model.
        noisy: played by the prior with some noise: near what the agent does, and not only what it does.
        own: played by the prior as the values mean it, `view.sample`.
        steps: K, steps ahead.
    Raises:
        ValueError: no episode of one of them is longer than K.
    """
    long, compared = ([episode for episode in episodes if len(episode.reward) > steps] for episodes in (noisy, own))
    if not long or not compared:
        raise ValueError(f"no episode has more than {steps} steps: play longer ones, or look fewer steps ahead.")
    latents = [view.encode(episode.obs) for episode in long]
    latent_error, reward_r2, value_r2 = _predictions(view, long, latents, steps)
    value, followed, spread = _values(view, compared)
    actions = torch.cat([view.policy(z) for z in latents])
    return Diagnosis(
        latent_error=latent_error,
        reward_r2=reward_r2,
        value_r2=value_r2,
        value_mean=float(value.mean()),
        return_mean=float(followed.mean()),
        value_correlation=_correlation(value, followed),
        value_error=float((value - followed).square().mean().sqrt()),
        ensemble_spread=float(spread.mean()),
        latent_rms=float(torch.cat(latents).square().mean().sqrt()),
        prior_saturation=float((actions.abs() > _SATURATED).float().mean()),
        own_return=_mean_return(own),
        noisy_return=_mean_return(noisy),
    )


def _mean_return(episodes: Sequence[Played]) -> float:
    return sum(float(episode.reward.sum()) for episode in episodes) / len(episodes)


def _predictions(
    view: LatentView, episodes: Sequence[Played], latents: Sequence[Tensor], steps: int
) -> tuple[list[float], list[float], list[float]]:
    """Errors of the model rolled out along the actions that were taken, from every state that has K steps after it."""
    starts = [len(episode.reward) - steps + 1 for episode in episodes]
    start = torch.cat([z[:n] for z, n in zip(latents, starts, strict=True)])
    base, z = view.value(start), start
    latent_error, reward_r2, value_r2 = [], [], []
    for k in range(steps):
        action = torch.cat([episode.action[k : k + n] for episode, n in zip(episodes, starts, strict=True)])
        came = torch.cat([episode.reward[k : k + n] for episode, n in zip(episodes, starts, strict=True)])
        seen = torch.cat([x[k + 1 : k + 1 + n] for x, n in zip(latents, starts, strict=True)])
        reward, z = view.step(z, action)
        still = (start - seen).square().mean().sqrt()
        latent_error.append(float((z - seen).square().mean().sqrt() / still) if still > 0 else float("nan"))
        reward_r2.append(r_squared(reward, came))
        value_r2.append(r_squared(view.value(z) - base, view.value(seen) - base))
    return latent_error, reward_r2, value_r2


def _values(view: LatentView, episodes: Sequence[Played]) -> tuple[Tensor, Tensor, Tensor]:
    """V, the discounted return that followed, and the spread of the members, of states most of whose return was seen.

    After a time limit V of the last state takes the place of what wasn't seen, as it does in what V is trained on.
    """
    values, returns, spreads = [], [], []
    for episode in episodes:
        z, total = view.encode(episode.obs), len(episode.reward)
        known = total if episode.terminated else max(int(_FIRST_SHARE * total), 1)
        after = None if episode.terminated else view.value(z[total:])[0]
        followed = discounted_returns(episode.reward, view.discount, after)[:known]
        members = view.values(z[:known], view.policy(z[:known]))
        values.append(members.amin(dim=0))
        spreads.append(members.amax(dim=0) - members.amin(dim=0))
        returns.append(followed.to(members.dtype))
    return torch.cat(values), torch.cat(returns), torch.cat(spreads)


def discounted_returns(reward: Tensor, discount: float, after: Tensor | None = None) -> Tensor:
    """G_t = r_t + gamma G_{t+1}, `[T]`; G_T is `after`, 0-d, or 0."""
    returns, total = torch.zeros_like(reward), reward.new_zeros(()) if after is None else after.to(reward.dtype)
    for t in reversed(range(len(reward))):
        total = reward[t] + discount * total
        returns[t] = total
    return returns


def r_squared(predicted: Tensor, true: Tensor) -> float:
    """1 - sum (true - predicted)^2 / sum (true - mean)^2; NaN where the truth doesn't vary."""
    spread = (true - true.mean()).square().sum()
    return float(1 - (true - predicted).square().sum() / spread) if spread > 0 else float("nan")


def _correlation(x: Tensor, y: Tensor) -> float:
    x, y = x - x.mean(), y - y.mean()
    size = x.norm() * y.norm()
    return float(x @ y / size) if size > 0 else float("nan")
