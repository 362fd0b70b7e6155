"""Whole runs through `command.main`: what is left on disk, how they go on, and what a user is told when something is wrong."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest
import torch

from difftop.command import main
from difftop.data.replay import ReplayBuffer
from difftop.policy import load_policy
from difftop.run.checkpoint import load_checkpoint, restore_replay
from difftop.run.logger import CsvLog
from envs import EnvConfig, env_spec

SMALL = [
    "env=toy/point-mass",
    "run.frames=100",
    "run.seed_steps=50",
    "run.batch_size=8",
    "run.updates_per_step=1",
    "run.prioritized=true",
    "run.eval_every=50",
    "run.eval_episodes=2",
    "run.eval_envs=2",
    "run.checkpoint_every=50",
    "run.capacity=200",
    "agent.model.mlp_dim=16",
    "agent.model.encoder_dim=16",
    "agent.model.latent_dim=8",
    "agent.policy_gradient.mode=replay",
    "agent.policy_gradient.states=4",
    "env.video_size=64",
    "threads=1",
    "device=cpu",
]
ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path("toy-point-mass/difftop_rl/default/seed1")


def run(root: Path, *overrides: str) -> int:
    given = {override.partition("=")[0] for override in overrides}
    return main([*(o for o in SMALL if o.partition("=")[0] not in given), f"root={root}", *overrides])


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def without_clock(path: Path) -> list[dict[str, str]]:
    return [{key: value for key, value in row.items() if key != "wall_s"} for row in rows(path)]


def final_state(folder: Path) -> dict[str, Any]:
    checkpoint = load_checkpoint(folder)
    checkpoint.train_state["run"]["count"]["wall_s"] = 0.0
    layout = checkpoint.replay_state["layout"]
    spec = env_spec(EnvConfig(name="toy/point-mass"))
    replay = ReplayBuffer(spec, capacity=200, horizon=layout["horizon"], prioritized=layout["prioritized"])
    restore_replay(checkpoint, replay)
    rows = replay.read_rows(replay.begin, replay.end)
    return {
        "step": checkpoint.step,
        "model": checkpoint.model,
        "state": checkpoint.train_state,
        "replay": replay.state_dict(),
        "rows": rows,
    }


def assert_equal(a: Any, b: Any) -> None:
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_equal(x, y)
    else:
        assert a == b


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that went through."""
    root = tmp_path_factory.mktemp("finished")
    assert run(root) == 0
    return root / FOLDER


def test_a_run_leaves_what_the_readme_says(finished: Path) -> None:
    evals = rows(finished / "eval.csv")
    assert [int(row["env_frames"]) for row in evals] == [0, 50, 100]
    assert list(evals[0])[:7] == ["env_frames", "agent_steps", "return_mean", "return_std", "success_mean", "episodes", "wall_s"]
    metrics = rows(finished / "metrics.csv")
    assert list(metrics[0])[:3] == ["step", "reward", "seed"] and len(metrics) == 4
    assert float(metrics[-1]["train/policy_gradient_loss"]) == float(metrics[-1]["train/policy_gradient_loss"])
    assert list((finished / "tensorboard").glob("events*"))
    assert (finished / "curve.png").stat().st_size > 5000
    ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
    path = finished / "videos" / "eval_000000100.mp4"
    decoded = subprocess.run([ffmpeg, "-i", path, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], capture_output=True, check=True)
    video = np.frombuffer(decoded.stdout, np.uint8).reshape(-1, 64, 64, 3)
    assert len(video) == 26 and np.ptp(video) > 100
    assert json.loads((finished / "config.json").read_text())["env"]["name"] == "toy/point-mass"
    assert (finished / "checkpoints" / "last").resolve().name == "step_000000100"


def test_a_finished_run_can_be_made_longer(finished: Path, tmp_path: Path) -> None:
    root = finished.parents[3]
    assert run(root, "run.frames=150") == 0
    assert [int(row["env_frames"]) for row in rows(finished / "eval.csv")] == [0, 50, 100, 150]


def test_evaluation_of_a_checkpoint_is_repeatable_and_takes_another_planner(finished: Path) -> None:
    arguments = ["mode=eval", f"checkpoint={finished}", "run.eval_episodes=3", "device=cpu"]
    for _ in range(2):
        assert main(arguments) == 0
        folder = next((finished / "eval").glob("step_*-seed1"))
        played = rows(folder / "episodes.csv")
        assert len(played) == 3 and (folder / "episode0.mp4").exists()
    assert main([*arguments, "planner=none"]) == 0
    other = rows(folder.with_name(f"{folder.name}-planner-none") / "episodes.csv")
    assert [r["return"] for r in other] != [r["return"] for r in played] == [r["return"] for r in rows(folder / "episodes.csv")]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["env=dmc/walker-walk"], "env=dmc/walker-walk: the checkpoint is of env=toy/point-mass"),
        (["agent=tdmpc"], "agent=tdmpc: the checkpoint is of agent=difftop_rl"),
        (["head=qp"], "head=qp: is for agents that imitate"),
    ],
)
def test_what_a_checkpoint_is_not_is_refused(
    finished: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], message: str
) -> None:
    assert main(["mode=eval", f"checkpoint={finished}", "device=cpu", *overrides]) == 2
    assert message in capsys.readouterr().err


