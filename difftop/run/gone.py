"""Options that were and are no more: what an override of one is told. Runs that were saved with one only have it ignored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from difftop.options import ConfigError

_GONE: Mapping[str, str] = {
    "episodes": "run.demos is the number of demonstrations, of mode=demos too",
    "run.priority_alpha": "it is 0.6, as in TD-MPC; run.prioritized=false samples uniformly",
    "run.priority_beta": "it is 0.4, as in TD-MPC; run.prioritized=false samples uniformly",
    "agent.acting.explore_until_common": "agent.acting.random_share explores while rewards are rare",
    "agent.loss.pessimism_while_rare": "agent.loss.pessimism is the same for all rewards",
    "agent.model.log_std_min": "it is -10, as in TD-MPC2",
    "agent.model.log_std_max": "it is 2, as in TD-MPC2",
    "agent.eps": "it is 1e-4, as in LeTO; agent.alpha is the weight of the accelerations",
    "agent.min_std": "it is 1e-4, as in robomimic; agent.modes is the number of Gaussians",
    "agent.low_noise": "a policy acts with a standard deviation of 1e-4, as in robomimic",
    "agent.shrink": "it is 0.5, as in IBC; agent.noise is the first deviation, agent.rounds the number of rounds",
    "agent.kernel": "it is 5, as in Diffusion Policy; agent.widths are the sizes",
    "agent.groups": "it is 8, as in Diffusion Policy; agent.widths are the sizes",
}
_GONE_ONLINE: Mapping[str, str] = {"run.log_every": "agents that learn from rewards write a row for every training episode"}


def gone_options(*, offline: bool) -> Mapping[str, str]:
    """Options that are gone, and what to use; `offline`: of agents that imitate."""
    return _GONE if offline else {**_GONE, **_GONE_ONLINE}


def check_not_gone(overrides: Sequence[str], *, offline: bool) -> None:
    """Raises a ConfigError for an override of an option that is gone."""
    gone = gone_options(offline=offline)
    for text in overrides:
        key = text.partition("=")[0].lstrip("+")
        if key in gone:
            raise ConfigError(f"{key}: this option is gone; {gone[key]}. Leave it out.")
