"""Speed, memory and gradients of the planner against slow references on one problem; docs/planner.md quotes it.

    python benchmarks/planner.py [--quick] [--json PATH]

Problem: H=5, A=6, latent 50, mlp 512, random networks with TD-MPC's shapes. Times are process CPU time on one thread, medians of
interleaved runs in this process; peak memory is measured in two processes of their own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from difftop.capture import Graphs, TapeBackend, native
from difftop.planning import LMConfig, LMPlanner, MPPIConfig, MPPIPlanner
from difftop.planning.damped import damped_step
from difftop.planning.model import LatentModel
from difftop.planning.trajectory import Trajectory
from tests.oracles import AutoDiffTheseus, Networks, networks, stagewise_rows

H, A, Z, WIDTH, GAMMA = 5, 6, 50, 512, 0.99
TARGET, TAU = 2.0, 0.5
LOADED = LMConfig(iterations=10, target="fixed", scale=1.0, damping=10.0, backward_iterations=5)


@dataclass(frozen=True)
class Measure:
    """One row of the table; `met` compares `ratio` with `bar` in the direction of `below`; bar None: for comparison only."""

    name: str
    ours: str
    rival: str
    ratio: float
    bar: float | None
    below: bool = True

    @property
    def met(self) -> str:
        """Whether the bar is reached."""
        if self.bar is None:
            return "-"
        return "yes" if (self.ratio <= self.bar if self.below else self.ratio >= self.bar) else "NO"


def interleaved(runs: list[Callable[[], object]], count: int) -> list[float]:
    """Median CPU milliseconds of each run; one warm-up each."""
    times: list[list[float]] = [[] for _ in runs]
    for repeat in range(count + 1):
        for run, record in zip(runs, times, strict=True):
            begin = time.process_time()
            run()
            if repeat:
                record.append((time.process_time() - begin) * 1e3)
    return [statistics.median(record) for record in times]


def problem(
    batch: int, action: int = A, dtype: torch.dtype = torch.float32, width: int = WIDTH
) -> tuple[Networks, Tensor, Tensor]:
    """Networks, latents `[B, Z]` and priors `[B, H, A]` well inside the box."""
    g = torch.Generator().manual_seed(0)
    z = torch.randn(batch, Z, generator=g, dtype=dtype)
    return networks(Z, action, width, dtype), z, (torch.rand(batch, H, action, generator=g, dtype=dtype) - 0.5) * 0.5


def hand_lm(model: LatentModel, z0: Tensor, prior: Tensor, config: LMConfig) -> Tensor:
    """The limit: the same rows, structured Jacobian, active set and dual solve in a bare loop, without Theseus or checks."""
    a = prior
    weights = (model.discount ** torch.arange(prior.shape[1] + 1.0)).unsqueeze(1)
    identity = config.damping * torch.eye(prior.shape[1] + 1)
    for _ in range(config.iterations):
        trajectory = Trajectory(model, z0, a)
        u = (config.reward_target - trajectory.outputs) / config.softness
        r = (F.softplus(u) * (2 * config.softness * weights)).sqrt()
        j, r = trajectory.reward_jacobian(torch.sigmoid(u) * -weights / r), r.t()
        f = a.flatten(1)
        downhill = -torch.bmm(r.unsqueeze(1), j).squeeze(1)
        j = j.masked_fill((((f >= 1) & (downhill > 0)) | ((f <= -1) & (downhill < 0))).unsqueeze(1), 0.0)
        y = torch.cholesky_solve(r.unsqueeze(2), torch.linalg.cholesky(j @ j.transpose(1, 2) + identity))
        a = (f - (j.transpose(1, 2) @ y).squeeze(2)).clamp(-1, 1).view_as(prior)
    return a


def over_hand_lm(batch: int, count: int) -> list[Measure]:
    """A plan of 5 iterations, no gradient. Ours also gives the value of the plan, one more rollout, and failures."""
    n, z, prior = problem(batch)
    config = LMConfig(target="fixed", scale=1.0)
    plain, theseus = (LMPlanner(replace(config, backend=backend), A) for backend in ("plain", "theseus"))
    with torch.no_grad():
        expected = hand_lm(n.fast, z, prior, config)
        for planner in (plain, theseus):
            difference = (planner.plan(n.fast, z, prior).actions - expected).abs().max()
            if difference > 1e-4:
                raise RuntimeError(f"the two plans differ by {difference}: not the same problem.")
        ours, through, hand = interleaved(
            [
                lambda: plain.plan(n.fast, z, prior),
                lambda: theseus.plan(n.fast, z, prior),
                lambda: hand_lm(n.fast, z, prior, config),
            ],
            count,
        )
    bar = 1.35 if batch == 1 else 1.1
    return [
        Measure(f"over_hand_lm_b{batch}", f"{ours:.1f} ms", f"{hand:.1f} ms", ours / hand, 1.05),
        Measure(f"theseus_over_hand_lm_b{batch}", f"{through:.1f} ms", f"{hand:.1f} ms", through / hand, bar),
    ]


def autodiff(n: Networks, dtype: torch.dtype, config: LMConfig) -> AutoDiffTheseus:
    """Theseus as the papers use it, on our rows."""
    target = torch.full((H + 1,), TARGET, dtype=dtype)

    def rows(a: Tensor, z0: Tensor, prior: Tensor | None = None) -> Tensor:
        outputs, z = [], z0
        for action in a.view(-1, H, A).unbind(1):
            outputs.append(n.plain.reward(z, action))
            z = n.plain.dynamics(z, action)
        r = stagewise_rows(torch.stack([*outputs, n.plain.terminal(z)], 1), target, 1.0, GAMMA, TAU)
        return r if config.proximal == 0 else torch.cat([r, config.proximal**0.5 * (a - prior)], 1)

    dims = (H * A, Z, H * A)[: 2 if config.proximal == 0 else 3]
    count = H + 1 + (H * A if config.proximal > 0 else 0)
    return AutoDiffTheseus(rows, dims, count, dtype, config.iterations, config.damping, backward_iterations=5)


def gradients(plan: Callable[[Tensor], Tensor], z: Tensor, n: Networks) -> tuple[Tensor, list[Tensor]]:
    """A plan and the gradient of the sum of its first action, to the latent and all parameters."""
    leaf = z.detach().requires_grad_()
    actions = plan(leaf)
    return actions.detach(), list(torch.autograd.grad(actions[:, :A].sum(), [leaf, *n.parameters]))


def loaded_runs(
    batch: int, dtype: torch.dtype = torch.float32, width: int = WIDTH, proximal: float = 0.0
) -> tuple[Callable[[], object], Callable[[], object]]:
    """10 iterations forward and a truncated-5 backward: ours, and AutoDiff Theseus."""
    n, z, prior = problem(batch, dtype=dtype, width=width)
    config = replace(LOADED, proximal=proximal)
    planner, reference = LMPlanner(config, A), autodiff(n, dtype, config)
    start = prior.flatten(1)

    def ours() -> object:
        return gradients(lambda z0: planner.plan(n.fast, z0, prior, differentiable=True).actions.flatten(1), z, n)

    def theirs() -> object:
        return gradients(lambda z0: reference.solve(start, z0, *([start] if proximal else [])), z, n)

    return ours, theirs


def over_autodiff(batch: int, count: int) -> list[Measure]:
    """Time in this process, peak resident memory in two others (`memory_ratio` includes what importing torch takes).

    `_proximal` adds the 30 rows 0.3 (a - prior), which are rows for Theseus and part of the solve for us.
    """
    (ours, theirs), (near, theirs_near) = (loaded_runs(batch, proximal=rho) for rho in (0.0, 0.09))
    times = interleaved([ours, theirs, near, theirs_near], count)
    peaks = [_peak_in_child(which, batch) for which in ("ours", "autodiff", "nothing")]
    extra = (peaks[0] - peaks[2]) / (peaks[1] - peaks[2])
    return [
        Measure("speedup_autodiff", f"{times[0]:.0f} ms", f"{times[1]:.0f} ms", times[1] / times[0], 3.5, below=False),
        Measure("speedup_autodiff_proximal", f"{times[2]:.0f} ms", f"{times[3]:.0f} ms", times[3] / times[2], None),
        Measure("memory_ratio", f"{peaks[0]:.0f} MB", f"{peaks[1]:.0f} MB", peaks[0] / peaks[1], 0.4),
        Measure("memory_ratio_above_import", f"{peaks[0] - peaks[2]:.0f} MB", f"{peaks[1] - peaks[2]:.0f} MB", extra, None),
    ]


def _peak_in_child(which: str, batch: int) -> float:
    command = [sys.executable, __file__, "--peak", which, "--batch", str(batch)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def peak_memory(which: str, batch: int) -> float:
    """Peak resident MB of this process after three runs."""
    runs = dict(zip(("ours", "autodiff"), loaded_runs(batch), strict=True))
    for _ in range(3 if which in runs else 0):
        runs[which]()
    # Not getrusage: a child's ru_maxrss begins with that of the process that forked it.
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return float(line.split()[1]) / 1024


def act_over_mppi(count: int) -> list[Measure]:
    """One action: 4 starts x 5 iterations against TD-MPC's 6 rounds of 512 samples and 25 policy plans.

    Both recorded, as agents act (`capture=auto`, docs/capture.md), and both as calls of their functions, `_eager`.
    """
    n, z, prior = problem(1)
    config, sampling = LMConfig(start_previous=True, start_zeros=True, start_random=1), MPPIConfig()
    planner, mppi = LMPlanner(config, A), MPPIPlanner(sampling, A)
    g = torch.Generator().manual_seed(0)

    def plan(z: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            result = planner.plan(n.fast, z, prior, previous=-prior, generator=g)
        return result.actions, result.value

    def sample(z: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
        plans = prior.unsqueeze(1).expand(-1, sampling.prior_samples, -1, -1)
        with torch.no_grad():
            result = mppi.plan(n.fast, z, plans, generator=g)
        return result.actions, result.value

    native.prepare()
    native.ready(600.0)
    graphs = Graphs(z.device, generators=[g])
    runs = [partial(graphs, "LM", plan, [z, prior]), partial(graphs, "MPPI", sample, [z, prior])]
    for run in runs:
        for _ in range(TapeBackend.eager_calls + 1):
            run()
    if graphs.captured < len(runs):
        raise RuntimeError("a plan was not recorded.")
    ours, theirs, eager, sampled = interleaved([*runs, partial(plan, z, prior), partial(sample, z, prior)], count)
    return [
        Measure("act_over_mppi", f"{ours:.1f} ms", f"{theirs:.0f} ms", ours / theirs, 0.045),
        Measure("act_over_mppi_eager", f"{eager:.1f} ms", f"{sampled:.0f} ms", eager / sampled, None),
    ]


def grad_vs_autodiff() -> Measure:
    """Largest difference of any parameter's gradient from AutoDiff Theseus', relative to that gradient's norm, float64."""
    error = apart = 0.0
    for rho in (0.0, 0.09):
        ours, theirs = loaded_runs(16, torch.float64, 128, rho)
        (plan, mine), (reference, other) = ours(), theirs()  # type: ignore[misc]
        if reference.abs().max() >= 1:
            raise RuntimeError("the reference has no box: its plan left it.")
        apart = max(apart, (plan - reference).abs().max().item())
        error = max(error, *(((a - b).norm() / b.norm()).item() for a, b in zip(mine, other, strict=True)))
    return Measure("grad_vs_autodiff", f"{error:.1e}", f"plans differ by {apart:.0e}", error, 1e-8)