def test_the_same_folder_with_another_configuration_is_refused(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(finished.parents[3], "agent.loss.rho=0.7") == 2
    said = capsys.readouterr().err
    assert "agent.loss.rho was 0.9 and is 0.7" in said and "choose another name=NAME" in said


def saved_otherwise(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes the configuration of a run's last checkpoint, as if another version had written it."""
    last = (folder / "checkpoints" / "last").resolve()
    config = json.loads((last / "config.json").read_text())
    change(config)
    data = json.dumps(config, indent=2).encode()
    (last / "config.json").write_bytes(data)
    manifest = json.loads((last / "manifest.json").read_text())
    manifest.pop("sha256")  # of the manifest itself, which older versions didn't write
    manifest["files"]["config.json"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (last / "manifest.json").write_text(json.dumps(manifest))


def test_a_run_of_an_older_version_goes_on_and_can_be_played(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / FOLDER
    shutil.copytree(finished, folder, symlinks=True)

    def older(config: dict[str, Any]) -> None:
        del config["run"]["num_envs"], config["env"]["render_quality"], config["agent"]["loss"]["rho"], config["top"]["swept"]
        config["run"]["warmup"], config["agent"]["loss"]["bisimulation"] = 3, {"coef": 2.0}

    saved_otherwise(folder, older)
    expected = load_policy(finished).act({"state": np.zeros((1, 4), np.float32)})
    assert np.array_equal(load_policy(folder).act({"state": np.zeros((1, 4), np.float32)}), expected)
    assert main(["mode=eval", f"checkpoint={folder}", "run.eval_episodes=1", "run.video=false", "device=cpu"]) == 0
    assert [path.name.partition("-")[2] for path in (folder / "eval").iterdir() if "planner" not in path.name] == ["seed1"]
    assert run(tmp_path, "run.frames=200", "agent.loss.rho=0.7") == 2
    assert "(agent.loss.rho was 0.9 and is 0.7): choose another name=NAME" in capsys.readouterr().err
    caplog.clear()
    with caplog.at_level(logging.INFO, "difftop"):
        assert run(tmp_path, "run.frames=200") == 0
    said = [record.message for record in caplog.records if "another version" in record.message]
    assert len(said) == 1 and said[0].endswith("gone, and ignored: run.warmup, agent.loss.bisimulation.coef")
    assert [int(row["env_frames"]) for row in rows(folder / "eval.csv")][-1] == 200


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["run.capacity=10"], "run.capacity: replay capacity=10 can't hold one episode"),
        (["capture=true"], "capture=true: CUDA graphs need a CUDA device, and this run is on a CPU; use capture=auto"),
        (["capture=yes"], "capture=yes: must be auto | true | false"),
        (["device=cuda"], "device=cuda: torch sees no CUDA device here"),
        (["mode=eval"], "mode=eval needs checkpoint=PATH"),
        (["mode=eval", "checkpoint=/nowhere"], "there is no checkpoint in /nowhere"),
        (["checkpoint=/nowhere"], "checkpoint=/nowhere: is for mode=eval; training goes on by the same command line"),
        (["head=clip"], "head=clip: is for mode=eval"),
        (["dataset=/nowhere.hdf5"], "dataset=/nowhere.hdf5: is for agents that imitate"),
        (["episodes=5"], "episodes: this option is gone; run.demos is the number of demonstrations, of mode=demos too. Leave it"),
        (["root=/proc/nope"], "can't be made (No such file or directory); choose a folder to write to by root=FOLDER"),
    ],
)
def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], message: str) -> None:
    if "device=cuda" in overrides and torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    assert run(tmp_path, *overrides) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and message in said and said.count("\n") == 1


