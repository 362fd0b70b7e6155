"""Runs that are killed, and runs whose disk fills up: each goes on by the same command, to the end of one that was left alone."""

from __future__ import annotations

import hashlib
import os
import random
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks import endurance_life as life
from benchmarks.endurance_rows import Row, Setting, forked, say, started
from difftop.run.checkpoint import CheckpointError, has_checkpoint, load_checkpoint

_LIFE_S = 1800.0  # a toy run takes seconds; what takes so long, on a machine however busy, hangs
ONLINE = (
    "agent=difftop_rl", "env=toy/point-mass", "run.frames=200", "run.seed_steps=50", "run.batch_size=8", "run.updates_per_step=1",
    "run.eval_every=50", "run.eval_episodes=2", "run.eval_envs=2", "run.checkpoint_every=25", "run.capacity=150",
    "run.video=false", "agent.model.mlp_dim=16", "agent.model.encoder_dim=16", "agent.model.latent_dim=8",
    "agent.policy_gradient.mode=replay", "agent.policy_gradient.states=4", "threads=1", "device=cpu",
)  # fmt: skip
OFFLINE = (
    "agent=leto", "env=toy/reach", "agent.hidden_dim=16", "agent.layers=1", "agent.window=4", "agent.horizon=3",
    "agent.limits.free=[]", "run.demos=8", "run.grad_steps=60", "run.batch_size=16", "run.eval_every=20",
    "run.checkpoint_every=7", "run.log_every=10", "run.select_episodes=2", "run.eval_episodes=3", "run.eval_envs=2",
    "run.video=false", "threads=1", "device=cpu",
)  # fmt: skip
KINDS = {"online": (ONLINE, "toy-point-mass/difftop_rl/default/seed1"), "offline": (OFFLINE, "toy-reach/leto/default/seed1")}


@dataclass(frozen=True)
class Run:
    """A run of one kind below a folder of its own."""

    kind: str
    home: Path

    @property
    def arguments(self) -> list[str]:
        """Of its command line; a run that is called again goes on."""
        return [*KINDS[self.kind][0], f"root={self.home / 'runs'}", f"data={self.home / 'data'}"]

    @property
    def folder(self) -> Path:
        """That the run writes to."""
        return self.home / "runs" / KINDS[self.kind][1]

    @property
    def log(self) -> Path:
        """What it said last."""
        return self.home / "log.txt"

    def live(self, kill_after_s: float | None = None) -> tuple[int, float]:
        """Starts the command, kills it after a while if that is asked for; exit status (-9 where killed) and seconds."""
        self.home.mkdir(parents=True, exist_ok=True)
        begun = time.monotonic()
        process = started(forked(), life.live, self.arguments, str(self.log))
        process.join(_LIFE_S if kill_after_s is None else kill_after_s)
        if process.is_alive():
            process.kill()
            process.join()
        return process.exitcode or 0, time.monotonic() - begun

    def ending(self) -> dict[str, str]:
        """A digest of every part of what the run has left: tensors, tables, reports, names of files."""
        checkpoint = load_checkpoint(self.folder)
        rows = [load_file(checkpoint.path.parent / "replay" / file.name) for file in checkpoint.rows]
        begin = checkpoint.replay_state["begin"] - checkpoint.rows[0].begin if checkpoint.replay_state else 0
        replay = {name: torch.cat([block[name] for block in rows])[begin:] for name in (rows[0] if rows else ())}
        parts: dict[str, Any] = {"step": checkpoint.step, "model": checkpoint.model, "replay": [checkpoint.replay_state, replay]}
        parts["train state"] = _without_clock(checkpoint.train_state)
        own = [path for path in sorted(self.folder.rglob("*")) if path.is_file() and not path.is_symlink()]
        own = [path for path in own if not {"checkpoints", "tensorboard"} & set(path.relative_to(self.folder).parts)]
        parts["names"] = [str(path.relative_to(self.folder)) for path in own]
        for path in own:
            if path.suffix == ".csv":
                parts[path.name] = _table_without_clock(path)
            elif path.suffix in (".png", ".json") and path.name != "config.json":  # which names its folder
                parts[path.name] = path.read_bytes().hex()
        return {name: _digest(part) for name, part in parts.items()}


def kills(setting: Setting) -> Iterator[Row]:
    """SIGKILL at random moments; where a run was over before its moment, the next moment is drawn."""
    for kind in KINDS:
        chance, count = setting.random("kills", kind), setting.size(10, 1)
        whole = Run(kind, setting.folder / kind / "whole")
        _, seconds = whole.live()  # the first also starts the server, and records the demonstrations
        _, seconds = _again(whole).live()
        expected, wrong, moments = whole.ending(), [], list[str]()
        for number in range(count):
            run = Run(kind, setting.folder / kind / f"killed{number}")
            if (whole.home / "data").exists():
                shutil.copytree(whole.home / "data", run.home / "data")
            status = 0
            while status != -9:
                shutil.rmtree(run.home / "runs", ignore_errors=True)
                after = chance.uniform(0.0, seconds)
                status, _ = run.live(after)
            moments.append(f"{after:.2f}")
            status, _ = run.live()
            wrong += [f"killed{number} after {after:.3f} s: {why}"] if (why := _differs(run, status, expected)) else []
            if not why:
                shutil.rmtree(run.home)
        say(f"  {kind}: a whole run takes {seconds:.2f} s; killed after {', '.join(moments)} s")
        for line in wrong:
            say(f"  {line}")
        yield Row(f"SIGKILL of {kind} runs at random moments", count, "an end equal to the bit", len(wrong))


