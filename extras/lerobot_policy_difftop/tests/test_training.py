"""LeRobot trains, saves and loads the policies; skipped where lerobot isn't installed."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
pytest.importorskip("lerobot")
pytest.importorskip("datasets")
sys.path[:0] = [str(Path(__file__).parents[1] / "src"), str(Path(__file__).parents[3])]

SMALL = {
    "leto": ["agent.window=3", "agent.horizon=4", "agent.hidden_dim=8", "agent.limits.free=[]"],
    "diffusion": ["agent.window=2", "agent.horizon=8", "agent.execute=4", "agent.widths=[8,8]", "agent.pad=mask"],
    "bc": [
        "agent.window=2",
        "agent.hidden_dims=[8]",
        "agent.training.ema=0.9",
        "agent.encoder.network=small",
        "agent.encoder.crop=0",
    ],
    "difftop_il": ["agent.horizon=3", "agent.model.encoder_dims=[8]"],
}


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three short episodes of Push-T, with images."""
    from difftop.command import main
    from tests.datasets.files import zarr_folder

    folder = tmp_path_factory.mktemp("data")
    zarr_folder(folder / "pusht.zarr", (11, 7, 14))
    assert main(["mode=convert", f"dataset={folder / 'pusht.zarr'}", f"out={folder / 'set'}"]) == 0
    return folder / "set"


def samples(config: Any, root: Path) -> Any:
    """LeRobot's data set as its training makes it for a policy."""
    from lerobot.datasets.factory import resolve_delta_timestamps
    from lerobot.datasets.lerobot_dataset import LeRobotDataset, LeRobotDatasetMetadata

    meta = LeRobotDatasetMetadata("difftop/test", root=root)
    return LeRobotDataset("difftop/test", root=root, delta_timestamps=resolve_delta_timestamps(config, meta))


@pytest.mark.parametrize(
    ("agent", "keys"), [("leto", "state"), ("diffusion", "state"), ("bc", "state,img_image"), ("difftop_il", "state")]
)
def test_windows_are_those_that_difftop_trains_on(data_set: Path, agent: str, keys: str) -> None:
    from lerobot.datasets.sampler import EpisodeAwareSampler
    from lerobot_policy_difftop import DifftopConfig, DifftopPolicy

    from difftop.data.files import open_demonstrations
    from difftop.data.windows import Windows

    config = DifftopConfig(agent=agent, options=[*SMALL[agent], f"agent.obs_keys=[{keys}]"], device="cpu")
    found = samples(config, data_set)
    policy = DifftopPolicy(config, dataset_meta=found.meta)
    shape = policy.network.windows
    ours = Windows(open_demonstrations(data_set, obs_keys=keys.split(",")), **vars(shape))
    episodes = found.meta.episodes
    index = list(
        EpisodeAwareSampler(
            episodes["dataset_from_index"], episodes["dataset_to_index"], drop_n_last_frames=config.drop_n_last_frames
        )
    )
    assert len(index) == len(ours)
    received: list[Any] = []
    policy.network.loss = lambda batch, _: (received.append(batch), (torch.zeros(()), {}))[1]
    policy(torch.utils.data.default_collate([found[i] for i in index]))
    (theirs,), wanted = received, ours.gather(torch.arange(len(ours)))
    torch.testing.assert_close(theirs.actions, wanted.actions, rtol=0, atol=1e-6)
    assert torch.equal(theirs.mask, wanted.mask) and theirs.obs.keys() == wanted.obs.keys()
    for key, values in wanted.obs.items():
        assert theirs.obs[key].dtype == values.dtype and torch.equal(theirs.obs[key], values), key


