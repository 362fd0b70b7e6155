"""TD-MPC2's update against a plain eager one that loops over time and value networks.

    python benchmarks/tdmpc2_update.py [--quick] [--json PATH]

One thread, medians of process CPU time, interleaved in one process. The rival is `tests/plain_tdmpc2.py`: ordinary torch modules
and optimizers, one step of time and one value network after the other, and as in the official code every value network is
evaluated where two are drawn. The bar: our update takes at most 0.7 times its time, for the 5M model at batch 256, horizon 3. A
second rival evaluates only the two that are drawn.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from agents.latent.agent import LatentAgent
from agents.registry import make_agent
from benchmarks.command import parse, save
from benchmarks.update import AGENT_STEPS, CHEETAH, medians, random_batch
from tests.plain_tdmpc2 import PlainTDMPC2

BAR = 0.7


def made(model: dict[str, object]) -> LatentAgent:
    """The agent."""
    agent = make_agent({"name": "tdmpc2", "model": model}, CHEETAH, seed=0)
    assert isinstance(agent, LatentAgent)
    return agent


def main() -> None:
    """Prints the table; writes `{measure: value}` with --json."""
    options = parse(__doc__)
    torch.manual_seed(0)
    size, repeats = (32, 3) if options.quick else (256, 21)
    small = {"mlp_dim": 32, "latent_dim": 32, "encoder_dim": 32}
    models: dict[str, dict[str, object]] = {"small": small} if options.quick else {"5M": {"size": "5M"}, "1M": {"size": "1M"}}
    measures: dict[str, float] = {}
    print(f"batch {size}, horizon 3, {CHEETAH.name}, one thread\n")
    print(f"{'model':8s}{'ours ms':>9s}{'plain ms':>10s}{'ratio':>7s}{'plain, two heads ms':>21s}{'ratio':>7s}")
    for label, model in models.items():
        agent = made(model)
        batch = random_batch(size, torch.Generator().manual_seed(0), agent.config.loss.horizon)
        plain, lean = PlainTDMPC2(made(model)), PlainTDMPC2(made(model), all_heads=False)
        candidates: dict[str, Callable[[], object]] = {
            "ours": lambda agent=agent, batch=batch: agent.update(batch, AGENT_STEPS),
            "plain": lambda plain=plain, batch=batch: plain.update(batch),
            "lean": lambda lean=lean, batch=batch: lean.update(batch),
        }
        ms = medians(candidates, repeats)
        over, over_lean = ms["ours"] / ms["plain"], ms["ours"] / ms["lean"]
        measures |= {f"{label}_update_ms": ms["ours"], f"{label}_over_plain": over, f"{label}_over_two_heads": over_lean}
        print(f"{label:8s}{ms['ours']:9.1f}{ms['plain']:10.1f}{over:7.2f}{ms['lean']:21.1f}{over_lean:7.2f}")
    over = measures[f"{next(iter(models))}_over_plain"]
    print(f"\nover_plain {over:.2f}, bar {BAR}: {'met' if over <= BAR else 'not met'}.")
    save(measures, options.json)


if __name__ == "__main__":
    main()