def full_disk(setting: Setting) -> Iterator[Row]:
    """A write fails in some life, and all that come after it; then the disk has space again.

    Of writes at the same place (a file's opening, the rows of a table, a checkpoint's weights) the first one fails, the last one,
    and one between them.
    """
    for kind in KINDS:
        whole = Run(kind, setting.folder / kind / "whole")
        whole.live()
        counting = Run(kind, setting.folder / kind / "counting")
        _with_data_of(whole, counting)
        places = _live_until_full(counting, -1)[1]
        expected, wrong = whole.ending(), []
        if counting.ending() != expected:
            wrong.append("the run that was counted ended otherwise")
        chance = setting.random("disk", kind)
        chosen = _of_each_place(places, chance)
        if setting.quick:
            chosen = sorted(chance.sample(chosen, 3))
        for number, full_at in enumerate(chosen):
            if number % 20 == 0:
                say(f"  {kind}: {number} of {len(chosen)} disks filled up, {len(wrong)} fell short")
            run = Run(kind, setting.folder / kind / f"full{full_at}")
            _with_data_of(whole, run)
            status, _ = _live_until_full(run, full_at)
            said = run.log.read_text()
            why = _not_said(said, status) or _broken(run)
            if not why:
                status, _ = run.live()
                why = _differs(run, status, expected)
            if why:
                wrong.append(f"write {full_at}, {places[full_at]}: {why}")
                shutil.copy(run.log, setting.folder / f"{kind}-{full_at}.txt")
            shutil.rmtree(run.home)
        for line in wrong:
            say(f"  {kind}: {line}")
        note = f"of the {len(places)} writes of the run, at {len(set(places))} places"
        promise = "one sentence, exit status 2, then an end equal to the bit"
        yield Row(f"a disk that is full at a write of an {kind} run", len(chosen), promise, len(wrong), note)
    yield from small_disks(setting)


SMALL_DISKS = {
    "demonstrations": ("mode=demos", "agent=leto", "env=toy/reach", "run.demos=30", "data=DISK/data"),
    "conversion to LeRobot": ("mode=convert", "dataset=WHOLE/data/DEMOS", "out=DISK/out"),
    "conversion to HDF5": ("mode=convert", "dataset=WHOLE/data/DEMOS", "out=DISK/out.hdf5"),
    "online run": (*ONLINE, "root=DISK/runs"),
    "offline run": (*OFFLINE, "root=DISK/runs", "dataset=WHOLE/data/DEMOS"),
}


