"""Speed of acting and learning: updates/s, action ms and environment frames/s, and the update against its matrix products alone.

    python benchmarks/update.py [--quick] [--json PATH]

One thread, medians of process CPU time, everything interleaved in one process. The bar (`over_products`): TD-MPC's full update
at batch 512, horizon 5, mlp 512, fp32 takes at most 1.25 times the time of the matrix products in it. These are recorded from a
real update (every mm, addmm, bmm and baddbmm with its shapes, strides and type) and then run by themselves.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from agents.registry import make_agent
from benchmarks.command import parse, save
from difftop.types import Batch, EnvSpec, ObsSpec

CHEETAH = EnvSpec(
    "dmc/cheetah-run", {"state": ObsSpec("vector", (17,))}, 6, episode_steps=250, control_dt_s=0.04, action_repeat=4
)
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")
CYCLE = 4  # updates timed together: DiffTOP's policy gradient is in every fourth, the targets move every second
AGENT_STEPS = 50_000  # schedules at their end: the plan has its full length


class RecordProducts(TorchDispatchMode):
    """Keeps function and arguments of every matrix product that runs inside.

    Operands of equal shape share their memory, so that the products alone find it in the cache as often as an update does.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...]]] = []
        self._operands: dict[Any, Tensor] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Runs `function`, and remembers it if it is a product."""
        if function.overloadpacket.__name__ in PRODUCTS:
            self.calls.append((function, tuple(self._operand(i, a) if isinstance(a, Tensor) else a for i, a in enumerate(args))))
        return function(*args, **(kwargs or {}))

    def _operand(self, position: int, x: Tensor) -> Tensor:
        key = (position, x.shape, x.stride(), x.dtype)
        if key not in self._operands:
            self._operands[key] = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype).copy_(x)
        return self._operands[key]


def random_batch(size: int, generator: torch.Generator) -> Batch:
    """Noise in the shapes of a replayed batch."""
    return Batch(
        obs=torch.randn(size, 6, 17, generator=generator),
        action=torch.rand(size, 5, CHEETAH.action_dim, generator=generator) * 2 - 1,
        reward=torch.rand(size, 5, generator=generator),
        terminated=torch.zeros(size, 5, dtype=torch.bool),
        weight=torch.ones(size),
        index=torch.arange(size),
    )


def medians(candidates: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median CPU milliseconds of each, one call of each in turn."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(repeats + 2):
        for name, function in candidates.items():
            begun = time.process_time()
            function()
            if turn >= 2:
                times[name].append(1e3 * (time.process_time() - begun))
    return {name: statistics.median(values) for name, values in times.items()}


def candidates_of(name: str, precision: str, size: int, width: int) -> dict[str, Callable[[], object]]:
    """An agent's update, its action, and the products of its update."""
    agent = make_agent({"name": name, "model": {"mlp_dim": width}}, CHEETAH, seed=0, precision=precision)
    batch = random_batch(size, torch.Generator().manual_seed(0))

    def updates() -> None:
        for _ in range(CYCLE):
            agent.update(batch, AGENT_STEPS)

    updates()
    actor, obs, t0 = agent.actor(1, seed=0, explore=True), {"state": torch.randn(1, 17)}, torch.tensor([False])
    with RecordProducts() as record:
        updates()
    label = f"{name} {precision}"
    return {
        f"{label} update": updates,
        f"{label} act": lambda: actor.act(obs, t0, AGENT_STEPS),
        f"{label} products": lambda: [function(*arguments) for function, arguments in record.calls],
    }


def main() -> None:
    """Prints the table; writes `{measure: value}` with --json."""
    options = parse(__doc__)
    size, width, repeats = (32, 32, 3) if options.quick else (512, 512, 5)
    candidates: dict[str, Callable[[], object]] = {}
    for name in ("tdmpc", "difftop_rl"):
        for precision in ("fp32", "bf16"):
            candidates |= candidates_of(name, precision, size, width)
    ms = medians(candidates, repeats)
    measures: dict[str, float] = {}
    print(f"batch {size}, mlp {width}, horizon 5, {CHEETAH.name}, one thread\n")
    print(f"{'':18s}{'update ms':>10s}{'updates/s':>11s}{'act ms':>9s}{'frames/s':>10s}{'update / its products':>23s}")
    for name in ("tdmpc", "difftop_rl"):
        for precision in ("fp32", "bf16"):
            label, key = f"{name} {precision}", f"{name}_{precision}"
            update, act = ms[f"{label} update"] / CYCLE, ms[f"{label} act"]
            measures |= {f"{key}_updates_per_s": 1e3 / update, f"{key}_act_ms": act}
            measures[f"{key}_frames_per_s"] = 1e3 * CHEETAH.action_repeat / (update + act)
            measures[f"{key}_over_products"] = ms[f"{label} update"] / ms[f"{label} products"]
            print(
                f"{label:18s}{update:10.1f}{1e3 / update:11.2f}{act:9.1f}{measures[f'{key}_frames_per_s']:10.1f}"
                f"{measures[f'{key}_over_products']:23.2f}"
            )
    measures["over_products"] = measures["tdmpc_fp32_over_products"]
    met = "met" if measures["over_products"] <= 1.25 else "not met"
    print(f"\nover_products {measures['over_products']:.2f}, bar 1.25: {met}. bf16 update over fp32's: ", end="")
    measures["bf16_speedup"] = ms["tdmpc fp32 update"] / ms["tdmpc bf16 update"]
    print(
        f"{measures['bf16_speedup']:.2f} times faster (tdmpc); frames/s count acting and one update per agent step, no simulator."
    )
    save(measures, options.json)


if __name__ == "__main__":
    main()
