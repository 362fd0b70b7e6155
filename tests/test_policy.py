"""The library's door: train, load and act from Python, for every agent, from the checkpoint's folder alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import difftop
from difftop.options import ConfigError
from difftop.run.checkpoint import CheckpointError, save_checkpoint
from difftop.types import EnvSpec, ObsSpec

ROOT = Path(__file__).resolve().parents[1]
REWARDS = {"tdmpc": {}, "tdmpc2": {"members": 2}, "difftop_rl": {}}
SIZES: dict[str, dict[str, Any]] = {
    "leto": {"hidden_dim": 16, "layers": 1, "window": 4, "horizon": 3},
    "rnn_gmm": {"hidden_dim": 16, "layers": 1},
    "bc": {"hidden_dims": [16]},
    "ibc": {},
    "diffusion": {},
    "act": {},
    "difftop_il": {},
}
VECTORS = EnvSpec(
    "test/task",
    {"hand_pos": ObsSpec("vector", (3,)), "object": ObsSpec("vector", (5,))},
    4,
    50,
    0.05,
    gives=frozenset({"success"}),
)
STATE = EnvSpec("test/state", {"state": ObsSpec("vector", (4,))}, 2, 25, 0.05, gives=frozenset({"reward"}))


def saved(folder: Path, name: str, spec: EnvSpec, **options: Any) -> Path:
    """An untrained agent's checkpoint, as a run leaves it."""
    agent = difftop.make_agent(name, spec, seed=3, total_steps=10, **options)
    config = {"agent": {"name": name, **options}}
    state: dict[str, Any] = {}
    model = agent.state_dict()
    return save_checkpoint(folder, step=5, agent_name=name, config=config, spec=spec, model=model, train_state=state)


@pytest.mark.parametrize("name", [*REWARDS, "difftop_rl on tdmpc2"])
def test_agents_that_learn_from_rewards_act_as_their_actor_does(tmp_path: Path, name: str) -> None:
    name, _, world = name.partition(" on ")
    options: dict[str, Any] = {
        "model": {"mlp_dim": 16, "encoder_dim": 16, "latent_dim": 8},
        "acting": {"horizon": 2, "horizon_start": 2},
    }
    options |= {"world_model": world} if world else {}
    saved(tmp_path, name, STATE, **options)
    policy = difftop.load_policy(tmp_path, device="cpu")
    obs = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    agent = difftop.make_agent(name, STATE, seed=3, **options)
    actor = agent.actor(3, seed=0, explore=False)
    begin = torch.tensor([True, True, True])
    for t in range(3):
        expected = actor.act({"state": torch.from_numpy(obs)}, begin & (t == 0), 5).detach().numpy()
        np.testing.assert_array_equal(policy.act({"state": obs}), expected)
        plan = policy.plan()
        assert plan is not None and plan.shape == (3, 2, 2)
        np.testing.assert_array_equal(plan[:, 0], expected)
    assert policy.spec == STATE and policy.steps == 5


def test_a_policy_without_a_plan_has_none(tmp_path: Path) -> None:
    saved(tmp_path, "difftop_rl", STATE, model={"mlp_dim": 16}, acting={"planner": "none"})
    policy = difftop.load_policy(tmp_path, device="cpu")
    assert policy.plan() is None
    policy.act(np.zeros(4, np.float32))
    assert policy.plan() is None


@pytest.mark.parametrize("name", SIZES)
def test_imitators_act_by_key_one_or_many_arrays_or_tensors(tmp_path: Path, name: str) -> None:
    saved(tmp_path, name, VECTORS, **SIZES[name])
    policy = difftop.load_policy(tmp_path, device="cpu")
    rng = np.random.default_rng(1)
    one = {"hand_pos": rng.normal(size=3), "object": rng.normal(size=5), "unused": np.zeros(9)}
    action = policy.act(one)
    assert isinstance(action, np.ndarray) and action.shape == (4,) and action.dtype == np.float32 and np.abs(action).max() <= 1
    many = {key: torch.from_numpy(np.stack([value, value])).float() for key, value in one.items()}
    actions = policy.act(many)
    assert isinstance(actions, torch.Tensor) and actions.shape == (2, 4)
    np.testing.assert_allclose(actions[0].numpy(), action, atol=1e-6)


