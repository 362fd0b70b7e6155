"""What every imitation policy promises: padding, independence of environments, seeds, memory, saved weights."""

from __future__ import annotations

import copy
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from agents.registry import AGENTS, make_agent, make_policy, names
from difftop.data.windows import WindowBatch
from difftop.options import ConfigError
from difftop.run.rollouts import roll_out
from tests.agents.imitators import CASES, NAMES, SMALL, SPEC, make, observations, padded_batch, random_batch, rolled, streams
from tests.conftest import STATE

EACH = pytest.mark.parametrize("name", CASES)


def loss_and_gradients(agent: object, batch: object) -> tuple[Tensor, list[Tensor]]:
    policy = agent.policy  # type: ignore[attr-defined]
    policy.train().zero_grad()
    loss, _ = policy.loss(batch, torch.Generator().manual_seed(3))
    loss.backward()
    return loss.detach(), [p.grad.clone() for p in policy.parameters() if p.grad is not None]


def test_all_of_the_registry_is_tested() -> None:
    assert set(NAMES) <= set(names("demonstrations"))
    with pytest.raises(ConfigError, match=r"agent=tdmpc learns from rewards"):
        make_policy({"name": "tdmpc"}, SPEC, seed=0)
    assert all(AGENTS[name].learns_from == "demonstrations" for name in NAMES)


@EACH
def test_padding_changes_nothing(name: str, tmp_path: Path) -> None:
    agent = make(name, home=tmp_path, **({"horizon": 2} if name == "ibc" else {}))
    batch = padded_batch(agent, 8)
    loss, gradients = loss_and_gradients(agent, batch)
    spoiled = replace(batch, actions=torch.where(batch.mask[..., None], batch.actions, 0.77))
    again, others = loss_and_gradients(agent, spoiled)
    assert torch.equal(loss, again) and all(torch.equal(a, b) for a, b in zip(gradients, others, strict=True))
    other = loss_and_gradients(agent, replace(batch, actions=batch.actions.flip(0)))[0]
    assert not torch.equal(other, loss) and len(gradients) > 3


@EACH
def test_a_batch_without_any_real_step_has_no_loss(name: str, tmp_path: Path) -> None:
    agent = make(name, home=tmp_path)
    batch = random_batch(agent)
    loss, gradients = loss_and_gradients(agent, replace(batch, mask=torch.zeros_like(batch.mask)))
    assert float(loss) == 0 and all(bool((g == 0).all()) for g in gradients)


@EACH
def test_overfits_a_batch(name: str, tmp_path: Path) -> None:
    """To what noise, or a guess that looks at nothing, doesn't reach; and what it learned is lost on other observations."""
    denoises = name.startswith("diffusion")
    rate = 1e-2 if denoises else 3e-3
    training = {"learning_rate": rate, "warmup_steps": 0, "ema": 0.0}
    agent = make(name, home=tmp_path, steps=300, training=training, limits={"acceleration": 2.0})
    batch = random_batch(agent, 4)
    others = replace(batch, obs={key: x.flip(0) for key, x in batch.obs.items()})

    def error(batch: WindowBatch) -> float:
        return float(np.mean([float(agent.validate(batch, seed=k)["valid/loss"]) for k in range(5 if denoises else 1)]))

    first = error(batch)
    tags = [agent.update(batch, k).metrics for k in range(200 if denoises else 100)][-1]
    last, elsewhere = error(batch), error(others)
    bars = {
        "bc": -1.0,
        "rnn_gmm": -1.0,
        "ibc": 1.0,
        "leto": 0.1,
        "diffusion": 0.4,
        "residual": 0.12,
        "act": 0.25,
        "diffusion_transformer": 0.45,
    }
    assert last < bars[name] < first and elsewhere > last + 0.1 * abs(last), (name, first, last, elsewhere)
    assert all(bool(x.isfinite()) for x in tags.values()) and "train/gradient_norm" in tags


