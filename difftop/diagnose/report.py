"""What a diagnosis says: a table, what it means and what to try, and a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from difftop.diagnose.measures import Diagnosis

VALUE_R2, VALUE_CORRELATION, BIAS, SATURATION, LATENT_RMS, GAIN = 0.6, 0.8, 0.5, 0.5, 3.0, 1.1


def table(found: Diagnosis, returns: Mapping[str, float]) -> str:
    """The numbers, for a terminal.

    Args:
        found: see `diagnose`.
        returns: mean return from the same initial states by way of acting; `prior` among them.
    """
    steps = range(1, len(found.value_r2) + 1)
    lines = [f"{'steps ahead':44s}" + "".join(f"{k:8d}" for k in steps)]
    for name, values in (
        ("latent error, over a model that stands still", found.latent_error),
        ("R2 of rewards", found.reward_r2),
        ("R2 of value changes", found.value_r2),
    ):
        lines.append(f"{name:44s}" + "".join(f"{x:8.2f}" for x in values))
    lines += [
        "",
        f"values {found.value_mean:.1f}, discounted returns that followed {found.return_mean:.1f}; "
        f"correlation {found.value_correlation:.2f}, error {found.value_error:.1f}, members' spread {found.ensemble_spread:.1f}",
        f"(on the prior's own episodes, return {found.own_return:.1f}; the table is of noisier ones, {found.noisy_return:.1f})",
        f"latents: rms {found.latent_rms:.2f}; prior: {found.prior_saturation:.0%} of its actions beyond 0.95",
        "",
        f"{'acts by':24s}{'return':>10s}{'over the prior':>16s}",
    ]
    prior = returns.get("prior", float("nan"))
    lines += [f"{name:24s}{value:10.1f}{_ratio(value, prior):>16s}" for name, value in returns.items()]
    return "\n".join(lines)


def advice(found: Diagnosis, returns: Mapping[str, float]) -> list[str]:
    """What the numbers mean and what to try, most important first; nothing where all is well."""
    lines = []
    prior = returns.get("prior", 0.0)
    best = max((value for name, value in returns.items() if name != "prior"), default=math.nan)
    gain = best / prior if prior > 0 else math.nan  # nan: not known
    worst = min((x for x in found.value_r2[:5] if not math.isnan(x)), default=float("nan"))
    if found.value_correlation < VALUE_CORRELATION:
        ends = f"plans gain {gain - 1:.0%} all the same" if gain >= GAIN else "no plan that ends in them can be good"
        lines.append(
            f"values follow returns badly (correlation {found.value_correlation:.2f}, wanted {VALUE_CORRELATION}): {ends}; "
            "normalize the critic (layer norm), weigh its loss down, or update less often per step."
        )
    if abs(found.value_mean - found.return_mean) > BIAS * max(abs(found.return_mean), 1e-6):
        lines.append(
            f"values are {found.value_mean:.1f} where {found.return_mean:.1f} followed: overestimated values draw plans to where "
            "the critic is wrong; regularize the critic or take more members for its targets."
        )
    if worst < VALUE_R2:
        adds = f"the planner adds {gain - 1:.0%} all the same" if gain >= GAIN else "the planner can add nothing to its prior"
        lines.append(
            f"the model does not predict how the value changes (R2 down to {worst:.2f}, wanted {VALUE_R2}): {adds}; raise "
            "agent.loss.rho and agent.loss.consistency, or normalize the latents."
        )
    if found.latent_rms > LATENT_RMS:
        lines.append(f"latents have grown to rms {found.latent_rms:.1f}: consistency is measured in them; normalize the latents.")
    if found.prior_saturation > SATURATION:
        lines.append(f"{found.prior_saturation:.0%} of the prior's actions are at the bounds: its gradient vanishes there.")
    if gain < GAIN:
        lines.append(
            f"no planner gains {GAIN - 1:.0%} on the prior: damp more (agent.acting.lm.damping), or act by planner=none and save "
            "the time."
        )
    return lines


def draw(found: Diagnosis, returns: Mapping[str, float], path: Path) -> None:
    """A picture of both: predictions by step, and returns by way of acting."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps = range(1, len(found.value_r2) + 1)
    for name, values in (("rewards", found.reward_r2), ("value changes", found.value_r2)):
        left.plot(steps, values, marker="o", label=f"R2 of {name}")
    left.plot(steps, found.latent_error, marker="s", color="grey", label="latent error over standing still")
    left.axhline(VALUE_R2, color="black", linewidth=0.8, linestyle=":")
    left.set_ylim(-1, 1.6)
    left.set_xlabel("steps ahead")
    left.legend(loc="lower left", fontsize=8)
    right.barh(list(returns)[::-1], list(returns.values())[::-1], color="tab:blue")
    right.set_xlabel("return")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _ratio(value: float, prior: float) -> str:
    return f"{value / prior:.2f}" if prior > 0 else "-"
