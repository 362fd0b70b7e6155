"""Files that people bring, through `command.main`: all of them is used, what isn't is said, and mistakes are one sentence."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from difftop.command import main, make_factories, make_registry
from difftop.data.absolute import HAND
from difftop.data.demonstrations import DemonstrationError
from difftop.data.lerobot_write import LeRobotWriter
from difftop.data.robomimic import Recording, write_demonstrations
from difftop.options import ConfigError
from difftop.policy import load_policy
from difftop.run.checkpoint import load_checkpoint
from difftop.run.cli import composed
from difftop.run.imitate import recorded_task
from difftop.run.settings import in_new_names
from tests.data.test_absolute import write as write_poses
from tests.datasets.files import episodes, zarr_folder

ENV_ARGS = {"env_name": "reach", "type": 2, "env_version": "1.0", "env_kwargs": {"suite": "toy", "obs": "low_dim"}}
OFF = ["run.select_episodes=0", "run.eval_episodes=0"]
TINY = ["agent=bc", "agent.hidden_dims=[8]", "run.grad_steps=2", "run.batch_size=8", "threads=1", "device=cpu"]


def write(path: Path, count: int = 6, env_args: dict[str, Any] = ENV_ARGS, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)

    def episode(steps: int) -> Recording:
        obs = {"hand_pos": rng.uniform(-1, 1, (steps, 2)), "target_pos": rng.uniform(-1, 1, (steps, 2))}
        return Recording(obs, rng.uniform(-1, 1, (steps, 2)), np.zeros(steps))

    masks = {"better": list(range(0, count, 2))}
    write_demonstrations(path, (episode(20 + k % 3) for k in range(count)), env_args, masks)
    return path


def run(root: Path, *overrides: str) -> int:
    return main([*TINY, f"root={root / 'runs'}", f"data={root / 'data'}", *overrides])


def test_all_of_a_file_is_used_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "people.hdf5", 200)
    with caplog.at_level("INFO", logger="difftop"):
        assert run(tmp_path, f"dataset={path}", *OFF) == 0
        assert f"{path}: all 200 demonstrations used, 180 trained on and 20 held out" in caplog.text
        assert (tmp_path / "runs/toy-reach/bc").is_dir()  # the file's own environment, without env=
        caplog.clear()
        assert run(tmp_path, f"dataset={path}", *OFF, "run.demos=50", "name=fifty") == 0
        assert "the first 50 demonstrations used, 45 trained on and 5 held out" in caplog.text
        caplog.clear()
        assert run(tmp_path, f"dataset={path}", *OFF, "dataset.filter=better", "name=better") == 0
        assert "all 100 demonstrations used" in caplog.text


def test_several_files_with_shares(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    odd = tmp_path / "a b (1)"
    odd.mkdir()
    paths = write(odd / "one.hdf5", 4), write(tmp_path / "two.hdf5", 6, seed=1)
    with caplog.at_level("INFO", logger="difftop"):
        assert run(tmp_path, f"dataset=[{paths[0]},{paths[1]}]", "dataset.weights=[3,1]", *OFF) == 0
    assert "one.hdf5 and 1 more: all 10 demonstrations used" in caplog.text
    saved = load_checkpoint(tmp_path / "runs/toy-reach/bc/default/seed1").config["top"]["dataset"]
    assert saved["path"] == [str(path) for path in paths] and saved["weights"] == [3.0, 1.0]


def test_what_is_wrong_with_a_file_is_counted_and_named(tmp_path: Path, capsys: Any, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "people.hdf5")
    with h5py.File(path, "r+") as file:
        file["data/demo_3/actions"][2, 0] = 1.3
        file["data/demo_5/obs/hand_pos"][4] = np.nan
    assert run(tmp_path, f"dataset={path}", *OFF) == 2
    assert "dataset.bad=skip" in capsys.readouterr().err
    assert run(tmp_path, f"dataset={path}", *OFF, "dataset.bad=skip") == 0
    assert "1 left out, actions beyond the limits: demo_3" in caplog.text and "1 left out, NaN rows: demo_5" in caplog.text
    assert run(tmp_path, f"dataset={path}", *OFF, "dataset.bad=maybe", "name=m") == 2
    assert "dataset.bad=maybe: must be stop | skip | clip" in capsys.readouterr().err


def test_another_environment_is_refused_with_evaluation_off_too(tmp_path: Path, capsys: Any) -> None:
    path = write(tmp_path / "people.hdf5", env_args={**ENV_ARGS, "env_name": "point-mass"})
    for more in ((), OFF):
        assert run(tmp_path, f"dataset={path}", "env=toy/reach", *more) == 2
        assert re.search("was recorded in point-mass, but env=toy/reach is reach", capsys.readouterr().err)


def test_another_version_is_trained_on_and_says_what_evaluation_needs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "people.hdf5", env_args={**ENV_ARGS, "env_version": "0.9"})
    assert run(tmp_path, f"dataset={path}") == 0
    assert re.search(
        r"version 0\.9 .* and 1\.0 is installed: it is trained on and not evaluated.*record the demonstrations anew", caplog.text
    )
    folder = tmp_path / "runs/toy-reach/bc/default/seed1"
    assert load_checkpoint(folder).step == 2 and not (folder / "evaluation").exists()
    assert run(tmp_path, f"dataset={path}", "run.grad_steps=4") == 0  # goes on
    assert main(["mode=eval", f"checkpoint={folder}", "run.eval_episodes=1", "run.video=false", "device=cpu"]) == 0


def test_a_robot_of_ones_own_needs_no_simulator(tmp_path: Path, capsys: Any) -> None:
    path = write(tmp_path / "kitchen.hdf5", env_args={**ENV_ARGS, "env_name": "MyRobot", "env_kwargs": {}})
    assert run(tmp_path, f"dataset={path}") == 0
    folder = tmp_path / "runs/data-MyRobot/bc/default/seed1"
    assert load_checkpoint(folder).spec.name == "data/MyRobot"
    assert main(["mode=eval", f"checkpoint={folder}", "run.eval_episodes=1", "device=cpu"]) == 2
    assert "data/MyRobot: no simulator of it is known" in capsys.readouterr().err


def test_paths_that_are_none_are_one_sentence(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "folder").mkdir()
    for path, message in (("nowhere.hdf5", "nowhere.hdf5: no such file or folder"), (tmp_path / "folder", "no format knows")):
        assert run(tmp_path, f"dataset={path}", *OFF) == 2
        said = capsys.readouterr().err
        assert message in said and said.count("\n") == 1


def test_names_of_before_are_known(tmp_path: Path) -> None:
    path = write(tmp_path / "people.hdf5")
    settings = composed(make_registry(), ["agent=bc", f"dataset={path}", "run.filter_key=better"])
    assert settings.top.dataset.filter == "better" and settings.env.name == "toy/reach"
    old = settings.plain()
    old["top"]["dataset"], old["run"]["filter_key"] = str(path), "better"
    assert in_new_names(old)["top"] == settings.plain()["top"] and "filter_key" not in in_new_names(old)["run"]


def test_weights_are_one_for_each_path(tmp_path: Path) -> None:
    path = write(tmp_path / "people.hdf5")
    with pytest.raises(ConfigError, match=r"dataset\.weights=\[1\.0, 2\.0\]: one is needed for each of the 1 paths"):
        composed(make_registry(), ["agent=bc", f"dataset={path}", "dataset.weights=[1,2]"])


def test_actions_in_units_of_their_own_are_learnt_and_acted_in(tmp_path: Path, capsys: Any) -> None:
    made = zarr_folder(tmp_path / "pusht.zarr")
    assert run(tmp_path, f"dataset={tmp_path / 'pusht.zarr'}") == 0
    policy = load_policy(tmp_path / "runs/data-pusht/bc/default/seed1")
    low, high = made["action"].min(0), made["action"].max(0)
    np.testing.assert_allclose(policy.spec.action_low, low, rtol=1e-6)
    action = policy.act({"state": made["state"][0]})
    assert action.shape == (2,) and (action >= low - 1e-3).all() and (action <= high + 1e-3).all()


def test_programs_with_a_loop_of_their_own_get_what_a_run_would_train_on(tmp_path: Path, capsys: Any) -> None:
    made = zarr_folder(tmp_path / "pusht.zarr")
    overrides = ["agent=leto", "agent.limits.free=[]", "agent.obs_keys=[state]"]
    demonstrations, spec = recorded_task(tmp_path / "pusht.zarr", overrides, make_registry(), make_factories())
    assert len(demonstrations) == 3 and spec.shapes == {"state": (5,)} and spec.action_dim == 2
    np.testing.assert_allclose(spec.action_low, made["action"].min(0))
    np.testing.assert_allclose(spec.action_high, made["action"].max(0))
    with pytest.raises(DemonstrationError, match="no such file or folder"):
        recorded_task(tmp_path / "none", overrides, make_registry(), make_factories())


def test_a_lerobot_data_set_trains_with_images(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    writer = LeRobotWriter(tmp_path / "set", 10.0)
    for episode in episodes((20, 24, 22)):
        large = episode.obs["top_image"].repeat(3, 1).repeat(3, 2)
        writer.add(replace(episode, success=None, obs={**episode.obs, "top_image": large}))
    writer.finish(None, {})
    look = ["env.obs=image", "agent.obs_keys=[state,top_image]"]
    assert run(tmp_path, f"dataset={tmp_path / 'set'}", *look) == 0
    folders = [folder.parent for folder in (tmp_path / "runs").rglob("checkpoints")]
    spec = load_checkpoint(folders[0]).spec
    assert spec.name == "data/set" and spec.shapes["top_image"] == (3, 48, 72) and spec.control_dt_s == 0.1


def test_absolute_poses_are_learnt_and_acted_in_metres(tmp_path: Path, capsys: Any, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "poses.hdf5"
    made = np.concatenate(list(write_poses(path, arms=2).values()))
    with caplog.at_level("INFO", logger="difftop"):
        assert run(tmp_path, f"dataset={path}", "dataset.actions=actions_abs", *OFF) == 0
    assert "actions are absolute poses of 2 arms, seen from the world" in caplog.text
    policy = load_policy(tmp_path / "runs/robomimic-lift/bc/default/seed1")
    assert policy.spec.poses == 2 and policy.spec.action_dim == 20
    action = policy.act({"object": np.zeros((3, 10), np.float32), HAND: np.zeros((3, 3), np.float32)})
    assert action.shape == (3, 14) and action.dtype == np.float32
    for arm in (0, 7):
        low, high = made[:, arm : arm + 3].min(0), made[:, arm : arm + 3].max(0)
        assert (action[:, arm : arm + 3] >= low - 1e-5).all() and (action[:, arm : arm + 3] <= high + 1e-5).all()
        assert (np.linalg.norm(action[:, arm + 3 : arm + 6], axis=1) <= np.pi + 1e-6).all()


def test_limits_on_displacements_are_refused_on_poses(tmp_path: Path, capsys: Any) -> None:
    write_poses(tmp_path / "poses.hdf5")
    words = [f"dataset={tmp_path / 'poses.hdf5'}", "dataset.actions=actions_abs", *OFF, "threads=1", "device=cpu"]
    words += ["run.grad_steps=2", "run.batch_size=4", "agent.hidden_dim=8", "agent.window=3", "agent.horizon=2"]
    for agent, head in (("leto", "qp"), ("leto", "clip"), ("rnn_gmm", "clip")):
        assert main([f"agent={agent}", f"agent.head={head}", *words, f"root={tmp_path}"]) == 2
        said = capsys.readouterr().err
        assert f"head={head}: its limits are of displacements per step" in said and said.count("\n") == 1
    assert main(["agent=leto", "agent.head=none", *words, f"root={tmp_path}"]) == 0


def test_files_of_poses_and_displacements_do_not_mix(tmp_path: Path, capsys: Any) -> None:
    write_poses(tmp_path / "a.hdf5", controller={"control_delta": False}, key="actions")
    write_poses(tmp_path / "b.hdf5")
    assert run(tmp_path, f"dataset=[{tmp_path / 'a.hdf5'},{tmp_path / 'b.hdf5'}]", *OFF) == 2
    assert "a.hdf5 are absolute poses, those of" in capsys.readouterr().err
    assert run(tmp_path, f"dataset={tmp_path / 'a.hdf5'}", "dataset.poses=false", *OFF) == 2
    assert "[-1, 1]" in capsys.readouterr().err