def small_disks(setting: Setting) -> Iterator[Row]:
    """File systems in memory that are too small, so that the kernel itself refuses what HDF5, Parquet and TensorBoard write."""
    disk, whole = setting.folder / "disk", Run("offline", setting.folder / "recorded")
    what, promise = "a file system too small for ", "one sentence, exit status 2, then it ends well"
    if not _mount(disk, "1m"):
        yield Row(f"{what}the whole", 0, promise, 0, "not tried: this user may not mount one")
        return
    subprocess.run(["umount", str(disk)], check=True)
    whole.home.mkdir(parents=True)
    record = ["mode=demos", "agent=leto", "env=toy/reach", "run.demos=30", f"data={whole.home / 'data'}"]
    process = started(forked(), life.live, record, str(whole.log))
    process.join(_LIFE_S)
    (demos,) = (whole.home / "data").rglob("*.hdf5")
    for name, words in SMALL_DISKS.items():
        words = tuple(
            word.replace("DEMOS", str(demos.relative_to(whole.home / "data"))).replace("WHOLE", str(whole.home)) for word in words
        )
        chance, wrong, tried = setting.random("small", name), [], setting.size(20, 1)
        need = _need(disk, words, whole.home)
        for number in range(tried):
            kib = 4 * chance.randint(1, max(1, need // 4 - 1))
            why = _on_small_disk(disk, words, whole.home, kib)
            wrong += [f"{name} on {kib} KiB of {need}: {why}"] if why else []
            if why:
                shutil.copy(whole.home / "small.txt", setting.folder / f"{name.replace(' ', '-')}-{number}.txt")
        for line in wrong:
            say(f"  {line}")
        yield Row(f"{what}the {name}", tried, promise, len(wrong), f"sizes below {need} KiB")


def _mount(disk: Path, size: str) -> bool:
    disk.mkdir(exist_ok=True)
    options = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
    return subprocess.run(options, capture_output=True, check=False).returncode == 0


def _need(disk: Path, words: Sequence[str], home: Path) -> int:
    """KiB that the command needs."""
    assert _mount(disk, "256m")
    try:
        status = _command(disk, words, home)
        used = os.statvfs(disk)
        assert status == 0, (words, (home / "small.txt").read_text())
        return (used.f_blocks - used.f_bfree) * used.f_frsize // 1024
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def _on_small_disk(disk: Path, words: Sequence[str], home: Path, kib: int) -> str:
    """What is wrong with how the command ends there, and with how it ends once there is space; empty for nothing."""
    assert _mount(disk, f"{kib}k")
    try:
        status = _command(disk, words, home)
        if status == 0:  # what didn't fit was not needed
            return ""
        why = _not_said((home / "small.txt").read_text(), status)
        if why:
            return why
        subprocess.run(["mount", "-o", "remount,size=256m", str(disk)], check=True)
        status = _command(disk, words, home)
        return f"with space again it ends with status {status}" if status else ""
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def _command(disk: Path, words: Sequence[str], home: Path) -> int:
    arguments = [word.replace("DISK", str(disk)) for word in words]
    process = started(forked(), life.live, arguments, str(home / "small.txt"))
    process.join(_LIFE_S)
    if process.is_alive():
        process.kill()
        process.join()
        return -9
    return process.exitcode or 0


def _of_each_place(places: Sequence[str], chance: random.Random) -> list[int]:
    """Numbers of writes: of each place the first, the last, and one between them."""
    found: dict[str, list[int]] = {}
    for number, place in enumerate(places):
        found.setdefault(place, []).append(number)
    between = [chance.choice(numbers[1:-1]) for numbers in found.values() if len(numbers) > 2]
    return sorted({*between, *(number for numbers in found.values() for number in (numbers[0], numbers[-1]))})


def _live_until_full(run: Run, full_at: int) -> tuple[int, list[str]]:
    """Exit status, and the places of writes."""
    counted = run.home / "writes.txt"
    arguments = (run.arguments, str(run.log), full_at, str(counted))
    process = started(forked(), life.live_on_a_full_disk, *arguments)
    process.join(_LIFE_S)
    if process.is_alive():
        process.kill()
        process.join()
    return process.exitcode or 0, counted.read_text().splitlines()


def _with_data_of(whole: Run, run: Run) -> None:
    run.home.mkdir(parents=True)
    if (whole.home / "data").exists():
        shutil.copytree(whole.home / "data", run.home / "data")


def _again(run: Run) -> Run:
    shutil.rmtree(run.home / "runs")
    return run


def _not_said(said: str, status: int) -> str:
    """What is wrong with how a command ends on a full disk."""
    if status == 0:  # what filled up was not needed: a picture, TensorBoard
        return ""
    if status != 2:
        return "it hangs" if status == -9 else f"exit status {status}"
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    if "Traceback" in said:
        return "a traceback"
    return "" if len(lines) == 1 and re.search("No space left|disk", lines[0]) else f"it says {lines or said[-200:]!r}"


def _broken(run: Run) -> str:
    """What is wrong with the last checkpoint, if there is any."""
    try:
        if has_checkpoint(run.folder):
            load_checkpoint(run.folder)
    except CheckpointError as error:
        return str(error)
    return ""


def _differs(run: Run, status: int, expected: dict[str, str]) -> str:
    """What of a run's end isn't as it should be."""
    if status:
        return f"exit status {status}: {run.log.read_text()[-300:]}"
    found = run.ending()
    parts = sorted(key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key))
    return f"other {', '.join(parts)}" if parts else ""


def _without_clock(state: Any) -> Any:
    """A train state without what tells the time."""
    if isinstance(state, dict):
        clocks = ("wall_s", "loading_s", "time/")
        return {k: _without_clock(v) for k, v in state.items() if not any(clock in str(k) for clock in clocks)}
    return [_without_clock(x) for x in state] if isinstance(state, list | tuple) else state


def _table_without_clock(path: Path) -> list[list[str]]:
    rows = [line.split(",") for line in path.read_text().splitlines()]
    kept = [i for i, name in enumerate(rows[0]) if name != "wall_s" and not name.startswith("time/")]
    return [[row[i] for i in kept] for row in rows]


def _digest(part: Any) -> str:
    found = hashlib.sha256()

    def add(x: Any) -> None:
        if isinstance(x, Tensor):
            found.update(f"{x.dtype}{tuple(x.shape)}".encode() + x.contiguous().flatten().view(torch.uint8).numpy().tobytes())
        elif isinstance(x, dict):
            for key in sorted(x, key=str):
                add(key)
                add(x[key])
        elif isinstance(x, list | tuple):
            found.update(f"[{len(x)}".encode())
            for item in x:
                add(item)
        else:
            found.update(repr(x).encode())

    add(part)
    return found.hexdigest()
