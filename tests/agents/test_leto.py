"""LeTO against the facts of the paper and its code: sizes, constraints, loss, and the rollout's memory and limits."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from agents.leto import Leto, LetoConfig
from agents.policies.chunks import ChunkActor
from difftop.data.robomimic import Recording, open_robomimic, write_demonstrations
from difftop.data.windows import WindowBatch, overlapping
from difftop.options import ConfigError, build
from difftop.qp import SolveInfo
from difftop.types import EnvSpec, SolveStatus
from tests.conftest import task_spec
from tests.qp.problems import clarabel_solve

SHAPES = {"robot0_eef_pos": (3,), "object": (4,)}
SMALL = {"window": 4, "horizon": 3, "hidden_dim": 16, "init": "uniform"}
HEIGHT = {"position_key": "robot0_eef_pos", "position_axes": [2], "position_min": [0.0475], "position_max": [0.2]}


def task(action_dim: int = 7, shapes: dict[str, tuple[int, ...]] = SHAPES) -> EnvSpec:
    return task_spec("test/task", shapes, action_dim, episode_steps=50, control_dt_s=0.05)


def policy(action_dim: int = 7, seed: int = 0, **values: Any) -> Leto:
    return Leto(build(LetoConfig, SMALL | values), task(action_dim), seed=seed)


def observations(*size: int, seed: int = 0, scale: float = 1.0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {key: scale * torch.randn(*size, *shape, generator=g) for key, shape in SHAPES.items()}


def random_batch(size: int, made: Leto, seed: int = 0) -> WindowBatch:
    config, g = made.config, torch.Generator().manual_seed(seed)
    span = config.window + config.horizon - 1
    actions = 0.3 * torch.randn(size, span, made.limits.action_dim, generator=g).clamp(-3, 3)
    return WindowBatch(observations(size, config.window, seed=seed), actions, torch.ones(size, span, dtype=torch.bool))


def rolled(actor: ChunkActor, obs: dict[str, Tensor], begins: Tensor | None = None) -> Tensor:
    """Actions `[N, T, A]` on observations `[N, T, O]`; episodes begin where `begins [N, T]` says, or at the first call."""
    n, t = obs["object"].shape[:2]
    begins = torch.arange(t).expand(n, t) == 0 if begins is None else begins
    return torch.stack([actor.act({key: x[:, i] for key, x in obs.items()}, begins[:, i]) for i in range(t)], 1)


def test_constraints_are_letos() -> None:
    made = Leto(LetoConfig(hidden_dim=8), task(7, {"x": (137,)}), seed=0)
    rows = made.head.constraints
    assert made.head.L.shape == (42, 42) and rows.rows.shape == (66, 42)
    for previous, count in ((None, 132), (torch.linspace(-0.9, 0.9, 7)[None].double(), 144)):
        lower, upper = (x[0] for x in rows.bounds(1, None, None))
        g, h = torch.cat([rows.rows[36:], -rows.rows[36:], rows.rows[:36], -rows.rows[:36]]), [upper[36:], -lower[36:]]
        h = torch.cat([*h, upper[:36], -lower[:36]])
        if previous is not None:  # continuity, which the head writes as a tighter box on the first action
            low, high = (x[0, :6] for x in rows.bounds(1, None, previous))
            g = torch.cat([g, rows.rows[:6], -rows.rows[:6]])
            h = torch.cat([h, previous[0, :6] + 0.1, 0.1 - previous[0, :6]])
            torch.testing.assert_close(high, torch.minimum(h[60:66], h[132:138]))
            torch.testing.assert_close(low, -torch.minimum(h[96:102], h[138:144]))
        assert g.shape == (count, 42) and bool((g.view(count, 6, 7)[..., 6] == 0).all())
        assert bool((h[:60] == 0.1).all()) and bool((h[60:132] == 1).all())


def test_smoothing_is_letos() -> None:
    made = Leto(LetoConfig(hidden_dim=8), task(7, {"x": (5,)}), seed=0)
    a = made.head.constraints.difference @ made.head.constraints.selection
    gram = (a @ a.mT).view(5, 6, 5, 6)
    neighbours = 2 * torch.eye(5) - torch.diag(torch.ones(4), 1) - torch.diag(torch.ones(4), -1)
    for s in range(5):
        for t in range(5):
            assert torch.equal(gram[s, :, t], (neighbours[s, t] * torch.eye(6)).double())
    assert bool((a @ torch.rand(7).double().repeat(6)).abs().max() < 1e-15)
    twice = Leto(LetoConfig(hidden_dim=8, alpha=2.0), task(7, {"x": (5,)}), seed=0)
    change = (twice.head.hessian() - made.head.hessian()).detach().view(6, 7, 6, 7)
    torch.testing.assert_close(change.view(42, 42), a.mT @ a)
    assert bool((change[:, 6] == 0).all()) and bool((change[:, :, :, 6] == 0).all())


def test_shapes_of_the_paper() -> None:
    shapes = {"agentview": (64,), "wrist": (64,), "robot0_eef_pos": (3,), "robot0_eef_quat": (4,), "robot0_gripper_qpos": (2,)}
    made = Leto(LetoConfig(hidden_dim=1000), task(7, shapes), seed=0)
    assert (made.observer.out, made.lstm.num_layers, made.lstm.hidden_size) == (137, 2, 1000)
    obs = {key: torch.randn(64, 12, *shape) for key, shape in shapes.items()}
    actions = torch.rand(64, 17, 7) * 2 - 1
    with torch.no_grad():
        e, hidden = made(obs)
        y, info = made.head(e.flatten(0, 1))
    assert e.shape == (64, 12, 42) and hidden[0].shape == (2, 64, 1000) and bool((e.abs() < 1).all())
    assert y.shape == (768, 6, 7) and info.status.shape == (768,) and bool(info.certified.all())
    target = overlapping(actions, 6).flatten(2)
    assert target.shape == (64, 12, 42) == y.view(64, 12, 42).shape
    assert all(torch.equal(target[3, i, 7 * j : 7 * j + 7], actions[3, i + j]) for i in range(12) for j in range(6))


def test_from_a_file_to_a_loss(tmp_path: Path) -> None:
    g = np.random.default_rng(0)
    episodes = [
        Recording({key: 4 * g.random((t, *shape)) for key, shape in SHAPES.items()}, g.uniform(-1, 1, (t, 7)), np.zeros(t))
        for t in (9, 5, 12)
    ]
    env_args = {"env_name": "made", "type": 2, "env_kwargs": {}, "env_version": "1"}
    write_demonstrations(tmp_path / "demos.hdf5", episodes, env_args)
    demonstrations = open_robomimic(tmp_path / "demos.hdf5", obs_keys=list(SHAPES))
    fitted, fresh = policy(normalization="leto"), policy(normalization="leto", seed=1)
    fitted.fit_normalizer_(demonstrations)
    encoded = fitted.observer({k: x[None] for k, x in demonstrations.low_dim.items()})[0]
    assert torch.equal(encoded[:, :-3], demonstrations.low_dim["object"])
    torch.testing.assert_close(encoded[:, -3:].aminmax(dim=0), (-torch.ones(3), torch.ones(3)))
    fresh.load_state_dict(fitted.state_dict())
    batch = demonstrations.windows(4, 3).gather(torch.tensor([0, 3, 5, 8]))
    loss, metrics = fitted.loss(batch)
    assert torch.equal(fresh.loss(batch)[0], loss) and metrics["qp/uncertified"] == 0
    made = policy(encoder_dims=[8, 5])
    assert made.before(made.observer(batch.obs)).shape == (4, 4, 5)


@pytest.mark.parametrize("squash", [True, False])
def test_loss_against_an_independent_solver(squash: bool) -> None:
    made = policy(squash=squash)
    batch = random_batch(3, made)
    rows, errors = made.head.constraints, []
    with torch.no_grad():
        loss, metrics = made.loss(batch)
        lower, upper = (x[0] for x in rows.bounds(1, None, None))
        for b in range(3):
            state = None
            for i in range(4):  # one step at a time
                features = torch.cat([batch.obs["object"][b, i], batch.obs["robot0_eef_pos"][b, i]])
                h, state = made.lstm(features[None, None], state)
                x = made.linear(h)[0, 0]
                e = (-torch.tanh(x) if squash else -x).double()
                y, infeasible = clarabel_solve(made.head.hessian(), rows.rows, e, lower, upper)
                assert not infeasible
                errors += [(y[7 * j + k] - batch.actions[b, i + j, k]) ** 2 for j in range(3) for k in range(7)]
    torch.testing.assert_close(loss.double(), torch.stack(errors).mean(), rtol=1e-5, atol=0)
    assert metrics["qp/uncertified"] == 0 and 0 < metrics["qp/kkt"] < 1e-9 and metrics["loss"] == loss


@pytest.mark.parametrize("head", ["qp", "clip", "none"])
def test_gradient_against_finite_differences(head: str) -> None:
    made = policy(head=head).double()
    batch = random_batch(2, made)
    batch = replace(batch, obs={k: x.double() for k, x in batch.obs.items()}, actions=batch.actions.double())
    made.loss(batch)[0].backward()
    g = torch.Generator().manual_seed(1)
    parameters = list(made.parameters())
    direction = [torch.randn(p.shape, generator=g, dtype=p.dtype) for p in parameters]
    assert all(p.grad is not None and bool(p.grad.abs().max() > 0) for p in parameters)
    slope = sum(float((p.grad * d).sum()) for p, d in zip(parameters, direction, strict=True))
    values = []
    for step in (1e-6, -2e-6):
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p += step * d
            values.append(float(made.loss(batch)[0]))
    assert slope == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-5)


def test_infeasible_samples_are_excluded() -> None:
    made = policy(limits=HEIGHT)
    batch = random_batch(5, made)
    batch.obs["robot0_eef_pos"][..., 2] = 0.1
    without = WindowBatch({k: x[[0, 1, 3, 4]] for k, x in batch.obs.items()}, batch.actions[[0, 1, 3, 4]], batch.mask[:4])
    expected = made.loss(without)[0]
    expected.backward()
    gradients = [p.grad.clone() for p in made.parameters()]
    batch.obs["robot0_eef_pos"][2, :, 2] = -1.0  # a metre below the table: no plan of 3 steps gets back
    made.zero_grad()
    loss, metrics = made.loss(batch)
    loss.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close([p.grad for p in made.parameters()], gradients)
    assert float(metrics["qp/uncertified"]) == pytest.approx(1 / 5)
    batch.obs["robot0_eef_pos"][..., 2] = -1.0
    made.zero_grad()
    loss, metrics = made.loss(batch)
    loss.backward()
    assert float(loss.detach()) == 0 and metrics["qp/uncertified"] == 1
    assert all(bool((p.grad == 0).all()) for p in made.parameters())


def test_padding_does_not_count() -> None:
    made = policy()
    batch = random_batch(4, made)
    batch.mask[1, -2:], batch.mask[3, :2] = False, False
    with torch.no_grad():
        loss, _ = made.loss(batch)
        y, _ = made.predict(batch.obs)
        spoiled = replace(batch, actions=torch.where(batch.mask[..., None], batch.actions, 77.0))
        assert torch.equal(made.loss(spoiled)[0], loss)
    errors = [
        (y[b, i, j] - batch.actions[b, i + j]).square().mean()
        for b in range(4) for i in range(4) for j in range(3) if batch.mask[b, i + j]
    ]  # fmt: skip
    torch.testing.assert_close(loss, torch.stack(errors).mean())


def test_overfits_a_few_windows() -> None:
    made = policy(action_dim=3, hidden_dim=32, init="identity")
    batch = random_batch(6, made)
    ramp = torch.linspace(0, 0.4, 6)[None, :, None] * torch.tensor([1.0, -1.0, 2.0])  # 0.08 per step, 0.16 for the gripper
    batch = replace(batch, actions=ramp + torch.linspace(-0.5, 0.5, 6)[:, None, None])
    optimizer = torch.optim.Adam(made.parameters(), 1e-2)
    first = float(made.loss(batch)[0].detach())
    for _ in range(150):
        optimizer.zero_grad()
        loss, _ = made.loss(batch)
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 1e-3 < 0.1 < first


def test_one_step_at_a_time_is_the_whole_sequence() -> None:
    made = policy(layers=3, hidden_dim=11).double()
    obs = {k: x.double() for k, x in observations(5, 6).items()}
    with torch.no_grad():
        whole, (h, c) = made(obs)
        hidden, steps = (torch.zeros(3, 5, 11).double(), torch.zeros(3, 5, 11).double()), []
        for i in range(6):
            e, hidden = made({k: x[:, i : i + 1] for k, x in obs.items()}, None, hidden)
            steps.append(e)
    torch.testing.assert_close((torch.cat(steps, 1), *hidden), (whole, h, c), rtol=0, atol=1e-14)


@pytest.mark.parametrize("head", ["qp", "none"])
def test_hidden_state_is_forgotten_every_window(head: str) -> None:
    made = policy(window=12, head=head, memory="restart").eval()
    obs = observations(2, 26)
    actor = made.actor(2, seed=0)
    actions = rolled(actor, obs)
    for call in (12, 24):  # the 13th and the 25th
        fresh = made.actor(2, seed=0)
        fresh.previous = actions[:, call - 1]
        one = fresh.act({k: x[:, call] for k, x in obs.items()}, torch.zeros(2, dtype=torch.bool))
        torch.testing.assert_close(one, actions[:, call], rtol=0, atol=1e-6)
    late = made.actor(2, seed=0)
    late.previous = actions[:, 12]
    assert not torch.allclose(late.act({k: x[:, 13] for k, x in obs.items()}, torch.zeros(2, dtype=torch.bool)), actions[:, 13])


def test_rollout_begins_as_training_does() -> None:
    made = policy(limits={"acceleration": 2.0}).eval()  # so that continuity does not bind: |v| <= 1 after the action 0
    obs = observations(3, 4)
    with torch.no_grad():
        y, _ = made.predict(obs)
    first = made.actor(3, seed=0).act({k: x[:, 0] for k, x in obs.items()}, torch.ones(3, dtype=torch.bool))
    torch.testing.assert_close(first, y[:, 0, 0].clamp(-1, 1))


@pytest.mark.parametrize(("trained", "deployed"), [("qp", None), ("qp", "clip"), ("none", "qp"), ("none", "clip")])
def test_limits_hold_along_rollouts(trained: str, deployed: str | None) -> None:
    made = policy(head=trained)
    with torch.no_grad():
        for p in [*made.lstm.parameters(), *made.linear.parameters()]:
            p.mul_(5)  # outputs that jump from -1 to 1
    actor = made.actor(4, seed=0, head=deployed)
    actions = rolled(actor, observations(4, 150, scale=5.0))
    moves = torch.cat([torch.zeros(4, 1, 7), actions], 1).diff(dim=1)[..., :6].abs()
    assert actions.dtype == torch.float32 and bool((actions.abs() <= 1).all())
    assert 0.1 - 1e-6 < float(moves.max()) <= 0.1 + 1e-6
    assert actor.metrics() == {"head/braked": 0.0, "head/relaxed": 0.0} and made.training and made.head.training


def test_no_head_and_letos_clipping_baseline() -> None:
    made = policy(head="none").eval()
    obs = observations(2, 9)
    with torch.no_grad():
        free, clipped, projected = (rolled(made.actor(2, seed=0, head=head), obs) for head in (None, "clip", "qp"))
    last = torch.zeros(2, 6)
    for t in range(9):
        last = last + (free[:, t, :6] - last).clamp(-0.1, 0.1)
        torch.testing.assert_close(clipped[:, t, :6], last)
    torch.testing.assert_close(clipped[..., 6], free[..., 6])
    torch.testing.assert_close(projected[..., 6], free[..., 6])
    assert not torch.allclose(projected, clipped)
    one = policy(head="none", horizon=1).eval()  # where there is nothing to look ahead to, clipping is the projection
    torch.testing.assert_close(rolled(one.actor(2, seed=0, head="qp"), obs), rolled(one.actor(2, seed=0, head="clip"), obs))


def test_trained_head_without_limits_is_its_unconstrained_optimum() -> None:
    made = policy().eval()
    wide = policy(limits={"acceleration": 1e9}).eval()
    with torch.no_grad():
        for linear in (made.linear, wide.linear):  # small enough for the velocity limits
            linear.weight.mul_(0.1), linear.bias.mul_(0.1)
    obs = {k: x[:, 0] for k, x in observations(3, 1).items()}
    begin = torch.ones(3, dtype=torch.bool)
    with torch.no_grad():
        e, _ = made({k: x[:, None] for k, x in obs.items()})
        optimum = -torch.linalg.solve(made.head.hessian(), e[:, 0].double().mT).mT.view(3, 3, 7)
    assert bool((optimum.abs() < 1).all())
    optimum = optimum[:, 0]
    torch.testing.assert_close(made.actor(3, seed=0, head="none").act(obs, begin), optimum.float())
    torch.testing.assert_close(wide.actor(3, seed=0).act(obs, begin), optimum.float(), atol=1e-5, rtol=1e-5)


def test_height_limit_holds_where_positions_are_integrated() -> None:
    made = policy(limits=HEIGHT | {"acceleration": 1.0}, init="identity", alpha=0.0).eval()
    with torch.no_grad():
        made.linear.bias.view(3, 7)[:, 2] = -20.0  # always down
    z, heights = torch.full((2,), 0.12), []
    actor = made.actor(2, seed=0)
    for t in range(30):
        obs = observations(2, seed=t)
        obs["robot0_eef_pos"] = torch.stack([torch.zeros(2), torch.zeros(2), z], 1)
        z = z + 0.05 * actor.act(obs, torch.full((2,), t == 0))[:, 2]
        heights.append(z)
    assert actor.metrics()["head/braked"] == 0
    assert 0.0475 - 1e-6 < float(torch.stack(heights).min()) < 0.0475 + 1e-6
    torch.testing.assert_close(heights[1] - 0.0475, (heights[0] - 0.0475) / 2)  # two steps are planned to share what is left


def test_environments_are_independent() -> None:
    made = policy().eval()
    obs, begins = observations(3, 10), torch.zeros(3, 10, dtype=torch.bool)
    begins[:, 0] = begins[1, 5] = True
    actions = rolled(made.actor(3, seed=0), obs, begins)
    order = [2, 0, 1]
    mixed = rolled(made.actor(3, seed=0), {k: x[order] for k, x in obs.items()}, begins[order])
    torch.testing.assert_close(mixed, actions[order], rtol=0, atol=1e-6)
    again = rolled(made.actor(1, seed=0), {k: x[1:2, 5:] for k, x in obs.items()})
    torch.testing.assert_close(again, actions[1:2, 5:], rtol=0, atol=1e-6)


def test_memory_is_saved_bit_for_bit() -> None:
    made = policy().eval()
    obs, none = observations(2, 10), torch.zeros(2, 4, dtype=torch.bool)
    first, second = made.actor(2, seed=0), made.actor(2, seed=0)
    rolled(first, {k: x[:, :6] for k, x in obs.items()})
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    second.load_state_dict(torch.load(buffer, weights_only=True))
    rest = {k: x[:, 6:] for k, x in obs.items()}
    assert torch.equal(rolled(first, rest, none), rolled(second, rest, none)) and first.metrics() == second.metrics()


def test_uncertified_actions_are_braked_and_counted() -> None:
    made = policy().eval()
    actor = made.actor(2, seed=0)

    class Broken(torch.nn.Module):
        def forward(self, e: Tensor, position: Tensor | None, previous: Tensor) -> tuple[Tensor, SolveInfo]:
            y, info = made.head(e, position, previous)
            y[0] = torch.nan
            return y, replace(info, status=torch.tensor([SolveStatus.FAILED, SolveStatus.RELAXED]))

    actor.head = Broken()
    actor.previous = torch.tensor([[0.5, -0.5, 0.05, -0.05, 0.0, 1.0, -1.0]] * 2)
    action = actor.act({k: x[:, 0] for k, x in observations(2, 1).items()}, torch.zeros(2, dtype=torch.bool))
    torch.testing.assert_close(action[0], torch.tensor([0.4, -0.4, 0.0, 0.0, 0.0, 0.9, -1.0]))
    assert bool(action.isfinite().all()) and actor.metrics() == {"head/braked": 0.5, "head/relaxed": 0.5}
    assert actor.metrics() == {"head/braked": 0.0, "head/relaxed": 0.0}


def test_same_seed_same_policy() -> None:
    state = torch.get_rng_state()
    one, same, other = policy(), policy(), policy(seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), same.state_dict().values(), strict=True))
    assert not torch.equal(one.head.L, other.head.L) and not torch.equal(one.linear.weight, other.linear.weight)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"free": [9]}, r"free=\[9\]: there are 7 actions"),
        ({**HEIGHT, "position_max": []}, "give all or none"),
        ({**HEIGHT, "position_axes": [6]}, "axes among the limited actions"),
        ({**HEIGHT, "position_axes": [4]}, "no such observations"),
        ({**HEIGHT, "position_key": "eef"}, "no such observations"),
    ],
)
def test_mistakes_in_limits(limits: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        policy(limits=limits)
    with pytest.raises(ConfigError, match="head=project"):
        policy().actor(1, seed=0, head="project")
