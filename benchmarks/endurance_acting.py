"""Episodes with the QP head, whose every action is measured; and the memory of runs that go on and on."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import endurance_life as life
from benchmarks.endurance_rows import Row, Setting, forked, say, started
from benchmarks.endurance_runs import OFFLINE, ONLINE
from difftop.api import make_agent, make_env
from difftop.run.rollouts import roll_out
from envs import EnvConfig, make_vector_env

Array = np.ndarray[Any, np.dtype[Any]]
_ROUNDING = 1e-6  # of float32: actions, and positions in m
_LIMITS = {"free": [], "velocity": 0.8, "acceleration": 0.1}
# Positions are kept too where the hand begins inside of them; metres_per_action is toy/reach's.
_BOX = {"position_key": "hand_pos", "position_axes": [0, 1], "position_min": [-1.1, -1.1], "position_max": [1.1, 1.1],
        "metres_per_action": 0.1}  # fmt: skip
_LETO = {"name": "leto", "window": 4, "horizon": 12, "hidden_dim": 16, "layers": 1}  # 8 steps to brake from the largest velocity
_BC = {"name": "bc", "horizon": 12, "hidden_dims": [32], "distribution": "deterministic"}
_POLICIES: dict[str, dict[str, Any]] = {
    "leto": _LETO,
    "leto with positions": {**_LETO, "limits": _BOX},
    "bc": _BC,
    "bc with positions": {**_BC, "limits": _BOX},
}


def rollouts(setting: Setting) -> Iterator[Row]:
    """Policies that nobody trained, and whose weights are blown up, so that their wishes are wild; the head keeps the limits."""
    each, tried, short, steps, worst = setting.size(50, 3), 0, 0, 0, 0.0
    envs = make_vector_env(EnvConfig(name="toy/reach", obs="low_dim"), min(each, 10))
    spec = make_env("toy/reach", obs="low_dim").difftop_spec
    for number, (name, options) in enumerate(_POLICIES.items()):
        limits = _LIMITS | options.get("limits", {})
        agent = make_agent(**{**options, "limits": limits}, spec=spec, seed=setting.seed + number)
        _blow_up(agent)
        actor = lambda n, agent=agent: agent.actor(n, seed=setting.seed, head="qp")  # noqa: E731
        found = roll_out(envs, actor, range(each), steps=0, keep="hand_pos")
        for seed, episode in enumerate(found.episodes):
            excess = _excess(np.asarray(episode.actions, np.float64), limits, np.asarray(episode.positions, np.float64))
            tried, steps, worst = tried + 1, steps + len(episode.actions), max(worst, excess)
            short += excess > _ROUNDING
            if excess > _ROUNDING:
                say(f"  {name}, seed {seed}: {excess:.3g} beyond a limit; {found.metrics}")
    envs.close()
    note = f"{steps:,} actions, the worst {max(worst, 0.0):.1e} beyond; rounding of float32 is {_ROUNDING:g}"
    yield Row("rollouts of untrained policies with the QP head, 4 kinds", tried, "no action beyond a limit", short, note)


def _blow_up(agent: Any) -> None:
    """Weights of the network, not of the head, three times as large."""
    with torch.no_grad():
        for name, weight in agent.policy.named_parameters():
            if "head" not in name and weight.dim() > 1:
                weight *= 3


def _excess(actions: Array, limits: dict[str, Any], positions: Array) -> float:
    """By how much an episode `[T, A]` leaves its limits at most, in actions or in m; it begins at rest."""
    velocity = float((np.abs(actions) - limits["velocity"]).max())
    jumps = np.diff(np.concatenate([np.zeros((1, actions.shape[1])), actions]), axis=0)
    found = [velocity, float((np.abs(jumps) - limits["acceleration"]).max())]
    if "position_key" in limits:
        box = np.asarray(limits["position_min"]), np.asarray(limits["position_max"])
        found.append(float(np.maximum(box[0] - positions, positions - box[1]).max()))
    return max(found) if all(map(math.isfinite, found)) else math.inf


_DAY_S = 86_400.0
_ENDLESS = {
    # Evaluations, checkpoints and episodes come often, so that what each leaves behind is seen in minutes.
    "online": (*ONLINE, "run.frames=100000000", "run.eval_every=500", "run.checkpoint_every=500", "run.capacity=2000"),
    "offline": (*OFFLINE, "run.grad_steps=100000000", "run.eval_every=200", "run.checkpoint_every=200", "run.log_every=50"),
}


def memory(setting: Setting) -> Iterator[Row]:
    """Resident memory of a run that doesn't end, second by second; the slope of its second half, carried on to a day."""
    minutes = setting.minutes or (0.25 if setting.quick else 20.0)
    for kind, words in _ENDLESS.items():
        home = setting.folder / kind
        home.mkdir(parents=True)
        given = dict(word.partition("=")[::2] for word in words)  # of a word that is given twice the later counts
        arguments = [f"{key}={value}" for key, value in given.items()]
        process = started(
            forked(), life.live, [*arguments, f"root={home / 'runs'}", f"data={home / 'data'}"], str(home / "log.txt")
        )
        begun, seconds, sizes = time.monotonic(), list[float](), list[float]()
        while process.is_alive() and time.monotonic() - begun < 60 * minutes:
            time.sleep(1.0 if minutes > 1 else 0.1)
            seconds.append(time.monotonic() - begun)
            sizes.append(_resident_mb(process.pid))
        ended = process.exitcode
        process.kill()
        process.join()
        if ended is not None:
            raise RuntimeError(f"the {kind} run ended with status {ended}: {(home / 'log.txt').read_text()[-500:]}")
        (home / "memory.csv").write_text("".join(f"{s:.1f},{m:.3f}\n" for s, m in zip(seconds, sizes, strict=True)))
        shutil.rmtree(home / "runs")
        yield _grown(kind, minutes, np.array(seconds), np.array(sizes), setting.quick)


def _grown(kind: str, minutes: float, seconds: Array, sizes: Array, quick: bool) -> Row:
    """Growth over the second half: by its slope, and by its largest against that of the first."""
    half = len(seconds) // 2
    late_s, late = seconds[half:], sizes[half:]
    slope = float(np.polyfit(late_s, late, 1)[0]) * _DAY_S
    more = float(late.max() - sizes[len(sizes) // 4 : half].max())
    day = more / (seconds[-1] - late_s[0]) * _DAY_S
    bar = 1000.0 if not quick else math.inf
    grown = min(slope, day)  # allocators step, and a step looks like a slope: both have to rise
    note = f"{late[-1]:.0f} MB; slope {slope:+.0f} MB and largest {day:+.0f} MB a day" + (", too short to judge" if quick else "")
    promise = f"at most {bar:g} MB more in 24 h" if not quick else "it runs, and is measured"
    return Row(f"{minutes:g} minutes of an {kind} run that doesn't end", 1, promise, int(grown > bar), note)


def _resident_mb(pid: int | None) -> float:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 1e6
    except (OSError, IndexError, ValueError):  # it has ended
        return 0.0
