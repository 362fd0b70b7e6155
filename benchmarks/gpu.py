"""What a GPU makes of it: updates, actions and whole runs, eager and as CUDA graphs, beside the time that their kernels take.

    python benchmarks/gpu.py [--json PATH] [--only TEXT] [--minutes N]
    python benchmarks/gpu.py --device cpu --quick          that it runs; measures nothing

At most 8 minutes on one card. Each item is saved as soon as it is measured, and the same command again goes on with those that
are left. For updates and actions: wall ms (median), ms that the card was busy, kernels, and host waits (numbers read / stream
synchronizations), of one call. Papers' sizes. Whole runs are `train.py` on cheetah-run, simulator, replay and records included,
without evaluations; LeTO and Diffusion learn from two 84x84 cameras, batch 64, loading included.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from agents.registry import make_agent
from benchmarks.update import random_batch
from difftop.capture import CaptureError
from difftop.types import Batch, EnvSpec, ObsSpec

ROOT = Path(__file__).resolve().parents[1]
STATE = EnvSpec("dmc/cheetah-run", {"state": ObsSpec("vector", (17,))}, 6, 250, 0.04, action_repeat=4)
PIXELS = EnvSpec("dmc/cheetah-run", {"pixels": ObsSpec("image", (9, 84, 84))}, 6, 250, 0.04, action_repeat=4, frame_stack=3)
AGENT_STEPS = 50_000  # schedules at their end: the plan has its full length
HORIZON = 5
ENV = {"env_name": "benchmark", "type": 2, "env_kwargs": {}, "env_version": "1"}
TINY = {"mlp_dim": 16, "encoder_dim": 16, "latent_dim": 8}
TINY_IMITATORS = {"leto": {"window": 2, "horizon": 3}, "diffusion": {"widths": [16], "horizon": 4, "execute": 3}}
Measures = dict[str, Any]  # numbers, and why one is missing


@dataclass(frozen=True)
class Machine:
    """Where it runs: `cuda`, or `cpu` with `quick` sizes, for a test."""

    device: str
    quick: bool

    @property
    def ways(self) -> tuple[str, ...]:
        """Values of `capture` that are compared."""
        return ("false", "true") if self.device == "cuda" else ("false",)

    def wait(self) -> None:
        """Until the card has done what it was given."""
        if self.device == "cuda":
            torch.cuda.synchronize()


@dataclass(frozen=True)
class Bar:
    """What a measure is held against."""

    measure: str
    limit: float
    least: bool = False  # at least, or at most

    def met(self, value: float) -> bool:
        """Whether it is."""
        return value >= self.limit if self.least else value <= self.limit


@dataclass(frozen=True)
class Item:
    """One line of the table, measured and saved by itself."""

    name: str
    run: Callable[[Machine], Measures]
    bars: tuple[Bar, ...] = ()


def measured(call: Callable[[], object], machine: Machine) -> Measures:
    """Wall ms, busy ms, kernels and host waits of one call."""
    calls, repeats = (1, 1) if machine.quick else (5, 5)
    for _ in range(1 if machine.quick else 8):  # eager calls of both kinds of updates, and their captures
        call()
    walls = []
    for _ in range(repeats):
        machine.wait()
        begun = time.perf_counter()
        for _ in range(calls):
            call()
        machine.wait()
        walls.append(1e3 * (time.perf_counter() - begun) / calls)
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if machine.device == "cuda" else [])
    with profile(activities=activities) as profiler:
        for _ in range(calls):
            call()
        machine.wait()
    found = of_profile(profiler.events(), calls)
    return {"wall_ms": statistics.median(walls)} | found


def of_profile(events: Any, calls: int) -> Measures:
    """Busy ms, kernels and host waits per call; what a program named itself, such as an optimizer's step, is no kernel."""
    cuda = [event for event in events if event.device_type == DeviceType.CUDA]
    kernels = [event for event in cuda if not getattr(event, "is_user_annotation", False) and "#" not in event.name]
    names = [event.name for event in events if event.device_type == DeviceType.CPU]
    synchronizations = sum(name in ("cudaStreamSynchronize", "cudaEventSynchronize") for name in names)
    return {
        "busy_ms": sum(event.time_range.elapsed_us() for event in kernels) / 1e3 / calls,
        "kernels": len(kernels) / calls,
        "reads": names.count("aten::_local_scalar_dense") / calls,
        "synchronizations": synchronizations / calls,
    }