@EACH
@pytest.mark.parametrize("head", ["none", "qp"])
def test_environments_are_independent(name: str, head: str, tmp_path: Path) -> None:
    agent = make(name, home=tmp_path)
    obs, begins = observations(3, 9), torch.zeros(3, 9, dtype=torch.bool)
    begins[:, 0] = begins[1, 4] = begins[0, 7] = True
    actions = rolled(agent.actor(3, seed=5, head=head), obs, begins)
    changed = {key: torch.cat([x[:1] + 1, x[1:]]) for key, x in obs.items()}
    begins[0, 2] = True
    others = rolled(agent.actor(3, seed=5, head=head), changed, begins)
    torch.testing.assert_close(others[1:], actions[1:], rtol=0, atol=1e-5)
    assert not torch.allclose(others[0], actions[0])
    order, actor = [2, 0, 1], agent.actor(3, seed=5, head=head)
    generators = streams(actor)
    generators[:] = [generators[i] for i in order]
    begins[0, 2] = False
    mixed = rolled(actor, {key: x[order] for key, x in obs.items()}, begins[order])
    torch.testing.assert_close(mixed, actions[order], rtol=0, atol=1e-5)


@EACH
def test_an_episode_forgets_the_one_before(name: str, tmp_path: Path) -> None:
    agent = make(name, home=tmp_path)
    obs = observations(2, 8)
    before = {key: torch.cat([x[:, :3] + 1, x[:, 3:]], 1) for key, x in obs.items()}
    begins = torch.zeros(2, 8, dtype=torch.bool)
    begins[:, 0] = begins[:, 3] = True
    one, other = (rolled(agent.actor(2, seed=1), seen, begins) for seen in (obs, before))
    assert torch.equal(one[:, 3:], other[:, 3:]) and not torch.equal(one[:, :3], other[:, :3])


@EACH
def test_same_seed_same_actions(name: str, tmp_path: Path) -> None:
    state = torch.get_rng_state()
    first, same, different = (make(name, seed=s, home=tmp_path) for s in (0, 0, 1))
    obs = observations(2, 6)
    actions = rolled(first.actor(2, seed=1), obs)
    assert torch.equal(rolled(same.actor(2, seed=1), obs), actions)
    assert actions.dtype == torch.float32 and actions.shape == (2, 6, 4) and bool((actions.abs() <= 1).all())
    if name not in ("leto", "act"):  # which sample nothing
        assert not torch.equal(rolled(first.actor(2, seed=2), obs), actions)
    if name != "residual":  # which begins as its base
        assert not torch.equal(rolled(different.actor(2, seed=1), obs), actions)
    assert torch.equal(torch.get_rng_state(), state)


@EACH
def test_memory_is_saved_bit_for_bit(name: str, tmp_path: Path) -> None:
    agent = make(name, home=tmp_path, execute=2) if name != "ibc" else make(name)
    obs, none = observations(2, 10), torch.zeros(2, 5, dtype=torch.bool)
    first, second = agent.actor(2, seed=0), agent.actor(2, seed=9)
    rolled(first, {k: x[:, :5] for k, x in obs.items()})
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    second.load_state_dict(torch.load(buffer, weights_only=True))
    rest = {k: x[:, 5:] for k, x in obs.items()}
    assert torch.equal(rolled(first, rest, none), rolled(second, rest, none)) and first.metrics() == second.metrics()


@EACH
@pytest.mark.parametrize("ema", [0.0, 0.999])
def test_training_goes_on_from_saved_weights(name: str, ema: float, tmp_path: Path) -> None:
    made, fresh = (make(name, seed=s, home=tmp_path, training={"ema": ema, "learning_rate": 1e-2}) for s in (0, 1))
    batch, obs = random_batch(made), observations(2, 4)
    for k in range(3):
        made.update(batch, k)
    fresh.load_state_dict(made.state_dict())
    fresh.load_train_state(copy.deepcopy(made.train_state()))  # as from a file
    assert torch.equal(rolled(made.actor(2, seed=1), obs), rolled(fresh.actor(2, seed=1), obs))
    for k in range(3, 5):
        one, other = made.update(batch, k).metrics, fresh.update(batch, k).metrics
        assert all(torch.equal(one[tag], other[tag]) for tag in one)
    assert all(torch.equal(a, b) for a, b in zip(made.state_dict().values(), fresh.state_dict().values(), strict=True))
    averaged = [key for key in made.state_dict() if key.startswith("average.")]
    assert bool(averaged) == bool(ema)
    if ema:
        weights = [p for p in made.average.policy.parameters() if not p.requires_grad]
        trained = list(made.policy.parameters())
        assert len(weights) == len(trained) and any(not torch.equal(a, b) for a, b in zip(weights, trained, strict=True))