def grad_vs_fd() -> Measure:
    """Largest relative error of directional derivatives by central differences, one direction per parameter, unroll, float64."""
    n, z, prior = problem(4, dtype=torch.float64, width=64)
    planner = LMPlanner(LMConfig(backward="unroll", scale=1.0, target="fixed"), A)

    def loss(differentiable: bool = False) -> Tensor:
        return planner.plan(n.fast, z, prior, differentiable=differentiable).actions.square().sum()

    exact, g, worst = torch.autograd.grad(loss(True), n.parameters), torch.Generator().manual_seed(0), 0.0
    for parameter, gradient in zip(n.parameters, exact, strict=True):
        direction = torch.randn(parameter.shape, generator=g, dtype=torch.float64)
        direction /= direction.norm()
        values = []
        for shift in (1e-6, -1e-6):
            with torch.no_grad():
                parameter += shift * direction
                values.append(loss().item())
                parameter -= shift * direction
        numeric, slope = (values[0] - values[1]) / 2e-6, (gradient * direction).sum().item()
        worst = max(worst, abs(slope - numeric) / gradient.norm().item())
    return Measure("grad_vs_fd", f"{worst:.1e}", "central differences", worst, 1e-6)


def dual_error() -> Measure:
    """Largest relative error of float32 steps against a QR solve in float64, Jacobian rows of norm 1 to 1e4, lambda 1e-3."""
    g, worst, failures = torch.Generator().manual_seed(0), 0.0, 0
    for norm in (1.0, 10.0, 1e2, 1e3, 1e4):
        j = F.normalize(torch.randn(512, H + 1, H * A, generator=g), dim=2) * norm
        r, damping = torch.randn(512, H + 1, generator=g), torch.full((512,), 1e-3)
        stacked = torch.cat([j.double(), damping[0].double().sqrt() * torch.eye(H * A).double().expand(512, -1, -1)], 1)
        q, upper = torch.linalg.qr(stacked)
        right = -(q[:, : H + 1].transpose(1, 2) @ r.double().unsqueeze(2))
        exact = torch.linalg.solve_triangular(upper, right, upper=True).squeeze(2)
        step = damped_step(j, r, damping)
        failures += int((~torch.isfinite(step).all(1)).sum())
        worst = max(worst, ((step.double() - exact).norm(dim=1) / exact.norm(dim=1)).max().item())
    return Measure(
        "dual_error", f"{worst:.1e}, {failures} failures", "QR in float64", worst if failures == 0 else torch.inf, 1e-5
    )


