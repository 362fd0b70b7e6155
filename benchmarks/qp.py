"""Speed, accuracy and memory of the QP head beside qpth and DAQP; docs/qp.md quotes it.

    python benchmarks/qp.py [--quick] [--json PATH] [--plot PATH]

Times are process CPU time on one thread, medians of interleaved runs in this process. Needs the extra `bench`
(daqp, clarabel, qpth); without qpth the ratios to it are left out. Without --quick, qpth takes some minutes and 4 GB.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import daqp
import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.qp_problems import (
    XYZ_ROWS,
    Z_ROW,
    Problem,
    box_limits,
    clarabel_solve,
    duplicated,
    leto_limits,
    make,
    outside,
    pinned,
    residuals,
    with_signs,
)
from difftop.qp import QPHead, TrajectoryLimits
from difftop.qp.solver import prepare, solve
from difftop.types import SolveStatus

INFEASIBLE, FAILED = int(SolveStatus.INFEASIBLE), int(SolveStatus.FAILED)


@dataclass(frozen=True)
class Measure:
    """One row of the table; `met` compares `value` with `bar` in the direction of `below`."""

    name: str
    ours: str
    rival: str
    value: float
    bar: float
    below: bool = True

    @property
    def met(self) -> bool:
        """Whether the bar is reached."""
        return self.value <= self.bar if self.below else self.value >= self.bar


def interleaved(runs: list[Callable[[], object]], count: int, warm: int = 1) -> list[float]:
    """Median CPU milliseconds of each run."""
    times: list[list[float]] = [[] for _ in runs]
    for repeat in range(count + warm):
        for run, record in zip(runs, times, strict=True):
            begin = time.process_time()
            run()
            if repeat >= warm:
                record.append((time.process_time() - begin) * 1e3)
    return [statistics.median(record) for record in times]


class Ours:
    """The head in training: L is new at every step, so that all shared factors are made anew."""

    def __init__(self, horizon: int, batch: int) -> None:
        g = torch.Generator().manual_seed(0)
        self.head = QPHead(leto_limits(horizon), generator=g)
        self.e = (-torch.tanh(torch.randn(batch, self.head.limits.size, generator=g))).requires_grad_()
        self.g = torch.randn(batch, horizon, 7, generator=g)
        self.y = self.g

    def forward(self) -> None:
        """Solves the batch."""
        self.y, self.info = self.head(self.e)

    def backward(self) -> None:
        """Gradients of e and L."""
        torch.autograd.grad(self.y, (self.e, self.head.L), self.g, retain_graph=True)


class Qpth:
    """The same problem as LeTO gives it to qpth: everything expanded to B copies, in float64, default tolerances."""

    def __init__(self, ours: Ours) -> None:
        from qpth.qp import QPFunction

        self.function, self.ours = QPFunction(verbose=-1), ours
        rows, upper = ours.head.constraints.rows, ours.head.constraints.upper
        self.batch = len(ours.e)
        self.rows = torch.cat([rows, -rows]).expand(self.batch, -1, -1)
        self.right = torch.cat([upper, -ours.head.constraints.lower]).expand(self.batch, -1)
        self.none = torch.zeros(0, dtype=torch.float64)
        self.y = self.none

    def forward(self) -> None:
        """Solves the batch."""
        hessian = self.ours.head.hessian().expand(self.batch, -1, -1)
        self.y = self.function(hessian, self.ours.e.double(), self.rows, self.right, self.none, self.none).float()

    def backward(self) -> None:
        """Gradients of e and L."""
        torch.autograd.grad(self.y, (self.ours.e, self.ours.head.L), self.ours.g.flatten(1), retain_graph=True)


class Daqp:
    """DAQP in a loop over one workspace: velocity limits as its cheap variable bounds, one update of f per sample."""

    def __init__(self, ours: Ours) -> None:
        rows = ours.head.constraints
        count = len(ours.head.limits.selected) * ours.head.limits.horizon
        self.e = ours.e.detach().double().numpy()
        bounded = rows.selection.bool().any(0).numpy()
        self.upper = np.concatenate([np.where(bounded, 1.0, 1e30), rows.upper[count:].numpy()])
        self.rows = np.ascontiguousarray(rows.rows[count:].numpy())
        self.hessian = ours.head.hessian().detach().numpy()
        self.y = np.empty_like(self.e)

    def forward(self) -> None:
        """Solves the batch."""
        model = daqp.Model()
        model.setup(self.hessian, self.e[0], self.rows, self.upper, -self.upper, np.zeros(len(self.upper), dtype=np.int32))
        for i, e in enumerate(self.e):
            model.update(f=e)
            self.y[i] = model.solve()[0]


def speed(quick: bool) -> Iterator[Measure]:
    """Forward and backward against qpth and DAQP at T_p = 10 and 7 actions."""
    batch = 64 if quick else 1024
    ours = Ours(10, batch)
    rival = Daqp(ours)
    mine, theirs = interleaved([ours.forward, rival.forward], 5 if quick else 15)
    worst = float(np.abs(rival.y - ours.y.detach().flatten(1).double().numpy()).max())
    name = "speedup_daqp_forward"
    yield Measure(name, f"{mine:.1f} ms", f"{theirs:.1f} ms, off {worst:.0e}", theirs / mine, 2, below=False)
    if importlib.util.find_spec("qpth") is None:
        print("qpth is not installed: speedup_qpth_forward and speedup_qpth_backward are left out", file=sys.stderr)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        old = Qpth(ours)
        ours.forward()
        ours.backward()
        runs = [ours.forward, ours.backward, old.forward, old.backward]
        forward, backward, old_forward, old_backward = interleaved(runs, 3, warm=0)
    worst = float((old.y - ours.y.flatten(1)).detach().abs().max())
    ratio = old_forward / forward
    yield Measure("speedup_qpth_forward", f"{forward:.1f} ms", f"{old_forward:.0f} ms, off {worst:.0e}", ratio, 400, below=False)
    ratio = old_backward / backward
    yield Measure("speedup_qpth_backward", f"{backward:.2f} ms", f"{old_backward:.0f} ms", ratio, 100, below=False)


class Policy(nn.Module):
    """LeTO's low-dimensional network: 23 numbers per step (square), LSTM of 2 x 1000, one linear layer, QP head."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(23, 1000, 2, batch_first=True)
        self.linear = nn.Linear(1000, 42)
        self.head = QPHead(leto_limits(6))

    def embed(self, obs: Tensor) -> Tensor:
        """e `[B T_s, 42]` from observations `[B, T_s, 23]`."""
        return -torch.tanh(self.linear(self.lstm(obs)[0])).flatten(0, 1)


