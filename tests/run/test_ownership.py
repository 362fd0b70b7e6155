"""Two processes never write into one run folder."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from difftop.options import ConfigError
from difftop.run.ownership import in_turn, sole_owner
from tests.run.test_session import FOLDER, run

HOLD = """
import sys, time, pathlib
from difftop.run.ownership import sole_owner
with sole_owner(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_run_that_is_being_trained_is_refused_and_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with sole_owner(tmp_path / FOLDER):
        assert run(tmp_path) == 2
        assert not any((tmp_path / FOLDER).iterdir())
    assert (
        "another process is training this very run; wait for it, stop it, or choose another name=NAME" in capsys.readouterr().err
    )
    assert run(tmp_path) == 0
    assert (tmp_path / FOLDER / "eval.csv").exists()


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        with pytest.raises(ConfigError), sole_owner(folder):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
    with sole_owner(folder):
        (folder / "x").touch()
    assert (folder / "x").exists()


def test_a_mistake_leaves_no_folder(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    assert run(tmp_path / "mine", "run.capacity=1") == 2
    assert list(tmp_path.rglob("*")) == [tmp_path / "mine"]  # which was there
    assert run(tmp_path / "new", "run.capacity=1") == 2
    assert list(tmp_path.rglob("*")) == [tmp_path / "mine"]


def test_where_a_folder_cannot_be_locked_a_file_in_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS locks what is open for writing only, and a folder never is."""
    flock = fcntl.flock

    def as_on_nfs(handle: int, how: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flock(handle, how)

    monkeypatch.setattr(fcntl, "flock", as_on_nfs)
    with (
        sole_owner(tmp_path / "run"),
        pytest.raises(ConfigError, match="another process is training this very run"),
        sole_owner(tmp_path / "run"),
    ):
        pass
    with sole_owner(tmp_path / "run"), in_turn(tmp_path, "demonstrations"):
        pass


def test_a_disk_without_locks_is_said_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none(handle: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    with caplog.at_level(logging.WARNING), sole_owner(tmp_path / "run"), in_turn(tmp_path, "demonstrations"):
        (tmp_path / "run" / "x").touch()
    assert "can't be locked (No locks available): don't start this run twice" in caplog.text
