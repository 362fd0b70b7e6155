"""Speed of acting and learning: updates/s, action ms and environment frames/s, and the update against its matrix products alone.

    python benchmarks/update.py [--quick] [--json PATH]

One thread, medians of process CPU time, everything interleaved in one process. Two sizes: the papers' (batch 512, mlp 512) and
`preset=cpu`'s networks (batch 128, mlp 256), as `capture=auto` runs them, and without it; and DiffTOP from pixels. Products of an
update are recorded from a real one (every mm, addmm, bmm, baddbmm and convolution with its shapes, strides and type) and then
run by themselves.

    over_products         TD-MPC's update over its products, papers' size                          at most 1.25
    over_products_cpu     DiffTOP's update without policy gradient over its products, cpu size     at most 1.25
    policy_gradient_cost  its update with the policy gradient in every step over one without       at most 1.6
    act_ms_cpu            one action by Levenberg-Marquardt, 4 starts x 5 iterations               at most 5 ms
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from agents.registry import make_agent
from benchmarks.command import parse, save
from difftop.capture import TapeBackend, native
from difftop.products import wide_products
from difftop.types import Batch, EnvSpec, ObsSpec

CHEETAH = EnvSpec(
    "dmc/cheetah-run", {"state": ObsSpec("vector", (17,))}, action_dim=6, episode_steps=250, control_dt_s=0.04, action_repeat=4
)
BARS = {"over_products": 1.25, "over_products_cpu": 1.25, "policy_gradient_cost": 1.6, "act_ms_cpu": 5.0}
PIXELS = replace(CHEETAH, obs={"pixels": ObsSpec("image", (9, 84, 84))})
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward")
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
            span = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
            self._operands[key] = torch.randn(span).to(x.dtype).as_strided(x.shape, x.stride())
        return self._operands[key]


def random_obs(spec: EnvSpec, rows: Sequence[int], generator: torch.Generator) -> Tensor:
    """Noise in the shape of observations `[*rows, *shape]`."""
    seen = spec.obs[spec.only_key]
    if seen.kind == "image":
        return torch.randint(0, 256, (*rows, *seen.shape), dtype=torch.uint8, generator=generator)
    return torch.randn(*rows, *seen.shape, generator=generator)


def random_batch(size: int, generator: torch.Generator, steps: int = 5, spec: EnvSpec = CHEETAH) -> Batch:
    """Noise in the shapes of a replayed batch, on the CPU."""
    return Batch(
        obs=random_obs(spec, (size, steps + 1), generator),
        action=torch.rand(size, steps, spec.action_dim, generator=generator) * 2 - 1,
        reward=torch.rand(size, steps, generator=generator),
        terminated=torch.zeros(size, steps, dtype=torch.bool),
        weight=torch.ones(size),
        index=torch.arange(size),
    )


def _updates(agent: Any, batch: Batch) -> None:
    for _ in range(CYCLE):
        agent.update(batch, AGENT_STEPS)


def _products(calls: Sequence[tuple[Any, tuple[Any, ...]]], rows: int, width: int) -> None:
    with wide_products(rows, width):  # as an update does
        for function, arguments in calls:
            function(*arguments)


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


@dataclass(frozen=True)
class Case:
    """An agent of which update, action and products are timed."""

    name: str
    agent: str
    precision: str
    size: int
    width: int
    gradient: Mapping[str, Any] | None = None
    spec: EnvSpec = CHEETAH
    steps: int = 5

    def candidates(self) -> dict[str, Callable[[], object]]:
        """Its update, its action, and the products of its update."""
        options: dict[str, Any] = {"name": self.agent, "model": {"mlp_dim": self.width}}
        options |= {"policy_gradient": dict(self.gradient)} if self.gradient else {}
        if self.agent == "difftop_rl" and self.spec is CHEETAH:
            options["world_model"] = "tdmpc"  # what the bars were set on
        generator = torch.Generator().manual_seed(0)
        batch = random_batch(self.size, generator, self.steps, self.spec)
        obs = {self.spec.only_key: random_obs(self.spec, (1,), generator)}
        t0, made = torch.tensor([False]), dict[str, Callable[[], object]]()
        for capture in ("false", "auto"):
            agent = make_agent(options, self.spec, seed=0, precision=self.precision, capture=capture)
            actor = agent.actor(1, seed=0, explore=True)
            eager = " eager" * (capture == "false")
            made[f"{self.name} update{eager}"] = partial(_updates, agent, batch)
            made[f"{self.name} act{eager}"] = partial(actor.act, obs, t0, AGENT_STEPS)
            for _ in range(TapeBackend.eager_calls + 1):
                for function in made.values():
                    function()
        with RecordProducts() as record:
            made[f"{self.name} update eager"]()
        made[f"{self.name} products"] = partial(_products, record.calls, batch.reward.numel(), self.width)
        return made


def cases(quick: bool) -> list[Case]:
    """All that are timed."""
    size, width = (32, 32) if quick else (512, 512)
    papers = [
        Case(f"{name} {precision}", name, precision, size, width)
        for name in ("tdmpc", "difftop_rl")
        for precision in ("fp32", "bf16")
    ]
    seen = [
        Case(f"pixels {precision}", "difftop_rl", precision, 4 if quick else 64, 256, spec=PIXELS, steps=3)
        for precision in ("fp32", "bf16", "auto")
    ]
    size, width = (32, 32) if quick else (128, 256)
    return [
        *papers,
        *seen,
        Case("cpu none", "difftop_rl", "fp32", size, width, {"mode": "none"}),
        Case("cpu every", "difftop_rl", "fp32", size, width, {"mode": "replay", "every": 1}),
    ]


def measures_of(chosen: Sequence[Case], ms: Mapping[str, float]) -> dict[str, float]:
    """All numbers, by the names that the bars have."""
    found: dict[str, float] = {}
    for case in chosen:
        update, act, key = ms[f"{case.name} update"] / CYCLE, ms[f"{case.name} act"], case.name.replace(" ", "_")
        found |= {f"{key}_updates_per_s": 1e3 / update, f"{key}_act_ms": act}
        found[f"{key}_frames_per_s"] = 1e3 * CHEETAH.action_repeat / (update + act)
        found[f"{key}_over_products"] = ms[f"{case.name} update"] / ms[f"{case.name} products"]
        for what in ("update", "act"):
            found[f"{key}_{what}_speedup"] = ms[f"{case.name} {what} eager"] / ms[f"{case.name} {what}"]
    found["over_products"], found["over_products_cpu"] = found["tdmpc_fp32_over_products"], found["cpu_none_over_products"]
    found["policy_gradient_cost"] = ms["cpu every update"] / ms["cpu none update"]
    found["act_ms_cpu"] = ms["cpu none act"]
    found["bf16_speedup"] = ms["tdmpc fp32 update"] / ms["tdmpc bf16 update"]
    return found


def main() -> None:
    """Prints the table; writes `{measure: value}` with --json."""
    options = parse(__doc__)
    TapeBackend.eager_calls = 2  # what is timed comes after them
    native.prepare()
    native.ready(600.0)
    chosen = cases(options.quick)
    candidates: dict[str, Callable[[], object]] = {}
    for case in chosen:
        candidates |= case.candidates()
    ms = medians(candidates, 3 if options.quick else 5)
    found = measures_of(chosen, ms)
    print(f"{CHEETAH.name}, one thread; frames/s count acting and one update per agent step, no simulator\n")
    print(
        f"{'':18s}{'batch':>6s}{'mlp':>5s}{'update ms':>10s}{'updates/s':>11s}{'act ms':>9s}{'frames/s':>10s}{'/ products':>12s}"
        f"{'eager / tape: update':>22s}{'act':>6s}"
    )
    for case in chosen:
        key = case.name.replace(" ", "_")
        rate, act, frames, over = (found[f"{key}_{x}"] for x in ("updates_per_s", "act_ms", "frames_per_s", "over_products"))
        faster = (found[f"{key}_{what}_speedup"] for what in ("update", "act"))
        row = f"{case.name:18s}{case.size:6d}{case.width:5d}{1e3 / rate:10.1f}{rate:11.2f}{act:9.1f}{frames:10.1f}{over:12.2f}"
        print(row + "{:22.2f}{:6.2f}".format(*faster))
    print(f"\nbf16 update over fp32's: {found['bf16_speedup']:.2f} times faster (tdmpc)")
    for name, bar in BARS.items():
        print(f"{name} {found[name]:.2f}, bar {bar}: {'met' if found[name] <= bar else 'not met'}")
    save(found, options.json)


if __name__ == "__main__":
    main()