@pytest.mark.parametrize("agent", ["leto", "bc"])
def test_lerobot_trains_saves_and_goes_on(data_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, agent: str) -> None:
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.policies.factory import make_pre_post_processors
    from lerobot.scripts import lerobot_train
    from lerobot_policy_difftop import DifftopPolicy

    options = str(SMALL[agent]).replace("'", '"')
    common = [f"--dataset.root={data_set}", "--dataset.repo_id=difftop/test", "--num_workers=0", "--batch_size=8", "--log_freq=1"]
    common += ["--policy.type=difftop", f"--policy.agent={agent}", f"--policy.options={options}", "--policy.device=cpu"]
    folder = tmp_path / "out"
    arguments = [*common, f"--output_dir={folder}", "--steps=4", "--save_freq=4", "--wandb.enable=false"]
    monkeypatch.setattr(sys, "argv", ["lerobot-train", *arguments])
    lerobot_train.train()
    saved = folder / "checkpoints" / "last" / "pretrained_model"
    monkeypatch.setattr(
        sys,
        "argv",
        ["lerobot-train", f"--config_path={saved / 'train_config.json'}", "--resume=true", "--steps=6", "--save_freq=6"],
    )
    lerobot_train.train()
    config = PreTrainedConfig.from_pretrained(saved)
    policy = DifftopPolicy.from_pretrained(saved, config=config)
    assert int(policy.updates) == 6
    again = DifftopPolicy.from_pretrained(saved)
    before, after = make_pre_post_processors(
        config,
        str(saved),
        preprocessor_overrides={"device_processor": {"device": "cpu"}, "rename_observations_processor": {"rename_map": {}}},
    )
    seen = before({"observation.state": torch.full((2, 5), 200.0)})
    actions = after(policy.select_action(seen))
    assert torch.equal(actions, after(again.select_action(seen))) and actions.shape == (2, 2)
    low, high = (torch.tensor(bound) for bound in (policy.recipe.spec.action_low, policy.recipe.spec.action_high))
    assert (actions >= low - 1e-2).all() and (actions <= high + 1e-2).all()


def test_a_run_becomes_a_folder_for_lerobot(data_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from lerobot_policy_difftop import DifftopPolicy
    from lerobot_policy_difftop.__main__ import main as export

    from difftop import load_policy
    from difftop.command import main

    short = [*SMALL["leto"], "run.grad_steps=2", "device=cpu", f"root={tmp_path / 'runs'}", "agent.obs_keys=[state]"]
    assert main(["agent=leto", f"dataset={data_set}", *short]) == 0
    run = tmp_path / "runs/data-set/leto/default/seed1"
    assert export([str(run), str(tmp_path / "out")]) == 0
    policy, ours = DifftopPolicy.from_pretrained(tmp_path / "out"), load_policy(run, "cpu")
    rows = np.random.default_rng(0).uniform(0, 500, (4, 3, 5)).astype(np.float32)
    for row in rows:
        theirs = policy.select_action({"observation.state": torch.from_numpy(row)})
        np.testing.assert_array_equal(theirs.numpy(), ours.act({"state": row}))
    assert export([str(run), str(tmp_path / "out")]) == 2 and "it holds a policy already" in capsys.readouterr().err
    assert export([str(tmp_path), str(tmp_path / "none")]) == 2 and "checkpoint" in capsys.readouterr().err


def test_mistakes_are_told(data_set: Path) -> None:
    from lerobot_policy_difftop import DifftopConfig, DifftopPolicy

    from difftop.options import ConfigError

    with pytest.raises(ValueError, match=r"policy.checkpoint is empty: .*--policy.path"):
        DifftopPolicy(DifftopConfig(device="cpu"))
    with pytest.raises(ConfigError, match=r"agent.horizn: unknown option. Did you mean 'agent.horizon'"):
        _ = DifftopConfig(agent="leto", options=["agent.horizn=3"], device="cpu").action_delta_indices
    with pytest.raises(ConfigError, match=r"agent=tdmpc: learns from rewards; policy.agent must be one of .*leto"):
        DifftopPolicy(
            DifftopConfig(agent="tdmpc", device="cpu"), dataset_meta=samples(DifftopConfig(device="cpu"), data_set).meta
        )