@EACH
def test_reduced_precision_is_close(name: str, tmp_path: Path) -> None:
    full = make(name, home=tmp_path)
    reduced = make(name, home=tmp_path)
    reduced.bf16 = True
    batch = random_batch(full)
    expected, metrics = full.update(batch, 0).metrics, reduced.update(batch, 0).metrics
    assert metrics["train/loss"].dtype != torch.bfloat16
    torch.testing.assert_close(metrics["train/loss"].double(), expected["train/loss"].double(), rtol=0.05, atol=0.02)


@EACH
def test_normalization_travels_with_the_weights(name: str, tmp_path: Path) -> None:
    made, fresh = make(name, home=tmp_path), make(name, home=tmp_path)
    made.policy.observer.normalizer["object"].fit_(torch.randn(50, 4) * 3 + 1, "standardize")
    obs = observations(2, 3)
    before = fresh.policy.observer(obs)
    fresh.load_state_dict(made.state_dict())
    assert torch.equal(rolled(fresh.actor(2, seed=0), obs), rolled(made.actor(2, seed=0), obs))
    torch.testing.assert_close(fresh.policy.observer(obs), made.policy.observer(obs), rtol=0, atol=0)
    assert not torch.equal(fresh.policy.observer(obs), before)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("bc", {"obs_keys": ["eef_poss"]}, r"obs_keys: the task has no 'eef_poss'. Did you mean 'eef_pos'\?"),
        ("bc", {"execute": 4}, r"agent.execute=4: a prediction has 3 actions"),
        ("diffusion", {"horizon": 5, "widths": [8, 16]}, r"agent.horizon=5: must be a multiple of 2"),
        ("diffusion", {"widths": [12]}, r"agent.widths=\[12\]"),
        ("diffusion_transformer", {"heads": 3}, r"agent.dim=16: must be even, and a multiple of agent.heads=3"),
        ("diffusion_transformer", {"window": 5}, r"agent.horizon=4: must be at least window=5"),
        ("act", {"heads": 3}, r"agent.dim=16: must be a multiple of 4 and of agent.heads=3"),
        ("diffusion", {"ddim_steps": 30}, r"agent.ddim_steps=30, steps=20"),
        ("bc", {"head": "qp", "limits": {"free": [0, 1, 2, 3]}}, r"head=qp: limits.free leaves no action"),
        ("bc", {"modez": 3}, r"agent.modez: unknown option. Did you mean 'modes'\?"),
    ],
)
def test_mistakes_get_one_sentence(name: str, values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_agent({"name": name, **SMALL[name], **values}, SPEC, seed=0, total_steps=1)


def test_imitators_take_the_one_observation_of_environments_with_rewards() -> None:
    agent = make_agent({"name": "bc", **SMALL["bc"]}, STATE, seed=0)
    action = agent.actor(3, seed=0).act({"state": torch.randn(3, 4)}, torch.ones(3, dtype=torch.bool), 0)
    assert action.shape == (3, 2) and bool((action.abs() <= 1).all())


def test_the_order_in_which_a_task_names_its_observations_does_not_matter() -> None:
    turned = replace(SPEC, obs=dict(reversed(SPEC.obs.items())))
    one, two = make("bc"), make("bc", spec=turned)
    obs = observations(2, 3)
    assert torch.equal(rolled(one.actor(2, seed=0), obs), rolled(two.actor(2, seed=0), obs))


def test_an_episode_is_a_function_of_its_seed_and_idle_environments_do_not_count() -> None:
    from envs import EnvConfig, env_spec, make_vector_env

    task = EnvConfig(name="toy/reach", obs="low_dim", episode_steps=9)
    agent = make("diffusion", spec=env_spec(task), limits={"free": []})
    found = [
        roll_out(make_vector_env(task, n, False), lambda n: agent.actor(n, seed=5, head="clip"), [11, 12, 13], keep="hand_pos")
        for n in (1, 2, 5)
    ]
    for other in found[1:]:
        np.testing.assert_allclose(other.padded("actions"), found[0].padded("actions"), atol=1e-5)
        assert other.metrics == found[0].metrics
    assert np.ptp(found[0].padded("actions"), axis=0).max() > 0.1


def test_chosen_observations_only() -> None:
    agent = make("bc", obs_keys=["object"])
    obs = observations(2, 3)
    changed = {**obs, "eef_pos": obs["eef_pos"] + 1}
    assert torch.equal(rolled(agent.actor(2, seed=0), obs), rolled(agent.actor(2, seed=0), changed))
    assert agent.policy.observer.out == 4