@dataclass(frozen=True)
class Case:
    """An agent whose update, or act, is timed, eagerly and captured."""

    agent: str
    spec: EnvSpec = STATE
    batch: int = 512
    precision: str = "fp32"
    act: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, machine: Machine) -> Measures:
        """All its measures, `eager_...` and `captured_...`; `captured_over_busy` is what the bar is about."""
        found: Measures = {}
        for way in machine.ways:
            name = "captured" if way == "true" else "eager"
            try:
                values = measured(self.call(machine, way), machine)
            except CaptureError as error:
                found["not_captured"] = str(error)
                continue
            found |= {f"{name}_{key}": value for key, value in values.items()}
        if "captured_wall_ms" in found:
            found["captured_over_busy"] = found["captured_wall_ms"] / max(found["captured_busy_ms"], 1e-9)
        return found

    def call(self, machine: Machine, way: str) -> Callable[[], object]:
        """One update, or one action."""
        options = {"name": self.agent, "model": {"mlp_dim": 512}, **self.options}
        if machine.quick:
            options["model"] = {**options["model"], **TINY, **({"channels": 4} if self.spec is PIXELS else {})}
        agent: Any = make_agent(options, self.spec, seed=0, device=machine.device, precision=self.precision, capture=way)
        drawn = random_batch(4 if machine.quick else self.batch, torch.Generator().manual_seed(0), HORIZON, self.spec)
        batch = Batch(**{name: value.to(machine.device) for name, value in vars(drawn).items()})
        if not self.act:
            return lambda: agent.update(batch, AGENT_STEPS)
        actor, t0 = agent.actor(1, seed=0, explore=True), torch.tensor([False])
        obs = {self.spec.only_key: batch.obs[:1, 0].cpu()}
        actor.begin(0, 0)
        return lambda: actor.act(obs, t0, AGENT_STEPS).cpu()


@dataclass(frozen=True)
class Training:
    """`train.py` on cheetah-run for some seconds: frames/s after the random steps and the burst of updates that follows them."""

    obs: str
    capture: str = "auto"
    seconds: float = 75.0

    def __call__(self, machine: Machine) -> Measures:
        """Frames per second."""
        with tempfile.TemporaryDirectory() as runs:
            command = [sys.executable, "train.py", *self.options(machine), f"root={runs}"]
            environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
            log = Path(runs) / "log.txt"
            with log.open("w") as out:
                process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT)
                try:
                    process.wait(None if machine.quick else self.seconds)
                except subprocess.TimeoutExpired:
                    process.terminate()  # it saves, and ends
                    try:
                        process.wait(60)
                    except subprocess.TimeoutExpired:
                        process.kill()
            tables = list(Path(runs).rglob("metrics.csv"))
            rows = list(csv.DictReader(tables[0].read_text().splitlines())) if tables else []
            return {"frames_per_s": rate(rows, log)}

    def options(self, machine: Machine) -> list[str]:
        """Of the command line: the papers' sizes, no evaluation; or the smallest run there is."""
        common = ["agent=difftop_rl", "run.eval_episodes=1", "run.eval_every=100000000", "run.video=false", "threads=1"]
        common += [f"device={machine.device}", f"capture={self.capture}", f"obs={self.obs}", "run.updates_per_step=1"]
        if machine.quick:
            small = [f"agent.model.{key}={value}" for key, value in TINY.items()]
            return [*common, *small, "env=toy/point-mass", "run.frames=1000", "run.seed_steps=100", "run.batch_size=4"]
        return [*common, "env=dmc/cheetah-run", "run.frames=10000000", "run.seed_steps=500", "run.batch_size=512",
                "agent.model.mlp_dim=512"]  # fmt: skip


def rate(rows: list[dict[str, str]], log: Path) -> float:
    """Frames per second from the rows of metrics.csv, one for each episode; the first trained one catches up on updates."""
    timed = [(float(row["step"]), float(row["wall_s"])) for row in rows]
    steady = timed[3:] if len(timed) > 4 else timed
    if len(steady) < 2:
        raise RuntimeError(f"too few episodes to tell a rate ({len(timed)}): {' '.join(log.read_text().split()[-40:])}")
    (first, begun), (last, ended) = steady[0], steady[-1]
    return (last - first) / (ended - begun)