def test_reset_forgets_and_episodes_are_a_function_of_what_was_seen(tmp_path: Path) -> None:
    saved(tmp_path, "leto", VECTORS, **SIZES["leto"])
    policy = difftop.load_policy(tmp_path, device="cpu")
    rng = np.random.default_rng(2)
    episode = [{"hand_pos": rng.normal(size=3), "object": rng.normal(size=5)} for _ in range(6)]
    first = [policy.act(obs) for obs in episode]
    longer = policy.act(episode[0])
    policy.reset()
    again = [policy.act(obs) for obs in episode]
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(longer, first[0])  # memory matters


def test_plain_observations_are_taken_where_there_is_one(tmp_path: Path) -> None:
    saved(tmp_path, "tdmpc", STATE, model={"mlp_dim": 16, "encoder_dim": 16, "latent_dim": 8}, acting={"planner": "none"})
    policy = difftop.load_policy(tmp_path, device="cpu")
    obs = np.linspace(-1, 1, 4)
    np.testing.assert_array_equal(policy.act(obs), policy.act({"state": obs}))
    assert policy.act(obs[None]).shape == (1, 2)


def test_mistakes_are_one_sentence(tmp_path: Path) -> None:
    saved(tmp_path, "bc", VECTORS, **SIZES["bc"])
    policy = difftop.load_policy(tmp_path, device="cpu")
    good = {"hand_pos": np.zeros(3), "object": np.zeros(5)}
    for bad, message in (
        ({"hand_pos": np.zeros(3)}, "'object' is missing"),
        (good | {"object": np.zeros(4)}, r"'object' has shape \[4\]: must be \[5\]"),
        (good | {"object": np.zeros((2, 5))}, "different numbers of rows"),
        (np.zeros(8), "give them by key"),
    ):
        with pytest.raises(ValueError, match=message):
            policy.act(bad)
    with pytest.raises(ConfigError, match="device=gpu"):
        difftop.load_policy(tmp_path, device="gpu")
    with pytest.raises(CheckpointError, match="no checkpoint"):
        difftop.load_policy(tmp_path / "nowhere")


def test_train_load_act_and_the_episode_is_that_of_mode_eval(tmp_path: Path) -> None:
    overrides = [
        "env=toy/point-mass", "run.frames=75", "run.seed_steps=50", "run.batch_size=8", "run.eval_every=50",
        "run.eval_episodes=1", "run.video=false", "run.capacity=200", "agent.model.mlp_dim=16", "agent.model.encoder_dim=16",
        "agent.model.latent_dim=8",
        "threads=1", "device=cpu", f"root={tmp_path}",
    ]  # fmt: skip
    end = difftop.train(overrides)
    assert end.finished and end.folder == tmp_path / "toy-point-mass/difftop_rl/default/seed1"
    assert end.evaluation["env_frames"] == 75 and end.evaluation["episodes"] == 1
    policy, env = difftop.load_policy(end.folder), difftop.make_env("toy/point-mass")
    obs, _ = env.reset(seed=4)
    total, over = 0.0, False
    while not over:
        obs, reward, terminated, truncated, _ = env.step(policy.act(obs))
        total, over = total + reward, terminated or truncated
    assert np.isfinite(total)
    with pytest.raises(ConfigError, match="unknown"):
        difftop.train(["env=toy/point-mas"])


def test_a_checkpoint_needs_no_simulator_no_hydra_and_no_configs(tmp_path: Path) -> None:
    path = saved(tmp_path / "run", "difftop_rl", STATE, model={"mlp_dim": 16, "encoder_dim": 16, "latent_dim": 8})
    alone = tmp_path / "alone"
    shutil.copytree(path, alone)
    code = f"""
        import sys
        blocked = ("hydra", "dm_control", "mujoco", "gymnasium", "robosuite", "metaworld", "mani_skill", "theseus", "envs")
        class Block:
            def find_spec(self, name, *_):
                if name.partition(".")[0] in blocked:
                    raise ImportError(name)
        sys.meta_path.insert(0, Block())
        import numpy as np
        import difftop
        policy = difftop.load_policy({str(alone)!r}, device="cpu")
        print(policy.act(np.zeros(4, np.float32)).shape, policy.spec.name)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["(2,)", "test/state"]


def test_importing_difftop_loads_nothing_and_its_door_is_complete() -> None:
    code = (
        "import sys, json, difftop; print(json.dumps([m for m in ('torch', 'numpy', 'hydra', 'gymnasium') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
    for name in difftop.__all__:
        assert getattr(difftop, name) is not None and name in dir(difftop)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = difftop.nothing
