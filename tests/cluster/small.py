"""The smallest run that learns, and how one that was stopped is compared with one that wasn't."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from difftop.command import main
from tests.run.test_session import ROOT, SMALL, assert_equal, final_state, without_clock

OWN = {
    "agent": "tdmpc",
    "planner": "none",  # half of the time of these runs would be planning
    "run.frames": "200",
    "run.eval_every": "100",
    "run.eval_episodes": "1",
    "run.checkpoint_every": "25",
    "run.video": "false",
}
OPTIONS = [
    *(text for text in SMALL if "policy_gradient" not in text and text.partition("=")[0] not in OWN),
    *(f"{key}={value}" for key, value in OWN.items()),
]


def folder(root: Path, seed: int) -> Path:
    """Of a run's files."""
    return root / "toy-point-mass" / "tdmpc" / "planner-none" / f"seed{seed}"


def command(root: Path, *overrides: str) -> list[str]:
    """The line of a run; `overrides` may begin with `-m`, and take the place of the usual options."""
    return [sys.executable, "train.py", *overrides, *_usual(overrides), f"root={root}"]


def _usual(overrides: Sequence[str]) -> list[str]:
    given = {text.partition("=")[0] for text in overrides}
    return [text for text in OPTIONS if text.partition("=")[0] not in given]


@contextmanager
def started(line: list[str], log: Path, environment: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """The command in the background; what it says goes to `log`. It ends with the context, and so does all that it started."""
    with log.open("ab") as out:
        process = subprocess.Popen(line, cwd=ROOT, env=environment, stdout=out, stderr=out, start_new_session=True)
    try:
        yield process
    finally:
        kill_all(process)


def kill_all(process: subprocess.Popen[bytes]) -> None:
    """As when a machine loses power: a process and those that it started, and those that they did, without a word to any."""
    for one in [process.pid, *_started_by(process.pid)]:  # the parent first: it could still do something about its children's end
        with suppress(ProcessLookupError):
            os.kill(one, signal.SIGKILL)
    process.wait()


def _started_by(parent: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == parent:
                child = int(stat.parts[2])
                found += [child, *_started_by(child)]
    return found


def never_stopped(root: Path, seed: int, *overrides: str) -> Path:
    """A run that went through."""
    assert main([*overrides, *_usual(overrides), f"root={root}", f"seed={seed}"]) == 0
    return folder(root, seed)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def trainer(run: Path) -> int:
    """The process that trains this run: it holds the run's folder."""
    for handle in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if handle.readlink() == run:
                return int(handle.parts[2])
    raise AssertionError(f"nobody trains {run}")  # 0 would be a signal to ourselves


def wait_until(
    what: Callable[[], bool], log: Path, running: subprocess.Popen[bytes] | None = None, timeout_s: float = 600.0
) -> None:
    """Until it is so; fails with what `log` says after `timeout_s`, or where `running` has ended before."""
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline, log.read_text()
        assert running is None or running.poll() is None or what(), log.read_text()
        time.sleep(0.1)


def assert_ended_alike(stopped: Path, whole: Path) -> None:
    """Weights, optimizers, generators, replay and tables, bit for bit."""
    assert_equal(final_state(stopped), final_state(whole))
    for table in ("eval.csv", "metrics.csv"):
        assert without_clock(stopped / table) == without_clock(whole / table)
