"""Loading images from a demonstration file: windows per second from a cold file, and the share of a training step.

    python benchmarks/loading.py [--quick] [--json PATH]

**Windows per second.** 200 demonstrations of 100 steps with two 84x84 cameras (847 MB), batches of 64 in the order of training,
through the first epoch: the file's pages are dropped from the system's cache before, so every image comes from the disk once. The
bar is 2,000 windows of 2 observations per second, Diffusion Policy's; LeTO's of 12 are six times the bytes. Wall and CPU time of
one thread; beside other work the first is longer than the second.

**Share of a step.** LeTO on two 84x84 cameras as in RoboMimic's image files. Files as they are and gzip-compressed; a cache that
holds all images, and one of 16 MB, a fifth of them. One thread, medians of process CPU time, loading and update interleaved. The
bar: loading is at most 10 % of a step. On a GPU a step is much shorter: compare the milliseconds per batch with your step's; a
run says its own share as `time/loading_share`.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from agents.registry import make_agent
from benchmarks.command import parse, save
from benchmarks.update import medians
from difftop.data.demonstrations import Demonstrations
from difftop.data.robomimic import Recording, open_robomimic, write_demonstrations
from difftop.run.offline import Batches
from difftop.types import EnvSpec, ObsSpec

BAR = 0.1
WINDOWS_PER_S = 2000.0
OBSERVATIONS = {"Diffusion Policy": 2, "LeTO": 12}  # in a window
CAMERAS = ("agentview_image", "robot0_eye_in_hand_image")
OBS = {camera: ObsSpec("image", (3, 84, 84)) for camera in CAMERAS} | {"eef_pos": ObsSpec("vector", (3,))}
SPEC = EnvSpec("benchmark/images", OBS, 7, episode_steps=100, control_dt_s=0.05)
ENV = {"env_name": "benchmark", "type": 2, "env_kwargs": {}, "env_version": "1"}


def episode(rng: np.random.Generator, steps: int) -> Recording:
    """Smooth pictures with some noise, which compress about as rendered ones do."""
    wave = np.sin(np.linspace(0, 6, 84) + rng.uniform(0, 6, (steps, 1, 3, 1))).transpose(0, 3, 1, 2)  # [T, 84, 1, 3]
    pictures = {camera: (100 + 80 * wave + rng.integers(0, 6, (steps, 84, 84, 3))).astype(np.uint8) for camera in CAMERAS}
    return Recording(pictures | {"eef_pos": rng.uniform(-1, 1, (steps, 3))}, rng.uniform(-1, 1, (steps, 7)), np.zeros(steps))


def compress(path: Path) -> None:
    """Stores every picture of the file again, with gzip."""
    with h5py.File(path, "r+") as file:
        for demo in file["data"].values():
            for camera in CAMERAS:
                rows = demo[f"obs/{camera}"][()]
                del demo[f"obs/{camera}"]
                demo.create_dataset(f"obs/{camera}", data=rows, compression="gzip")


def write_cold(path: Path, demos: int, steps: int) -> None:
    """A file of `demos` demonstrations that the system holds no page of."""
    rng = np.random.default_rng(0)
    seen = [episode(rng, steps) for _ in range(min(demos, 4))]
    write_demonstrations(path, (seen[k % len(seen)] for k in range(demos)), ENV)
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def windows_per_second(quick: bool, folder: Path) -> dict[str, float]:
    """Prints the first table; measures by name."""
    demos, steps = (4, 30) if quick else (200, 100)
    measures: dict[str, float] = {}
    print(f"{demos} demonstrations of {steps} steps, two 84x84 cameras, batches of 64, one thread, first epoch\n")
    print(f"{'window':32s}{'windows/s':>10s}{'of CPU time':>13s}{'MB/s':>8s}")
    for name, observations in OBSERVATIONS.items():
        path = folder / f"{observations}.hdf5"
        write_cold(path, demos, steps)
        demonstrations = open_robomimic(path, obs_keys=list(SPEC.shapes), cache_bytes=2**31)
        batches = Batches(demonstrations.windows(observations, 8), 64, seed=0)
        count = 64 * batches.per_epoch
        wall, cpu = time.perf_counter(), time.process_time()
        for number in range(batches.per_epoch):
            batches.batch(number)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        measures |= {f"windows/s {name}": count / wall, f"windows per CPU s {name}": count / cpu}
        rate = count * observations * len(CAMERAS) * 84 * 84 * 3 / wall / 1e6
        print(f"{name + f', {observations} observations':32s}{count / wall:10.0f}{count / cpu:13.0f}{rate:8.0f}")
        path.unlink()
    found = measures["windows/s Diffusion Policy"]
    print(f"\n{found:.0f} windows/s, bar {WINDOWS_PER_S:.0f}: {'met' if found >= WINDOWS_PER_S else 'not met'}.\n")
    return measures


def main() -> None:
    """Prints the tables; writes `{measure: value}` with --json."""
    options = parse(__doc__)
    with tempfile.TemporaryDirectory() as cold:
        cold_measures = windows_per_second(options.quick, Path(cold))
    demos, size, repeats = (2, 2, 1) if options.quick else (20, 16, 3)
    agent = make_agent({"name": "leto"}, SPEC, seed=0, total_steps=1000)
    measures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        files: dict[str, Demonstrations] = {}
        for kind in ("raw", "gzip"):
            path = Path(folder) / f"{kind}.hdf5"
            rng = np.random.default_rng(0)
            write_demonstrations(path, (episode(rng, 100) for _ in range(demos)), ENV)
            if kind == "gzip":
                compress(path)
            for cache, megabytes in (("cached", 2048), ("uncached", 16)):
                files[f"{kind}, {cache}"] = open_robomimic(path, obs_keys=list(SPEC.shapes), cache_bytes=megabytes * 2**20)
        shape = agent.windows
        batches = {}
        for name, demonstrations in files.items():
            windows = demonstrations.windows(shape.window, shape.horizon, pad_before=shape.pad_before, pad_after=shape.pad_after)
            batches[name] = Batches(windows, size, seed=0)
            for number in range(batches[name].per_epoch):
                batches[name].batch(number)
        agent.fit_normalizer_(next(iter(files.values())))
        counter = iter(range(10**6))
        candidates = {name: lambda b=b: b.batch(next(counter)) for name, b in batches.items()}
        step = next(iter(batches.values())).batch(0)
        ms = medians(candidates | {"update": lambda: agent.update(step, 0)}, repeats)
    print(
        f"LeTO, {len(CAMERAS)} cameras, {size} windows of {shape.window} observations, one thread; update {ms['update']:.0f} ms\n"
    )
    print(f"{'file':18s}{'loading ms':>11s}{'share of a step':>17s}")
    for name in files:
        share = ms[name] / (ms[name] + ms["update"])
        measures[f"share {name}"], measures[f"ms {name}"] = share, ms[name]
        print(f"{name:18s}{ms[name]:11.1f}{share:17.3f}")
    worst = max(value for name, value in measures.items() if name.startswith("share"))
    print(f"\nlargest share {worst:.3f}, bar {BAR}: {'met' if worst <= BAR else 'not met'}.")
    save(cold_measures | measures | {"update_ms": ms["update"]}, options.json)


if __name__ == "__main__":
    main()
