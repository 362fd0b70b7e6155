"""Whole imitation runs through `command.main`, on the toy task: what is left on disk, how they go on, what a user is told."""

from __future__ import annotations

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import imageio_ffmpeg
import numpy as np
import pytest
import torch

from difftop.command import main
from difftop.run.checkpoint import load_checkpoint
from difftop.run.imitation_report import in_metres
from difftop.run.protocols import PROTOCOLS

SMALL = [
    "agent=leto",
    "env=toy/reach",
    "env.video_size=64",
    "agent.hidden_dim=16",
    "agent.layers=1",
    "agent.window=4",
    "agent.horizon=3",
    "agent.training.learning_rate=0.003",
    "agent.limits.free=[]",
    "agent.limits.acceleration=0.1",
    "run.demos=8",
    "run.grad_steps=40",
    "run.batch_size=16",
    "run.eval_every=20",
    "run.checkpoint_every=15",
    "run.log_every=10",
    "run.select_episodes=3",
    "run.eval_episodes=4",
    "run.eval_envs=2",
    "threads=1",
    "device=cpu",
]
FOLDER = Path("runs/toy-reach/leto/default/seed1")


def run(root: Path, *overrides: str) -> int:
    given = {override.partition("=")[0] for override in overrides}
    usual = [option for option in SMALL if option.partition("=")[0] not in given]
    return main([*usual, f"root={root / 'runs'}", f"data={root / 'data'}", *overrides])


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that went through."""
    root = tmp_path_factory.mktemp("imitation")
    assert run(root) == 0
    return root


def test_a_run_leaves_tables_checkpoints_and_a_report(finished: Path) -> None:
    folder = finished / FOLDER
    assert [int(row["agent_steps"]) for row in rows(folder / "eval.csv")] == [20, 40]
    trained = [row for row in rows(folder / "metrics.csv") if row["train/loss"]]
    assert [int(row["step"]) for row in trained] == [10, 20, 30, 40]
    assert float(trained[-1]["train/loss"]) < float(trained[0]["train/loss"])
    assert {"best", "last"} <= {path.name for path in (folder / "checkpoints").iterdir()}
    report = folder / "evaluation"
    episodes = rows(report / "episodes.csv")
    summary = json.loads((report / "summary.json").read_text())
    assert len(episodes) == 4 and summary["protocol"].startswith("difftop:") and summary["head"] == "qp"
    solved = np.mean([int(row["success"]) for row in episodes])
    assert summary["metrics"]["success"] == solved and 0 <= summary["metrics"]["success_low"] <= solved
    assert summary["metrics"]["violations_acceleration"] == summary["metrics"]["violations_velocity"] == 0
    assert (report / "actions.png").stat().st_size > 5000
    frames, _ = imageio_ffmpeg.count_frames_and_secs(str(report / "episode0.mp4"))
    assert frames == 41


def test_a_run_that_is_killed_while_it_reports_makes_the_whole_report(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        """Stands for SIGKILL."""

    def killed(*_: Any) -> None:
        raise Killed

    shutil.copytree(finished / "data", tmp_path / "data")
    folder, whole = tmp_path / FOLDER / "evaluation", finished / FOLDER / "evaluation"
    with monkeypatch.context() as patch:
        patch.setattr("difftop.run.imitation_report.save_video", killed)
        with pytest.raises(Killed):
            run(tmp_path)
    assert not (folder / "summary.json").exists()
    assert run(tmp_path) == 0
    assert {path.name for path in folder.iterdir()} == {path.name for path in whole.iterdir()}
    for name in ("episodes.csv", "summary.json"):
        assert (folder / name).read_text() == (whole / name).read_text()


def test_reported_episodes_never_choose_the_checkpoint(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import difftop.run.imitate as imitate

    seen: list[list[int]] = []
    original = imitate.roll_out
    monkeypatch.setattr(
        imitate, "roll_out", lambda envs, actor, seeds, **kw: (seen.append(list(seeds)), original(envs, actor, seeds, **kw))[1]
    )
    assert run(finished, "name=seeds") == 0
    *selection, reported = seen
    assert len(selection) == 2 and selection[0] == selection[1] and not set(selection[0]) & set(reported)


@pytest.mark.parametrize("every", [15, 13])
def test_stopped_and_resumed_equals_uninterrupted(finished: Path, tmp_path: Path, every: int) -> None:
    shutil.copytree(finished / "data", tmp_path / "data")
    assert (
        run(tmp_path, "run.grad_steps=30", f"run.checkpoint_every={every}", "run.eval_episodes=0", "run.select_episodes=0") == 0
    )
    assert run(tmp_path, "name=whole", "run.eval_episodes=0", "run.select_episodes=0") == 0
    a = load_checkpoint(tmp_path / FOLDER)
    assert a.step == 30
    assert run(tmp_path, f"run.checkpoint_every={every}", "run.eval_episodes=0", "run.select_episodes=0") == 0
    a, b = load_checkpoint(tmp_path / FOLDER), load_checkpoint(tmp_path / str(FOLDER).replace("default", "whole"))
    assert a.step == b.step == 40 and a.model.keys() == b.model.keys()
    assert all(torch.equal(a.model[key], b.model[key]) for key in a.model)
    assert_equal(a.train_state["agent"], b.train_state["agent"])
    losses = [[row["train/loss"] for row in rows(x.path.parents[1] / "metrics.csv")] for x in (a, b)]
    assert losses[0][-1] == losses[1][-1]


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


def test_evaluation_is_repeatable_and_takes_another_head(finished: Path) -> None:
    folder = finished / FOLDER
    arguments = [
        "mode=eval",
        f"checkpoint={folder / 'checkpoints' / 'best'}",
        "run.eval_episodes=3",
        "run.eval_envs=2",
        "device=cpu",
    ]
    played = []
    for _ in range(2):
        assert main(arguments) == 0
        (report,) = (path for path in (folder / "eval").iterdir() if "head" not in path.name)
        played.append((report / "episodes.csv").read_text())
    assert played[0] == played[1] and len(rows(report / "episodes.csv")) == 3
    assert main([*arguments, "head=none"]) == 0
    (free,) = (folder / "eval").glob("*head-none")
    assert (free / "episodes.csv").read_text() != played[0]
    assert json.loads((free / "summary.json").read_text())["head"] == "none"


def test_a_protocol_sets_episodes_their_length_and_seeds(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PROTOCOLS, "leto_ph", replace(PROTOCOLS["leto_ph"], episode_steps={"toy/reach": 30}))  # type: ignore[arg-type]
    arguments = [
        "mode=eval",
        f"checkpoint={finished / FOLDER}",
        "run.protocol=leto_ph",
        "run.eval_episodes=-1",
        "run.video=false",
    ]
    assert main([*arguments, "device=cpu"]) == 0
    (report,) = (finished / FOLDER / "eval").glob("*-protocol-leto_ph-episode_steps-30")
    played = rows(report / "episodes.csv")
    assert [int(row["env_seed"]) for row in played] == list(range(100, 125)) and {row["steps"] for row in played} == {"30"}
    said = json.loads((report / "summary.json").read_text())["protocol"]
    assert said.startswith("leto_ph: LeTO") and said.endswith("played: 25 episodes of 30 actions")


def test_demonstrations_can_be_made_alone_and_trained_on_without_a_simulator(tmp_path: Path) -> None:
    assert main(["mode=demos", "env=toy/reach", "run.demos=5", "seed=3", f"data={tmp_path}"]) == 0
    path = tmp_path / "toy-reach" / "expert-5-seed3.hdf5"
    assert path.exists()
    other = ["run.expert_noise=0.3", "run.expert_labels=intended"]
    assert main(["mode=demos", "env=toy/reach", "run.demos=5", "seed=3", f"data={tmp_path}", *other]) == 0
    assert (path.parent / "expert-noise0.3-intended-5-seed3.hdf5").exists()
    assert run(tmp_path, f"dataset={path}", "run.eval_episodes=0", "run.select_episodes=0") == 0
    folder = tmp_path / FOLDER
    assert not (folder / "evaluation").exists() and (folder / "checkpoints" / "best").exists()


def test_without_a_simulator_observations_are_named_and_must_be_the_simulators(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def wider(file: Any) -> None:
        for demo in file["data"].values():
            demo["obs/extra"] = np.zeros((len(demo["actions"]), 2))

    path = edited(next((finished / "data").rglob("*.hdf5")), tmp_path / "wide.hdf5", wider)
    alone = [f"dataset={path}", "run.eval_episodes=0", "run.select_episodes=0", "run.grad_steps=2"]
    assert run(tmp_path, *alone, "name=all") == 0
    evaluated = ["mode=eval", "run.eval_episodes=2", "run.video=false", "device=cpu"]
    assert main([*evaluated, f"checkpoint={tmp_path / str(FOLDER).replace('default', 'all')}"]) == 2
    assert "was trained on other observations than toy/reach has here, hand_pos, target_pos" in capsys.readouterr().err
    assert run(tmp_path, *alone, "name=two", "agent.obs_keys=[target_pos,hand_pos]") == 0
    assert main([*evaluated, f"checkpoint={tmp_path / str(FOLDER).replace('default', 'two')}"]) == 0
    assert run(tmp_path, *alone, "name=three", "env.obs=image") == 2
    assert "agent.obs_keys must name what to look at" in capsys.readouterr().err


def test_a_run_with_a_base_goes_on_without_the_base_s_run(tmp_path: Path) -> None:
    short = ["run.eval_episodes=0", "run.select_episodes=0", "agent.horizon=3"]
    base = ["agent=bc", "agent.hidden_dims=[16]", "run.grad_steps=3", *short]
    keep = [option for option in SMALL if option.startswith(("env", "run.", "threads", "device", "agent.limits"))]

    def started(*overrides: str) -> int:
        names = {override.partition("=")[0] for override in overrides}
        usual = [option for option in keep if option.partition("=")[0] not in names]
        return main([*usual, f"root={tmp_path / 'runs'}", f"data={tmp_path / 'data'}", *overrides])

    assert started(*base) == 0
    folder = tmp_path / "runs/toy-reach/bc/default/seed1"
    upper = ["agent=residual", "agent.base=bc", f"agent.base_checkpoint={folder}", "agent.obs_keys=[hand_pos]", *short]
    assert started(*upper, "run.grad_steps=2", "run.select_episodes=1") == 0  # which looks at less than its base does
    shutil.rmtree(folder)
    assert started(*upper, "run.grad_steps=4", "run.select_episodes=1") == 0


def edited(path: Path, to: Path, edit: Any) -> Path:
    shutil.copy(path, to)
    with h5py.File(to, "r+") as file:
        edit(file)
    return to


def test_mistakes_are_one_sentence_each(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = next((finished / "data").rglob("*.hdf5"))

    def renamed(file: Any) -> None:
        args = json.loads(file["data"].attrs["env_args"])
        file["data"].attrs["env_args"] = json.dumps(args | {"env_name": "other"})

    def old(file: Any) -> None:
        args = json.loads(file["data"].attrs["env_args"])
        file["data"].attrs["env_args"] = json.dumps(args | {"env_version": "0.1"})

    def nan(file: Any) -> None:
        file["data/demo_0/actions"][0, 0] = np.nan

    def blind(file: Any) -> None:
        del file["data/demo_0/obs/target_pos"]

    cases = {
        ("env=toy/reech",): "did you mean|toy/reach",
        ("env=dmc/walker-walk",): r"dmc/walker-walk has no scripted expert that makes them \(it gives reward\)",
        ("agent=difftop_rl",): r"learns from rewards; robomimic/lift gives none \(it gives states, success\)",
        ("dataset=nowhere.hdf5",): "nowhere.hdf5: no such file",
        ("preset=cpu",): "preset=cpu",
        ("agent.horizonn=3",): "agent.horizon",
        ("run.protocol=letho",): "run.protocol",
        ("agent.limits.free=[7]", "name=free"): r"limits.free=\[7\]: there are 2 actions",
        ("agent.window=500", "agent.pad=false", "name=long"): "no window of 502 steps fits",
        (f"dataset={edited(good, tmp_path / 'a.hdf5', renamed)}",): "was recorded in other, but env=toy/reach is reach",
        (f"dataset={edited(good, tmp_path / 'c.hdf5', nan)}",): "demo_0/actions",
        (f"dataset={edited(good, tmp_path / 'd.hdf5', blind)}",): "target_pos",
        ("mode=eval",): "mode=eval needs checkpoint=PATH",
        ("agent.hidden_dim=17",): "agent.hidden_dim was 16 and is 17.*choose another name",
    }
    for overrides, message in cases.items():
        plain = [o for o in overrides if o != "agent=difftop_rl"]
        status = main(["agent=difftop_rl", "env=robomimic/lift"]) if len(plain) < len(overrides) else run(finished, *overrides)
        said = capsys.readouterr().err
        assert status == 2 and said.startswith("error: ") and said.count("\n") == 1, (overrides, said)
        assert re.search(message, said, re.IGNORECASE), (overrides, said)


def test_excess_over_a_position_limit_is_told_in_metres() -> None:
    given = {"excess_position": 0.5, "excess_position_to_success": 0.1, "excess_velocity": 0.3, "violations_position": 7.0}
    expected = {"excess_position": 0.025, "excess_position_to_success": 0.005, "excess_velocity": 0.3, "violations_position": 7.0}
    assert in_metres(given, 0.05) == pytest.approx(expected)
