"""Two processes never write into one run folder."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from difftop.options import ConfigError
from difftop.run.ownership import sole_owner
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
