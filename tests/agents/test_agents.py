"""What every agent promises: bounded, repeatable, independent actions; updates that learn; saving that loses nothing."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from agents.latent.agent import LatentAgent
from agents.latent.exploration import add_noise
from agents.latent.scaled_world import ScaledWorld
from agents.registry import make_agent, names
from difftop.losses import NonFiniteLossError
from difftop.nn.encoders import Convolutions, PixelEncoder, SimplexPixelEncoder, half_images, random_shift
from difftop.options import ConfigError
from difftop.types import EnvSpec, ObsSpec
from tests.conftest import SMALL, STATE, planned_loss, random_batch

PLANNERS = ["lm", "mppi", "none"]
NAMES = [*names("rewards"), "difftop_rl on tdmpc", "difftop_rl on tdmpc2"]


def small(
    name: str,
    spec: EnvSpec,
    planner: str | None = None,
    seed: int = 0,
    precision: str = "fp32",
    device: str = "cpu",
    **more: Any,
) -> LatentAgent:
    acting: dict[str, Any] = SMALL["acting"] | {"mppi": {"samples": 32, "elites": 8}, "lm": {"start_previous": True}}
    if planner:
        acting["planner"] = planner
    name, _, world = name.partition(" on ")
    config: dict[str, Any] = {"name": name, **SMALL, "acting": acting, **more}
    if world:
        config["world_model"] = world
    if name == "difftop_rl":
        config = {"policy_gradient": {"states": 3}} | config
    agent = make_agent(config, spec, seed=seed, precision=precision, device=device)
    assert isinstance(agent, LatentAgent)
    return agent


def some_obs(spec: EnvSpec, n: int, rows: Any = slice(None)) -> dict[str, torch.Tensor]:
    return {spec.only_key: random_batch(spec, size=n).obs[rows, 0]}


@pytest.mark.parametrize("planner", PLANNERS)
@pytest.mark.parametrize("name", NAMES)
def test_actions_are_bounded_and_repeatable(name: str, planner: str, spec: EnvSpec) -> None:
    agent, obs = small(name, spec, planner), some_obs(spec, 4)
    first = torch.ones(4, dtype=torch.bool)
    actors = [agent.actor(4, seed=9, explore=True) for _ in range(2)]
    a, b = ([actor.act(obs, first, 0), actor.act(obs, ~first, 1)] for actor in actors)
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert all(x.shape == (4, 2) and x.dtype == torch.float32 and x.abs().max() <= 1 for x in a)
    other = agent.actor(4, seed=10, explore=True).act(obs, first, 0)
    assert not torch.equal(other, a[0])


@pytest.mark.parametrize("planner", ["lm", "none"])
def test_environments_do_not_influence_each_other(planner: str) -> None:
    agent, obs = small("difftop_rl", STATE, planner), some_obs(STATE, 5)
    order = torch.tensor([3, 1, 4, 0, 2])
    first = torch.ones(5, dtype=torch.bool)
    straight, mixed = (agent.actor(5, seed=9, explore=False) for _ in range(2))
    for t0 in (first, ~first):
        a, b = straight.act(obs, t0, 0), mixed.act({"state": obs["state"][order]}, t0, 0)
        torch.testing.assert_close(a[order], b, rtol=0, atol=1e-6)


def test_a_plan_is_forgotten_when_an_episode_begins() -> None:
    agent, obs = small("difftop_rl", STATE, "lm"), some_obs(STATE, 2)
    actor = agent.actor(2, seed=9, explore=False)
    fresh = actor.act(obs, torch.tensor([True, True]), 0)
    actor.previous.fill_(1.0)
    again = actor.act(obs, torch.tensor([True, False]), 0)
    assert torch.equal(again[0], fresh[0])


@pytest.mark.parametrize("name", NAMES)
def test_saved_and_loaded_agent_acts_and_learns_the_same(name: str, spec: EnvSpec) -> None:
    agent = small(name, spec, seed=1)
    batch = random_batch(spec)
    agent.update(batch, 0)
    actor = agent.actor(2, seed=4, explore=True)
    obs, t0 = some_obs(spec, 2), torch.tensor([False, True])
    actor.act(obs, t0, 0)
    weights, train_state, memory = copy.deepcopy((agent.state_dict(), agent.train_state(), actor.state_dict()))

    loaded = small(name, spec, seed=2)
    loaded.load_state_dict(weights)
    loaded.load_train_state(train_state)
    loaded_actor = loaded.actor(2, seed=5, explore=True)
    loaded_actor.load_state_dict(memory)
    assert torch.equal(actor.act(obs, t0, 1), loaded_actor.act(obs, t0, 1))
    for step in range(2):
        agent.update(batch, step)
        loaded.update(batch, step)
    assert all(torch.equal(a, b) for a, b in zip(agent.state_dict().values(), loaded.state_dict().values(), strict=True))


SLOW_TO_FIT = ("tdmpc2", "difftop_rl on tdmpc2")


@pytest.mark.parametrize(
    "name",
    [
        *(name for name in names("rewards") if name not in SLOW_TO_FIT),
        *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW_TO_FIT),
    ],
)
def test_overfits_one_batch(name: str) -> None:
    model = {"mlp_dim": 64, "encoder_dim": 64, "latent_dim": 16, "channels": 4}
    agent = small(name, STATE, model=model, loss={"learning_rate": 3e-3 if "tdmpc2" in name else 1e-3})
    batch = random_batch(STATE, size=8)
    first = agent.update(batch, 0).metrics
    for _ in range(300):
        last = agent.update(batch, 0).metrics
    if "tdmpc2" in name:  # cross-entropies end at the entropy of their targets, up to log 2
        assert first["train/reward_error"] > 0.3 and last["train/reward_error"] < 0.1
        assert last["train/value_loss"] < 0.25 * first["train/value_loss"]
    else:
        assert last["train/reward_loss"] < 0.02 * first["train/reward_loss"]
        assert last["train/value_loss"] < 0.1 * first["train/value_loss"]


@pytest.mark.parametrize("name", NAMES)
def test_targets_move_as_a_moving_average_when_due(name: str) -> None:
    agent = small(name, STATE)
    before = {key: value.clone() for key, value in agent.state_dict().items()}
    every, rate = (1, 0.02) if name == "difftop_rl" else (1, 0.01) if "tdmpc2" in name else (2, 0.01)
    assert (agent.config.loss.target_every, agent.config.loss.target_rate) == (every, rate)
    if every == 2:
        agent.update(random_batch(STATE), 0)
    assert all(torch.equal(agent.state_dict()[key], before[key]) for key in before if ".target" in key)
    agent.update(random_batch(STATE), 0)
    for key, value in agent.state_dict().items():
        if ".target" in key:
            online = key.replace("target_critic", "critic").replace("target_q.", "model.q.").replace("target.", "model.")
            start = before[key] + (centre_of(agent) if key.endswith("target_q.6.bias") else 0)
            torch.testing.assert_close(value, torch.lerp(start, agent.state_dict()[online], rate))


def centre_of(agent: LatentAgent) -> Tensor | float:
    """What the first update has added to the last bias of values before it began, where a world knows it from replay."""
    return agent.world.centre.value if isinstance(agent.world, ScaledWorld) else 0.0


@pytest.mark.parametrize("name", NAMES)
def test_a_non_finite_reward_raises_before_any_weight_changes(name: str) -> None:
    agent, batch = small(name, STATE), random_batch(STATE)
    before = {key: value.detach().clone() for key, value in agent.model.named_parameters()}
    batch.reward[0, 0] = float("nan")
    with pytest.raises(NonFiniteLossError, match="model loss is nan"):
        agent.update(batch, 0)
    assert all(torch.equal(value, before[key]) for key, value in agent.model.named_parameters())


@pytest.mark.parametrize("name", NAMES)
def test_a_nan_weight_is_a_non_finite_loss(name: str) -> None:
    agent = small(name, STATE)
    agent.update(random_batch(STATE), 0)
    with torch.no_grad():
        next(agent.model.encoder.parameters())[0] = torch.nan
    with pytest.raises(NonFiniteLossError, match="model loss is nan"):
        agent.update(random_batch(STATE), 0)


@pytest.mark.parametrize("name", NAMES)
def test_a_finite_loss_with_a_bad_gradient_changes_no_weight(name: str) -> None:
    agent, batch = small(name, STATE), random_batch(STATE)
    before = {key: value.detach().clone() for key, value in agent.model.named_parameters()}
    next(agent.model.encoder.parameters()).register_hook(lambda gradient: gradient * torch.nan)
    with pytest.raises(NonFiniteLossError, match="the norm of the model loss's gradient is nan"):
        agent.update(batch, 0)
    for key, value in agent.model.named_parameters():
        assert torch.equal(value, before[key] + (centre_of(agent) if key == "q.6.bias" else 0)), key


@pytest.mark.parametrize(
    ("acting", "message"),
    [
        ({"mppi": {"samples": 32}}, "agent.acting.mppi.elites=64: must be at most agent.acting.mppi.samples=32"),
        ({"lm": {"objective": "cost"}}, "agent.acting.lm.objective=cost: is for a learned cost"),
    ],
)
def test_options_of_planners_that_do_not_fit_are_named(acting: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_agent({"name": "tdmpc2", "acting": acting}, STATE, seed=0)
    assert message in str(caught.value)


def test_acting_without_any_noise_is_possible() -> None:
    acting = SMALL["acting"] | {"mppi": {"samples": 32, "elites": 8}, "min_std": 0.0, "std_end": 0.0, "std_steps": 0}
    agent = make_agent({"name": "tdmpc", **SMALL, "acting": acting}, STATE, seed=0)
    action = agent.actor(2, seed=0, explore=True).act(some_obs(STATE, 2), torch.tensor([True, True]), 10)
    assert torch.isfinite(action).all()


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_updates_are_near_float32_ones(name: str) -> None:
    batch = random_batch(STATE, size=64)
    losses = []
    for precision in ("fp32", "bf16"):
        agent = small(name, STATE, precision=precision)
        agent.update(batch, 0)
        losses.append(agent.update(batch, 0).metrics["train/model_loss"])
        assert all(p.dtype == torch.float32 for p in agent.model.parameters())
    torch.testing.assert_close(losses[1], losses[0], rtol=0.03, atol=0)


def test_on_policy_loss_is_the_sum_over_the_episode_and_takes_one_step() -> None:
    agent = small("difftop_rl on tdmpc", STATE, policy_gradient={"mode": "on_policy", "states": 3, "normalize": False})
    agent.update(random_batch(STATE), 0)  # the critic starts at zero, where the loss has no gradient
    agent.update(random_batch(STATE), 0)
    actor = agent.actor(1, seed=0, explore=True)
    obs = some_obs(STATE, 7)
    for i in range(7):
        actor.act({"state": obs["state"][i : i + 1]}, torch.tensor([i == 0]), 0)
    start, previous = (torch.cat([getattr(plan, name) for plan in actor.visited]) for name in ("start", "previous"))
    loss, _ = planned_loss(agent, obs["state"], start, previous)
    trained = [p for n, p in agent.model.named_parameters() if not n.startswith("pi.")]
    expected = torch.autograd.grad(7 * loss, trained)
    agent.capture_graphs("false")  # what is captured needs a fused optimizer
    agent.on_policy_optimizer = torch.optim.SGD(agent.model.parameters(), lr=1.0)
    before = [p.detach().clone() for p in trained]
    metrics = agent.finish_episode(actor, 1.0, 0)
    torch.testing.assert_close(metrics["train/policy_gradient_loss"], loss.detach())
    for p, old, gradient in zip(trained, before, expected, strict=True):
        torch.testing.assert_close(old - p, gradient, rtol=1e-4, atol=1e-6)
    assert actor.visited == []


def test_on_policy_loss_takes_an_episode_in_which_plans_grow() -> None:
    agent = small(
        "difftop_rl on tdmpc",
        STATE,
        policy_gradient={"mode": "on_policy", "states": 3},
        acting={"horizon_start": 1, "horizon": 2},
    )
    agent.update(random_batch(STATE), 0)
    agent.update(random_batch(STATE), 0)
    actor = agent.actor(1, seed=0, explore=True)
    obs, middle = some_obs(STATE, 7), agent.config.acting.horizon_steps
    for i in range(7):
        actor.act({"state": obs["state"][i : i + 1]}, torch.tensor([i == 0]), 0 if i < 4 else middle)
    plans = list(actor.visited)
    assert [plan.start.shape[1] for plan in plans] == [1] * 4 + [2] * 3
    losses = [planned_loss(agent, plan.obs, plan.start, plan.previous)[0] for plan in plans]
    before = [p.detach().clone() for p in agent.model.parameters()]
    metrics = agent.finish_episode(actor, 1.0, middle)
    torch.testing.assert_close(metrics["train/policy_gradient_loss"], torch.stack(losses).mean().detach(), rtol=1e-4, atol=1e-6)
    assert metrics["train/policy_gradient_norm"] > 0
    assert any(not torch.equal(p, old) for p, old in zip(agent.model.parameters(), before, strict=True))


def test_on_policy_episode_of_failed_plans_changes_nothing() -> None:
    agent = small("difftop_rl on tdmpc", STATE, policy_gradient={"mode": "on_policy", "states": 3})
    actor = agent.actor(1, seed=0, explore=True)
    with torch.no_grad():
        list(agent.model.reward.parameters())[-1].fill_(torch.inf)
    for i in range(4):
        actor.act(some_obs(STATE, 1), torch.tensor([i == 0]), 0)
    before = [p.detach().clone() for p in agent.model.parameters()]
    metrics = agent.finish_episode(actor, 1.0, 0)
    assert list(metrics) == ["train/policy_gradient_loss"] and torch.isfinite(metrics["train/policy_gradient_loss"])
    assert all(torch.equal(p, old) for p, old in zip(agent.model.parameters(), before, strict=True))


def test_unknown_agent_and_option() -> None:
    with pytest.raises(ConfigError, match=r"agent=tdmcp: unknown agent. Did you mean 'tdmpc'\?"):
        make_agent({"name": "tdmcp"}, STATE, seed=0)
    with pytest.raises(ConfigError, match=r"agent.loss.roh: unknown option. Did you mean 'rho'\?"):
        make_agent({"name": "tdmpc", "loss": {"roh": 1}}, STATE, seed=0)


def test_noise_is_clipped_bounded_and_passes_the_gradient() -> None:
    mean = torch.linspace(-1, 1, 101, requires_grad=True)
    moved = add_noise(mean, 5.0, torch.Generator().manual_seed(0), noise_clip=0.3)
    assert moved.abs().max() <= 1 and (moved - mean).abs().max() <= 0.3 + 1e-6
    moved.sum().backward()
    assert torch.equal(mean.grad, torch.ones(101))
    assert add_noise(mean, 0.0, None) is mean


@pytest.mark.parametrize("encoder", [PixelEncoder((9, 84, 84), 8, 6), SimplexPixelEncoder((9, 64, 64), 8, 16, 8)])
def test_encoders_of_pixels_against_plain_convolutions(encoder: PixelEncoder | SimplexPixelEncoder) -> None:
    """Images in parts, channels last, are the same features, and teach the same."""
    encoder = encoder.double()
    side = 84 if isinstance(encoder, PixelEncoder) else 64
    frames = torch.randint(0, 256, (131, 9, side, side), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    x = frames.double() / 255 if isinstance(encoder, PixelEncoder) else frames.double() / 255 - 0.5
    plain = encoder.project(torch.nn.Sequential(*encoder.convolutions)(x))
    wanted = plain if isinstance(encoder, PixelEncoder) else encoder.simplices(plain)
    found = encoder(frames)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(encoder(frames.double()), wanted)  # frames that are floats already
    for got, exact in zip(
        *(torch.autograd.grad(y.square().sum(), list(encoder.parameters())) for y in (found, wanted)), strict=True
    ):
        torch.testing.assert_close(got, exact)


def test_half_images_are_near_and_the_rest_stays_float32() -> None:
    """bfloat16 keeps eight bits: features differ by a few thousandths of their size, and weights learn in float32."""
    frames = torch.randint(0, 256, (70, 9, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = SimplexPixelEncoder((9, 64, 64), 8, 16, 8)
    exact = encoder.project(encoder.convolutions(frames))
    half_images(encoder)
    features = encoder.convolutions(frames)
    assert features.dtype == torch.bfloat16
    near = encoder.project(features.float())
    error = (near - exact).square().mean().sqrt() / exact.std()
    assert 0 < error < 0.02
    found = encoder(frames)
    found.square().sum().backward()
    assert found.dtype == torch.float32 and all(
        p.grad is not None and p.grad.dtype == torch.float32 for p in encoder.parameters()
    )


@pytest.mark.parametrize("has", [True, False])
def test_precision_auto_halves_images_where_the_cpu_can(has: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agents.registry.has_bf16", lambda: has)
    spec = replace(STATE, obs={"pixels": ObsSpec("image", (9, 64, 64))})
    for precision in ("auto", "fp32", "bf16"):
        agent = make_agent({"name": "tdmpc2"}, spec, seed=0, precision=precision)
        convolutions = [part for part in agent.modules() if isinstance(part, Convolutions)]
        assert convolutions and all(
            part.dtype == (torch.bfloat16 if has and precision == "auto" else None) for part in convolutions
        )


def test_random_shift_against_grid_sample() -> None:
    """The method's usual form: replicate padding, then grid_sample at whole-pixel offsets."""
    frames = torch.randint(0, 256, (5, 3, 12, 12), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    shifted = random_shift(frames, 2, torch.Generator().manual_seed(3))
    shift = torch.randint(-2, 3, (2, 5, 1), generator=torch.Generator().manual_seed(3))
    assert shift.abs().max() == 2
    padded = torch.nn.functional.pad(frames.double(), (2, 2, 2, 2), mode="replicate")
    for i in range(5):
        y, x = int(shift[0, i]) + 2, int(shift[1, i]) + 2
        centres = torch.arange(12, dtype=torch.float64)
        grid_y, grid_x = ((2 * (centres + offset) + 1) / 16 - 1 for offset in (y, x))
        grid = torch.stack(torch.meshgrid(grid_x, grid_y, indexing="xy"), dim=-1)[None]
        wanted = torch.nn.functional.grid_sample(padded[i : i + 1], grid, align_corners=False)[0]
        torch.testing.assert_close(shifted[i].double(), wanted)