def action_dim_growth(batch: int, count: int) -> Measure:
    """Time of a plan at A=21 over A=1."""
    runs = []
    for action in (21, 1):
        n, z, prior = problem(batch, action)
        planner = LMPlanner(LMConfig(), action)
        runs.append(lambda p=planner, n=n, z=z, prior=prior: p.plan(n.fast, z, prior))
    large, small = interleaved(runs, count)
    return Measure("action_dim_growth", f"{large:.0f} ms", f"{small:.0f} ms", large / small, 1.15)


def return_batching(batch: int, count: int) -> Measure:
    """The papers' objective 1000 - G with 20 iterations, truncated 5: B states at once against AutoDiff Theseus one by one."""
    n, z, prior = problem(batch)
    config = LMConfig(
        objective="return", bounds="clamp", iterations=20, step_size=1e-4, damping=1e-3, scale=1.0, backward_iterations=5
    )

    def rows(a: Tensor, z0: Tensor) -> Tensor:
        value, z = torch.zeros_like(z0[:, 0]), z0
        for t, action in enumerate(a.view(-1, H, A).clamp(-1, 1).unbind(1)):
            value = value + GAMMA**t * n.plain.reward(z, action)
            z = n.plain.dynamics(z, action)
        return (1000 - value - GAMMA**H * n.plain.terminal(z)).unsqueeze(1)

    planner = LMPlanner(config, A)
    reference = AutoDiffTheseus(rows, (H * A, Z), 1, torch.float32, 20, 1e-3, step_size=1e-4)
    ours, theirs = interleaved(
        [
            lambda: gradients(lambda z0: planner.plan(n.fast, z0, prior, differentiable=True).actions.flatten(1), z, n),
            lambda: gradients(lambda z0: reference.solve(prior[:1].flatten(1), z0), z[:1], n),
        ],
        count,
    )
    return Measure(
        "return_batching", f"{ours / batch:.1f} ms/state", f"{theirs:.0f} ms/state", theirs * batch / ours, 10, below=False
    )


