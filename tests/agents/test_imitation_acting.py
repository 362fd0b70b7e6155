"""Imitation policies in a closed loop: trained on an expert's demonstrations, they solve the task of envs/toy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from agents.registry import make_agent
from difftop.data.demonstrations import Demonstrations
from difftop.data.files import open_demonstrations
from difftop.run.checkpoint import save_checkpoint
from difftop.run.offline import OfflineConfig, OfflineHooks, OfflineRun
from difftop.run.rollouts import roll_out
from envs import EnvConfig, env_spec, make_vector_env, record
from tests.agents.imitators import SMALL

REACH = EnvConfig(name="toy/reach", obs="low_dim", episode_steps=30)
SEEDS = list(range(1000, 1030))
SLOW = pytest.mark.slow


class Never:
    stopped = False


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory: pytest.TempPathFactory) -> Demonstrations:
    path = record(REACH, 20, seed=0, folder=str(tmp_path_factory.mktemp("reach")), noise=0.2, labels="intended")
    return open_demonstrations(path)


def trained(values: dict[str, Any], demonstrations: Demonstrations, steps: int) -> Any:
    training = {"learning_rate": 3e-3, "warmup_steps": 0, "ema": 0.0, "schedule": "cosine"}
    agent = make_agent({**values, "limits": {"free": []}, "training": training}, env_spec(REACH), seed=0, total_steps=steps)
    agent.fit_normalizer_(demonstrations)
    config = OfflineConfig(grad_steps=steps, batch_size=64, eval_every=10**6, checkpoint_every=10**6, select_episodes=0)
    OfflineRun(agent, demonstrations, None, config, seed=0, hooks=OfflineHooks(Never(), lambda batch: Path())).run()
    return agent


def success(agent: Any) -> float:
    """Share of fresh episodes that are solved."""
    return roll_out(make_vector_env(REACH, 10), lambda n: agent.actor(n, seed=0), SEEDS, until_success=True).success


@pytest.mark.parametrize(
    ("name", "steps", "bound", "more"),
    [
        ("bc", 200, 0.9, {}),
        pytest.param("rnn_gmm", 300, 0.9, {"modes": 1, "hidden_dim": 64, "layers": 1}, marks=SLOW),
        pytest.param("leto", 300, 0.9, {}, marks=SLOW),
        pytest.param("ibc", 500, 0.9, {"window": 1, "dropout": 0.0, "hidden_dims": [64, 64], "negatives": 64}, marks=SLOW),
        pytest.param("diffusion", 600, 0.75, {"widths": [32], "execute": 2}, marks=SLOW),  # 0.83 with 600 and with 1,200 updates
        pytest.param("diffusion_transformer", 600, 0.9, {"dim": 32, "dropout": 0.0, "execute": 2}, marks=SLOW),
        pytest.param("act", 1200, 0.85, {"dropout": 0.0}, marks=SLOW),  # 0.93
        pytest.param("difftop_il", 300, 0.9, {"name": "difftop_il"}, marks=SLOW),
    ],
)
def test_it_does_what_the_expert_does(
    name: str, steps: int, bound: float, more: dict[str, Any], demonstrations: Demonstrations
) -> None:
    agent = trained({"name": name, **SMALL.get(name, {}), **more}, demonstrations, steps)
    assert success(agent) >= bound


def test_it_takes_the_task_to_be_seen(demonstrations: Demonstrations) -> None:
    """The control of this file: what doesn't see the target hardly ever meets it."""
    agent = trained({"name": "bc", **SMALL["bc"], "obs_keys": ["hand_pos"]}, demonstrations, 200)
    assert success(agent) < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["residual", "difftop_il"])
def test_a_base_that_goes_astray_is_corrected(name: str, demonstrations: Demonstrations, tmp_path: Path) -> None:
    """Through what is known of the base ahead, which has to be what it does while acting."""
    options = {"name": "bc", **SMALL["bc"], "obs_keys": ["hand_pos"]}
    base = trained(options, demonstrations, 100)
    save_checkpoint(
        tmp_path,
        step=0,
        agent_name="bc",
        config={"agent": options},
        spec=env_spec(REACH),
        model=base.state_dict(),
        train_state={},
    )
    more: dict[str, Any] = {"window": 3, "horizon": 1} if name == "residual" else {"horizon": 3}
    agent = trained({"name": name, "base": "bc", "base_checkpoint": str(tmp_path), **more}, demonstrations, 400)
    assert agent.policy.base.foreseen is not None
    assert success(agent) >= 0.9 > success(base) + 0.3
    assert torch.isfinite(agent.policy.base.foreseen.table).all()