@dataclass(frozen=True)
class Imitation:
    """Steps per second of an agent that imitates from two cameras, loading included."""

    agent: str
    precision: str

    def __call__(self, machine: Machine) -> Measures:
        """Steps per second, and the share of loading."""
        from benchmarks import loading  # it wants h5py
        from difftop.data.robomimic import open_robomimic, write_demonstrations
        from difftop.run.ahead import Ahead
        from difftop.run.offline import Batches

        demos, size, steps, warm = (2, 2, 1, 1) if machine.quick else (20, 64, 100, 10)
        with tempfile.TemporaryDirectory() as folder:
            path, rng = Path(folder) / "demos.hdf5", np.random.default_rng(0)
            write_demonstrations(path, (loading.episode(rng, 100) for _ in range(demos)), ENV)
            demonstrations = open_robomimic(path, obs_keys=list(loading.SPEC.shapes), cache_bytes=2**31)
            options = {"name": self.agent, **(TINY_IMITATORS[self.agent] if machine.quick else {})}
            agent: Any = make_agent(
                options, loading.SPEC, seed=0, device=machine.device, precision=self.precision, total_steps=1000
            )
            agent.fit_normalizer_(demonstrations)
            shape = agent.windows
            windows = demonstrations.windows(shape.window, shape.horizon, pad_before=shape.pad_before, pad_after=shape.pad_after)
            pinned = machine.device == "cuda"
            batches = Ahead(Batches(windows, size, seed=0).batch, warm + steps, pinned=pinned)
            spent, begun = 0.0, 0.0
            for step in range(warm + steps):
                if step == warm:
                    machine.wait()
                    begun, spent = time.perf_counter(), 0.0
                loading_begun = time.perf_counter()
                batch = batches.batch(step)
                spent += time.perf_counter() - loading_begun
                agent.update(batch, step)
            machine.wait()
            wall = time.perf_counter() - begun
            batches.close()
        return {"steps_per_s": steps / wall, "loading_share": spent / wall}


def items() -> list[Item]:
    """All that is measured, the shortest first."""
    every = {"policy_gradient": {"mode": "replay", "every": 1}}
    on_tdmpc = {"world_model": "tdmpc"}
    five = {"model": {"size": "5M"}}
    near, replayed = Bar("captured_over_busy", 1.15), "captured_wall_ms"
    acts = (Bar(replayed, 3.5),)
    return [
        Item("update tdmpc, 512", Case("tdmpc"), (near, Bar(replayed, 3.0))),
        Item("update tdmpc, 512, bf16", Case("tdmpc", precision="bf16"), (near, Bar(replayed, 3.0))),
        Item("update difftop_rl, 512", Case("difftop_rl"), (near, Bar(replayed, 3.0))),
        Item("update difftop_rl, gradient every step, 512", Case("difftop_rl", options=every), (near, Bar(replayed, 12.0))),
        Item("update difftop_rl on tdmpc, gradient every step, 512", Case("difftop_rl", options={**every, **on_tdmpc}), (near,)),
        Item("update tdmpc2 5M, 256", Case("tdmpc2", batch=256, options=five), (near,)),
        Item("act difftop_rl, LM", Case("difftop_rl", batch=1, act=True), acts),
        Item("act difftop_rl on tdmpc, LM", Case("difftop_rl", batch=1, act=True, options=on_tdmpc), acts),
        Item("act tdmpc, MPPI", Case("tdmpc", batch=1, act=True), acts),
        Item("act tdmpc2 5M, MPPI", Case("tdmpc2", batch=1, act=True, options=five)),
        Item("update tdmpc, pixels, 256", Case("tdmpc", PIXELS, 256), (near,)),
        Item(
            "update difftop_rl, pixels, gradient every step, 256, bf16",
            Case("difftop_rl", PIXELS, 256, "bf16", options=every),
            (near,),
        ),
        Item("leto, two cameras, bf16", Imitation("leto", "bf16"), (Bar("steps_per_s", 40, least=True),)),
        Item("leto, two cameras", Imitation("leto", "fp32")),
        Item("diffusion, two cameras, bf16", Imitation("diffusion", "bf16")),
        Item("train cheetah-run, state", Training("state"), (Bar("frames_per_s", 400, least=True),)),
        Item("train cheetah-run, pixels", Training("pixels", seconds=90.0), (Bar("frames_per_s", 100, least=True),)),
        Item("train cheetah-run, state, capture=false", Training("state", "false", 60.0)),
    ]


