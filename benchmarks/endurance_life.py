"""What the processes of `endurance.py` do: whole command lines, on disks that fill up, and damaged files that are read.

The server that they are forked from imports this module, and with it all that they need.
"""

from __future__ import annotations

import builtins
import errno
import importlib
import io
import json
import os
import re
import resource
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

for needed in (
    "agents.registry", "agents.difftop_rl", "agents.leto", "agents.bc", "agents.latent.planners", "difftop.command",
    "difftop.run.help", "difftop.run.imitate", "difftop.run.overrides", "difftop.run.reinforce", "difftop.plot_trajectory",
    "envs.toy.point_mass", "envs.toy.reach", "matplotlib.backends.backend_agg", "torch.utils.tensorboard",
):  # fmt: skip
    importlib.import_module(needed)

_MEMORY_BYTES = 16 * 2**30  # of a process that reads damaged files: a length that flipped must not take the machine's


def live(arguments: Sequence[str], log: str) -> None:
    """A command line of `difftop`; what it says goes to a file."""
    _speak_to(log)
    torch.set_num_threads(1)
    sys.exit(importlib.import_module("difftop.command").main(list(arguments)))


def live_on_a_full_disk(arguments: Sequence[str], log: str, full_at: int, counted: str) -> None:
    """The same, on a disk that has no space left from the write number `full_at` on (-1: never).

    A write is a file that is opened to be written, each of its writes, a folder, a link, a sync. The one that fails leaves half
    of what it should have written, as a full disk does. The places of all writes go to the file `counted`, a line each.
    """
    disk = FullDisk(full_at)
    with open(counted, "w") as count, open(log, "w") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
        disk.install()
        torch.set_num_threads(1)
        status = importlib.import_module("difftop.command").main(list(arguments))
        sys.stdout.flush()
        sys.stderr.flush()
        count.write("".join(f"{place}\n" for place in disk.places))
    os._exit(status)  # no handler at the exit writes to a disk that is full


class FullDisk:
    """A disk on which writes from number `full_at` on fail, once it is installed in this process."""

    def __init__(self, full_at: int) -> None:
        self.full_at, self.places = full_at, list[str]()

    def take(self, what: str, file: Any) -> None:
        """One write; its place is what is done and to which file, numbers in its name left out."""
        file = os.readlink(f"/proc/self/fd/{file}") if isinstance(file, int) else os.fsdecode(file)
        name = "/".join(Path(file).parts[-2:])
        self.places.append(f"{what} {re.sub('[0-9a-f]*[0-9][0-9a-f]*', '#', name)}")
        if 0 <= self.full_at < len(self.places):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def install(self) -> None:
        """Takes the place of what Python's own writers call."""
        real = io.open

        def opened(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            if isinstance(file, int) or not set(mode) & set("wax+"):
                return real(file, mode, *arguments, **options)
            self.take("open", file)
            return _Written(real(file, mode, *arguments, **options), self, file)

        builtins.open = io.open = opened  # type: ignore[assignment]
        for name in ("mkdir", "symlink", "fsync"):
            setattr(os, name, self._counted(name, getattr(os, name)))

    def _counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self.take(name, arguments[1] if name == "symlink" else arguments[0])
            return function(*arguments, **options)

        return call


class _Written:
    """A file whose writes count."""

    def __init__(self, file: Any, disk: FullDisk, name: Any) -> None:
        self._file, self._disk, self._name = file, disk, name

    def write(self, data: Any) -> Any:
        """Writes all, or half of it and raises."""
        try:
            self._disk.take("write", self._name)
        except OSError:
            self._file.write(data[: len(data) // 2])
            self._file.flush()
            raise
        return self._file.write(data)

    def writelines(self, lines: Any) -> None:
        """A write for every line."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _Written:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __iter__(self) -> Any:
        return iter(self._file)


def read_damaged(target: str, home: str, cases: Sequence[tuple[str, int, str, int, int]], results: str) -> None:
    """Damages copies of a target's files, one case after the other, reads each, and writes down what came of it.

    Args:
        target: name of one of `endurance_files.TARGETS`.
        home: folder of its files as they were written, and for the copies.
        cases: kind, number, file, place and bit or length; see `endurance_files`.
        results: file that gets a line of JSON before and after every case, so that the one which killed the process is known.
    """
    files = importlib.import_module("benchmarks.endurance_files")
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    torch.set_num_threads(1)
    executed: list[str] = []
    sys.addaudithook(lambda event, _: executed.append(event) if event in files.EXECUTED else None)
    with open(results, "a", buffering=1) as file:
        expected = files.TARGETS[target].read(Path(home) / "whole")
        for case in cases:
            file.write(json.dumps({"begins": case[:2]}) + "\n")
            executed.clear()
            outcome, text = files.outcome(target, Path(home), case, expected)
            file.write(json.dumps({"case": case, "outcome": "executed" if executed else outcome, "said": text}) + "\n")


def _speak_to(log: str) -> None:
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