def training_share(quick: bool) -> Measure:
    """Forward and backward of the head against a whole training step, B = 64 windows of T_s = 12."""
    torch.manual_seed(0)
    policy, (b, t) = Policy(), (8, 12) if quick else (64, 12)
    optimizer = torch.optim.Adam(policy.parameters(), 1e-4)
    obs, target = torch.randn(b, t, 23), torch.rand(b * t, 6, 7) * 2 - 1

    def step() -> None:
        y, info = policy.head(policy.embed(obs))
        loss = info.mean((y - target).square().mean((1, 2)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    e = policy.embed(obs).detach().requires_grad_()
    gradient = torch.randn(b * t, 6, 7)

    def head() -> None:
        torch.autograd.grad(policy.head(e)[0], (e, policy.head.L), gradient)

    whole, part = interleaved([step, head], 3 if quick else 7)
    return Measure("head_share", f"{part:.1f} ms", f"step {whole:.0f} ms", part / whole, 0.05)


def deployment(quick: bool) -> Measure:
    """One call with kept factors and the continuity limit, along a rollout; median wall time at T_p = 10 (and 6, 16)."""
    median, high = {}, {}
    for horizon in (6, 10, 16):
        head, g, last = QPHead(leto_limits(horizon)).eval(), torch.Generator().manual_seed(0), torch.zeros(1, 7)
        times = []
        with torch.no_grad():
            for _ in range(60 if quick else 400):
                e = -torch.tanh(torch.randn(1, head.limits.size, generator=g))
                begin = time.perf_counter()
                y, _ = head(e, None, last)
                times.append((time.perf_counter() - begin) * 1e3)
                last = y[:, 0]
        median[horizon], high[horizon] = np.percentile(times[20:], [50, 95])
    others = f"T_p 6: {median[6]:.2f}, 16: {median[16]:.2f}"
    return Measure("deploy_ms", f"p95 {high[10]:.2f} ms", others, float(median[10]), 1.0)


def regression(batch: int) -> Iterator[tuple[str, bool, Problem]]:
    """Name, whether every sample is feasible, and problems: the table of failure modes that the method was chosen by."""
    for horizon in (1, 8, 10, 16, 32, 64):
        yield f"T_p {horizon}", True, make(leto_limits(horizon), batch)
    for acceleration in (0.5, 0.2, 0.05, 0.01):
        yield f"a_max {acceleration}", True, make(leto_limits(10, acceleration), batch)
    yield "a_max 0.01, T_p 16", True, make(leto_limits(16, 0.01), batch)
    for condition in (1e2, 1e4, 1e6, 1e8):
        yield f"condition {condition:.0e}", True, make(leto_limits(10), batch, condition=condition)
    yield "condition 1e6, T_p 16", True, make(leto_limits(16), batch, condition=1e6)
    yield "position z", True, make(box_limits(10, Z_ROW), batch, position=True)
    yield "position z, T_p 16", True, make(box_limits(16, Z_ROW), batch, position=True)
    yield "position xyz", True, make(box_limits(10, XYZ_ROWS), batch, position=True)
    yield "previous action", True, make(leto_limits(10), batch, previous=True)
    yield "position z, previous action", False, make(box_limits(10, Z_ROW), batch, position=True, previous=True)
    yield "e = 0", True, with_signs(make(leto_limits(10), batch), 0.0)
    yield "l = u", True, pinned(make(leto_limits(10), batch))
    yield "duplicated rows", True, duplicated(make(leto_limits(10), batch))
    yield "bang-bang, T_p 24", True, with_signs(make(leto_limits(24), batch), 50.0)
    yield "outside by 0.5", False, outside(make(box_limits(10, Z_ROW), batch, position=True))
    yield "one action constrained", True, make(TrajectoryLimits(7, 10, (2,), acceleration_min=-0.1, acceleration_max=0.1), batch)
    yield "nothing constrained", True, make(TrajectoryLimits(7, 10, ()), batch)


def accuracy(quick: bool) -> Iterator[Measure]:
    """Every regression case; the residual is the solver's for all samples, and recomputed from its definition for 16 of each."""
    worst, unsolved = 0.0, 0
    for name, feasible, p in regression(16 if quick else 256):
        begin = time.process_time()
        s = solve(prepare(p.hessian, p.rows), p.e, p.lower, p.upper)
        took = (time.process_time() - begin) * 1e3
        lost = s.status == FAILED if not feasible else s.status != 0
        unsolved += int(lost.sum())
        solved = s.status == 0
        kept = solved.nonzero()[:, 0][:16]
        kkt = max(float(s.kkt[solved].max()), float(residuals(p[kept], s.y[kept], s.side[kept]).max()))
        worst = max(worst, kkt)
        share = (s.side[solved] != 0).sum(1).double().mean()
        infeasible = int((s.status == INFEASIBLE).sum())
        print(
            f"  {name:<28}{took:>8.1f} ms  rounds {s.rounds.double().mean():.2f}  active {share:.0f}/{len(p.rows)}  "
            f"infeasible {infeasible}  kkt {abs(kkt):.0e}"
        )
    yield Measure("kkt_max", f"{worst:.1e}", "", worst, 1e-9)
    yield Measure("unsolved", str(unsolved), "", unsolved, 0)


def verdicts(quick: bool) -> Measure:
    """Feasible or not, against Clarabel."""
    each, wrong, infeasible, total = 40 if quick else 500, 0, 0, 0
    for seed, matrix in enumerate((Z_ROW, XYZ_ROWS)):
        p = make(box_limits(10, matrix), each, position=True, previous=True, seed=100 + seed)
        s = solve(prepare(p.hessian, p.rows), p.e, p.lower, p.upper)
        for i in range(each):
            other = clarabel_solve(p.hessian, p.rows, p.e[i], p.lower[i], p.upper[i], 1e-9)[1]
            wrong += other != (int(s.status[i]) == INFEASIBLE)
            infeasible += other
        total += each
    return Measure("verdict_mismatches", f"{wrong} of {total}", f"{infeasible} infeasible", wrong, 0)


def gradients(quick: bool) -> Measure:
    """Directional derivatives with respect to L, e, position and previous action against central differences, float64."""
    worst = 0.0
    for horizon in (10,) if quick else (6, 10, 16):
        head = QPHead(box_limits(horizon, Z_ROW), alpha=0.0025, generator=torch.Generator().manual_seed(1)).double()
        g = torch.Generator().manual_seed(2)
        e = -torch.tanh(torch.randn(32, head.limits.size, generator=g, dtype=torch.float64))
        position = 0.03 + 0.06 * torch.rand(32, 6, generator=g, dtype=torch.float64)
        previous = 0.2 * (torch.rand(32, 7, generator=g, dtype=torch.float64) - 0.5)
        inputs = [head.L.detach(), e, position, previous]
        weight = torch.randn(32, horizon, 7, generator=g, dtype=torch.float64)

        def loss(*values: Tensor, head: QPHead = head, weight: Tensor = weight) -> Tensor:
            y, info = torch.func.functional_call(head, {"L": values[0]}, values[1:])
            return info.mean((weight * y).sum((1, 2)))

        leaves = [x.clone().requires_grad_() for x in inputs]
        exact = torch.autograd.grad(loss(*leaves), leaves)
        for k in range(4):
            for _ in range(3):
                direction = torch.randn(inputs[k].shape, generator=g, dtype=torch.float64)
                direction = (direction.tril() if k == 0 else direction) * 1e-6
                ends = [loss(*(x + s * direction if i == k else x for i, x in enumerate(inputs))) for s in (1, -1)]
                difference = (ends[0] - ends[1]) / 2
                worst = max(worst, float(((exact[k] * direction).sum() - difference).abs() / difference.abs()))
    return Measure("grad_vs_fd", f"{worst:.1e}", "", worst, 1e-6)


def memory() -> Measure:
    """Peak resident memory of a process that does one forward and backward pass, torch included."""
    out = subprocess.run([sys.executable, __file__, "--peak"], capture_output=True, text=True, check=True)
    peak = float(out.stdout)
    return Measure("memory_gb", f"{peak:.2f} GB", "", peak, 1.0)


def peak_memory() -> float:
    """GB of this process after B = 4096, T_p = 16 (Linux; `ru_maxrss` would count the parent's memory too)."""
    ours = Ours(16, 4096)
    ours.forward()
    ours.backward()
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024**2


def plot(path: Path) -> None:
    """A noisy chunk of one action and its nearest trajectory inside velocity, acceleration and position limits."""
    from matplotlib.figure import Figure

    steps, dt = 40, 0.05
    limits = TrajectoryLimits(
        1, steps, dt=dt, velocity_min=-0.6, velocity_max=0.6, acceleration_min=-2, acceleration_max=2,
        position_matrix=[[1.0]], position_min=-1.0, position_max=0.2,
    )  # fmt: skip
    time_s = dt * torch.arange(steps)
    wanted = 0.7 * torch.sin(2 * torch.pi * time_s / 2.0) + 0.2 * torch.randn(steps, generator=torch.Generator().manual_seed(0))
    y, info = QPHead.projection(limits).eval()(-wanted[None], torch.zeros(1, 1), torch.zeros(1, 1))
    assert bool(info.certified.all())
    figure = Figure(figsize=(7, 6), layout="constrained")
    axes = figure.subplots(3, 1, sharex=True)
    for values, style, label in ((wanted, {"color": "0.65"}, "network"), (y[0, :, 0], {"color": "C0", "lw": 2}, "QP head")):
        values = values.detach()
        curves = (values, torch.cat([values[:1], values.diff()]) / dt, dt * torch.cat([torch.zeros(1), values.cumsum(0)[:-1]]))
        for axis, curve in zip(axes, curves, strict=True):
            axis.plot(time_s, curve, label=label, **style)
    for axis, name, ends in zip(axes, ("velocity", "acceleration", "position"), ((-0.6, 0.6), (-2, 2), (None, 0.2)), strict=True):
        axis.set_ylabel(name)
        for end in ends:
            if end is not None:
                axis.axhline(end, color="C3", lw=0.8, ls="--")
    axes[0].legend(loc="upper right")
    axes[2].set_xlabel("time in s")
    figure.savefig(path, dpi=110)


def measure(quick: bool) -> Iterator[Measure]:
    """All rows of the table."""
    yield from speed(quick)
    yield training_share(quick)
    yield deployment(quick)
    yield from accuracy(quick)
    yield verdicts(quick)
    yield gradients(quick)
    yield memory()


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, few repeats: a smoke test, its numbers are rough")
    parser.add_argument("--json", type=Path, help="also write {measure: value} here")
    parser.add_argument("--plot", type=Path, help="only draw a noisy trajectory and its projection into this file")
    parser.add_argument("--peak", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.peak:
        print(peak_memory())
        return
    if args.plot:
        plot(args.plot)
        return
    rows = list(measure(args.quick))
    print(f"{'measure':<24}{'ours':>14}{'rival':>28}{'value':>12}{'bar':>10}  met")
    for row in rows:
        sign = "<=" if row.below else ">="
        print(
            f"{row.name:<24}{row.ours:>14}{row.rival:>28}{row.value:>12.3g}{sign:>4}{row.bar:>6g}  {'yes' if row.met else 'NO'}"
        )
    if args.json:
        args.json.write_text(json.dumps({row.name: row.value for row in rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