def shown(name: str, found: Mapping[str, Any]) -> list[str]:
    """Lines of the table for an item."""
    if "error" in found:
        return [f"{name:58s}not measured: {found['error']}"]
    lines = []
    for way in ("eager", "captured"):
        if f"{way}_wall_ms" in found:
            wall, busy, kernels, reads, waits = (
                found[f"{way}_{key}"] for key in ("wall_ms", "busy_ms", "kernels", "reads", "synchronizations")
            )
            lines.append(f"{name:58s}{way:10s}{wall:9.2f}{busy:9.2f}{kernels:9.0f}{reads:8.1f} /{waits:6.1f}")
    if "not_captured" in found:
        lines.append(f"{name:58s}{found['not_captured']}")
    for key, text in (("frames_per_s", "frames/s"), ("steps_per_s", "steps/s")):
        if key in found:
            share = f", {found['loading_share']:.0%} of it loading" if "loading_share" in found else ""
            lines.append(f"{name:58s}{found[key]:.1f} {text}{share}")
    return lines


def judged(item: Item, found: Mapping[str, Any]) -> list[str]:
    """A line for each of its bars that was measured."""
    lines = []
    for bar in item.bars:
        if bar.measure in found:
            word, how = "met" if bar.met(found[bar.measure]) else "not met", "at least" if bar.least else "at most"
            lines.append(f"{item.name}: {bar.measure} {found[bar.measure]:.2f}, bar {how} {bar.limit:g}: {word}")
    return lines


def machine_of(options: argparse.Namespace) -> dict[str, str]:
    """What the numbers are of."""
    card = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    sizes = "quick" if options.quick else "full"
    return {"card": card, "torch": torch.__version__, "numpy": np.__version__, "python": sys.version.split()[0], "sizes": sizes}


def saved(path: Path, machine: Mapping[str, str]) -> dict[str, Any]:
    """What was measured on such a machine already; another one's file is begun anew."""
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text())
        if found.get("machine") == machine:
            return found
    return {"machine": dict(machine), "items": {}}


def options_of(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="PATH", default="gpu.json", help="where each item is saved, and looked for")
    parser.add_argument("--only", metavar="TEXT", default="", help="items whose name has it")
    parser.add_argument("--minutes", type=float, default=8.0, help="after which no item is begun that may last longer")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that it runs, measures nothing")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Measures what isn't in the file yet, and prints all; returns the exit status."""
    options = options_of(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("benchmarks/gpu.py: torch sees no CUDA device here; --device cpu --quick shows that it runs.", file=sys.stderr)
        return 1
    torch.set_num_threads(1)
    begun, path, machine = time.monotonic(), Path(options.json), Machine(options.device, options.quick)
    found = saved(path, machine_of(options))
    chosen = [item for item in items() if options.only in item.name]
    left = []
    print(", ".join(f"{key} {value}" for key, value in found["machine"].items()))
    print(f"{'':58s}{'':10s}{'wall ms':>9s}{'busy ms':>9s}{'kernels':>9s}{'reads / waits':>16s}", flush=True)
    for item in chosen:
        if "error" in found["items"].get(item.name, {"error": ""}):
            if time.monotonic() - begun + getattr(item.run, "seconds", 20.0) > 60 * options.minutes:
                left.append(item.name)
                continue
            try:
                found["items"][item.name] = item.run(machine)
            except Exception as error:  # the others are measured all the same
                found["items"][item.name] = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
            path.write_text(json.dumps(found, indent=2))
        print("\n".join(shown(item.name, found["items"][item.name])), flush=True)
    print()
    for item in chosen:
        print("".join(f"{line}\n" for line in judged(item, found["items"].get(item.name, {}))), end="")
    if left:
        print(f"left for the same command again: {'; '.join(left)}")
    return int(any("error" in found["items"].get(item.name, {}) for item in chosen))


if __name__ == "__main__":
    sys.exit(main())