def test_a_broken_simulator_loses_nothing_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], finished: Path
) -> None:
    from envs.toy import PointMassSimulator

    step, steps = PointMassSimulator.step, 0

    def breaks(self: PointMassSimulator, action: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 230:
            raise RuntimeError("the constraint solver diverged")
        return step(self, action)

    with monkeypatch.context() as patch:
        patch.setattr(PointMassSimulator, "step", breaks)
        assert run(tmp_path) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "toy/point-mass" in said and "the constraint solver diverged" in said
    assert load_checkpoint(tmp_path / FOLDER).step == 50
    assert run(tmp_path) == 0
    assert [row["return_mean"] for row in rows(tmp_path / FOLDER / "eval.csv")] == [
        row["return_mean"] for row in rows(finished / "eval.csv")[:3]
    ]


def test_a_truncated_checkpoint_is_named(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(finished, tmp_path / FOLDER, symlinks=True)
    model = (tmp_path / FOLDER / "checkpoints" / "last").resolve() / "model.safetensors"
    model.write_bytes(model.read_bytes()[:100])
    assert run(tmp_path, "run.frames=200") == 2
    assert str(model) in capsys.readouterr().err


def test_a_checkpoint_of_another_agent_is_refused(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(finished, tmp_path / "toy-point-mass" / "tdmpc" / "default" / "seed1", symlinks=True)
    arguments = [o for o in SMALL if "policy_gradient" not in o]
    assert main([*arguments, f"root={tmp_path}", "agent=tdmpc"]) == 2
    assert "'difftop_rl', not 'tdmpc'" in capsys.readouterr().err


def command(root: Path, *overrides: str) -> list[str]:
    return [sys.executable, "train.py", *SMALL, f"root={root}", *overrides]


def wait_for(path: Path, process: subprocess.Popen[bytes], timeout_s: float = 120.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not path.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_run_that_is_killed_ends_as_one_that_is_not(tmp_path: Path, how: signal.Signals) -> None:
    more = ["run.frames=200", "run.checkpoint_every=25", "run.video=false"]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    subprocess.run(command(tmp_path / "whole", *more), cwd=ROOT, check=True, env=environment, capture_output=True)
    folder = tmp_path / "parts" / FOLDER
    for step in (75, 125):
        process = subprocess.Popen(command(tmp_path / "parts", *more), cwd=ROOT, env=environment, stderr=subprocess.PIPE)
        wait_for(folder / "checkpoints" / f"step_{step:09d}", process)
        process.send_signal(how)
        process.communicate(timeout=300)
        assert process.returncode == (-9 if how == signal.SIGKILL else 130)
        if how != signal.SIGKILL:
            assert load_checkpoint(folder).step >= step
    subprocess.run(command(tmp_path / "parts", *more), cwd=ROOT, check=True, env=environment, capture_output=True)
    whole = tmp_path / "whole" / FOLDER
    assert_equal(final_state(folder), final_state(whole))
    for table in ("eval.csv", "metrics.csv"):
        assert without_clock(folder / table) == without_clock(whole / table)


def test_a_run_that_was_copied_without_its_links_goes_on(finished: Path, tmp_path: Path) -> None:
    """scp and clouds write the folders that links lead to."""
    folder = tmp_path / FOLDER
    shutil.copytree(finished, folder, symlinks=False)
    assert (folder / "checkpoints" / "last").is_dir() and not (folder / "checkpoints" / "last").is_symlink()
    frames = load_checkpoint(folder).step + 50
    assert run(tmp_path, f"run.frames={frames}", "run.video=false") == 0
    assert (folder / "checkpoints" / "last").readlink() == Path(f"step_{frames:09d}")
    assert not list((folder / "checkpoints").glob(".*"))


def test_no_saved_file_names_a_place_of_this_machine(finished: Path) -> None:
    root = str(finished.parents[3])
    texts = [path for path in finished.rglob("*") if path.suffix in (".json", ".csv") and not path.is_symlink()]
    assert len(texts) > 4
    places = [path for path in texts if root in path.read_text() and path.name != "config.json"]
    assert not places  # config.json tells `root`, which a run may go on without


@pytest.mark.parametrize("row", [2, 5])
def test_a_disk_that_fills_up_while_a_row_is_written_loses_nothing(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], row: int
) -> None:
    write, written, before = CsvLog.write, 0, set(threading.enumerate())

    def full(self: CsvLog, cells: Any) -> None:
        nonlocal written
        written += 1
        if written == row:
            with self.path.open("a") as file:
                file.write("50,1.2")  # as far as it went
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, cells)

    with monkeypatch.context() as patch:
        patch.setattr(CsvLog, "write", full)
        assert run(tmp_path) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "No space left on device; the last checkpoint is whole: mend this and run the same command again" in said
    assert set(threading.enumerate()) <= before  # nothing of a run that has ended goes on writing
    assert run(tmp_path) == 0
    mine = without_clock(tmp_path / FOLDER / "eval.csv")
    assert mine == without_clock(finished / "eval.csv")[: len(mine)] and len(mine) == 3


def test_a_folder_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(self: Path, *arguments: Any, **options: Any) -> int:
        raise PermissionError(errno.EROFS, os.strerror(errno.EROFS), str(self))

    monkeypatch.setattr(Path, "write_text", refused)
    assert run(tmp_path) == 2
    assert "config.json: Read-only file system; the last checkpoint is whole: mend this" in capsys.readouterr().err


def test_an_interrupt_before_the_run_can_listen_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("difftop.run.reinforce.run_folder", interrupted)
    assert run(tmp_path) == 130
    assert (
        capsys.readouterr().err == "stopped at once: what was saved before is whole, and the same command goes on from there.\n"
    )