def zero_grad_share(quick: bool) -> list[Measure]:
    """Share of states whose planned first action has an exactly zero gradient to the latent, on a trained model."""
    try:
        from benchmarks.planner_quality import trained_model
    except ImportError as error:
        print(f"zero_grad_share left out: {error}", file=sys.stderr)
        return []
    trained = trained_model(quick)
    z, prior, scale = trained.states(64)
    result = []
    for name, config in {
        "zero_grad_share": LMConfig(),
        "zero_grad_share_light": LMConfig(damping=0.1),
        "zero_grad_share_papers": LMConfig(
            objective="return", bounds="clamp", iterations=100, step_size=1e-4, damping=1e-3, scale=1.0, backward_iterations=5
        ),
    }.items():
        leaf = z.detach().requires_grad_()
        plan = LMPlanner(config, prior.shape[2]).plan(trained.model, leaf, prior, scale=scale, differentiable=True)
        (gradient,) = torch.autograd.grad(plan.actions[:, 0].sum(), leaf)
        share = (gradient == 0).all(1).float().mean().item()
        result.append(Measure(name, f"{share:.2f}", trained.name, share, 0.05 if name == "zero_grad_share" else None))
    return result


def measure(quick: bool) -> list[Measure]:
    """All rows of the table."""
    batch, count = (64, 3) if quick else (256, 7)
    return [
        *over_hand_lm(batch, count),
        *over_hand_lm(1, 15 if quick else 60),
        *over_autodiff(32 if quick else 256, 1 if quick else 3),
        *act_over_mppi(2 if quick else 15),
        grad_vs_autodiff(),
        grad_vs_fd(),
        dual_error(),
        action_dim_growth(batch, count),
        return_batching(16 if quick else 64, 1 if quick else 3),
        *zero_grad_share(quick),
    ]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, few repeats: a smoke test, its numbers are rough")
    parser.add_argument("--json", type=Path, help="also write {measure: value} here")
    parser.add_argument("--peak", choices=("ours", "autodiff", "nothing"), help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, default=256, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.peak:
        print(peak_memory(args.peak, args.batch))
        return
    rows = measure(args.quick)
    print(f"{'measure':<28}{'ours':>20}{'rival':>28}{'ratio':>10}{'bar':>10}  met")
    for row in rows:
        bar = "" if row.bar is None else f"{'<=' if row.below else '>='} {row.bar:g}"
        print(f"{row.name:<28}{row.ours:>20}{row.rival:>28}{row.ratio:>10.3g}{bar:>10}  {row.met}")
    if args.json:
        args.json.write_text(json.dumps({row.name: row.ratio for row in rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
