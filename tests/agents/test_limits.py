"""Units of limits against physics, and the limits of executed actions along whole episodes, whatever the policy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from agents.policies.chunks import ChunkActor
from agents.policies.limits import LimitsConfig
from difftop.data.robomimic import Recording, open_robomimic, write_demonstrations
from difftop.options import ConfigError, build
from difftop.qp import SolveInfo
from difftop.qp.heads import make_head
from difftop.types import EnvSpec, SolveStatus
from tests.agents.imitators import NAMES, SPEC, make, observations, rolled
from tests.conftest import task_spec

ARM = task_spec("test/arm", {"eef_pos": (3,)}, 7, episode_steps=10, control_dt_s=0.05)


def limits(spec: EnvSpec = ARM, horizon: int = 4, **values: Any) -> Any:
    return build(LimitsConfig, values).make(spec, horizon)


def test_letos_numbers_are_per_step() -> None:
    made = limits()
    assert made.selected == (0, 1, 2, 3, 4, 5) and made.dt == 1
    assert made.vector("velocity_max") == [1.0] * 6 and made.vector("acceleration_max") == [0.1] * 6
    assert made.vector("acceleration_min") == [-0.1] * 6 and made.position_matrix is None


def test_physical_units_are_those_of_the_motion() -> None:
    made = limits(
        units="physical", velocity=0.4, acceleration=2.0, turning=[3, 4, 5], turning_velocity=5.0, turning_acceleration=40.0
    )
    # robosuite: action 1 moves 0.05 m and turns 0.5 rad in a step of 0.05 s, so it is 1 m/s and 10 rad/s
    assert made.vector("velocity_max") == pytest.approx([0.4] * 3 + [0.5] * 3)
    assert made.vector("acceleration_max") == pytest.approx([0.1] * 3 + [0.2] * 3)
    action = torch.tensor(made.vector("acceleration_max"))[0]
    steps = torch.arange(5) * action  # velocities of the fastest start
    speed_m_s = steps * 0.05 / ARM.control_dt_s
    torch.testing.assert_close(speed_m_s.diff() / ARM.control_dt_s, torch.full((4,), 2.0))
    slow = replace(ARM, control_dt_s=0.1)
    assert limits(slow, units="physical", acceleration=2.0).vector("acceleration_max")[0] == pytest.approx(0.4)
    fast = limits(units="physical", velocity=3.0, turning=[-2])
    assert fast.vector("velocity_max") == [1.0] * 6  # no faster than the action's box
    assert fast.vector("acceleration_max")[5] == float("inf")


def test_positions_are_in_metres_in_both_units() -> None:
    for units in ("action", "physical"):
        config = build(
            LimitsConfig,
            {"units": units, "position_key": "eef_pos", "position_axes": [2], "position_min": [0.05], "position_max": [0.4]},
        )
        made = config.make(ARM, 4)
        assert made.vector("position_min") == pytest.approx([1.0]) and made.vector("position_max") == pytest.approx([8.0])
        positions = config.positions({"eef_pos": torch.tensor([[1.0, 2.0, 0.1]])}, made)
        assert positions is not None and positions.tolist() == [pytest.approx([0, 0, 2, 0, 0, 0])]
    assert LimitsConfig().positions({}, limits()) is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"free": [7]}, r"limits.free=\[7\]: there are 7 actions"),
        ({"turning": [-8]}, r"limits.turning=\[-8\]"),
        ({"velocity": 2.0}, r"limits.velocity=2: in action units at most 1; for m/s set limits.units=physical"),
        ({"units": "metres"}, "units=metres: must be action | physical"),
        ({"position_key": "eef_pos"}, "give all or none"),
        ({"position_key": "eef", "position_axes": [2], "position_min": [0.0], "position_max": [1.0]}, "no such observations"),
    ],
)
def test_mistakes(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        limits(**values)


def test_demonstrations_outside_of_the_position_limits_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    heights = np.linspace(0, 1, 11)
    episode = Recording({"eef_pos": np.stack([heights] * 3, 1)}, np.zeros((11, 7)), np.zeros(11))
    write_demonstrations(tmp_path / "a.hdf5", [episode], {"env_name": "a", "type": 2, "env_kwargs": {}, "env_version": "1"})
    demonstrations = open_robomimic(tmp_path / "a.hdf5")
    for low, told in ((-0.5, ""), (0.35, "4 of 11 are outside"), (0.65, "")):
        values = {"position_key": "eef_pos", "position_axes": [2], "position_min": [low], "position_max": [2.0]}
        config = LimitsConfig(**values)
        made = config.make(ARM, 4)
        caplog.clear()
        if low > 0.5:
            with pytest.raises(ConfigError, match=r"position_min, position_max: .* 7 of 11 are outside"):
                config.check_demonstrations(demonstrations, made)
            continue
        config.check_demonstrations(demonstrations, made)
        assert told in caplog.text and bool(told) == bool(caplog.text)


def test_heads_by_name() -> None:
    with pytest.raises(ConfigError, match="head=project: must be one of none, clip, qp"):
        make_head("project", limits())
    height = {"position_key": "eef_pos", "position_axes": [2], "position_min": [0.0], "position_max": [1.0]}
    with pytest.raises(ConfigError, match="head=clip: position_matrix is set, but clipping can't keep position limits"):
        make_head("clip", limits(**height))


def moves(actions: Tensor, begins: Tensor) -> tuple[float, float]:
    """Largest velocity and largest change of the limited actions (all but the last), zero standing before each episode."""
    before = torch.cat([torch.zeros_like(actions[:, :1]), actions[:, :-1]], 1)
    before = torch.where(begins[..., None], 0.0, before)
    limited = actions[..., :-1].double()
    return float(limited.abs().max()), float((limited - before[..., :-1].double()).abs().max())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("head", ["clip", "qp"])
def test_no_action_leaves_the_limits(name: str, head: str, tmp_path: Path) -> None:
    fast = {"ibc": {"execute": 1, "samples": 16, "rounds": 2}, "diffusion": {"ddim_steps": 2}}
    several = fast.get(name, {"execute": 3})
    agent = make(name, home=tmp_path, limits={"velocity": 0.6, "acceleration": 0.15}, **several)
    with torch.no_grad():
        for key, p in agent.policy.named_parameters():
            p.mul_(1 if key == "head.L" else 3)  # outputs that jump
    obs = observations(3, 200, scale=3.0)
    begins = torch.zeros(3, 200, dtype=torch.bool)
    begins[:, 0] = begins[1, 61] = begins[2, 100] = True
    free = rolled(agent.actor(3, seed=0, head="none"), obs, begins)
    assert moves(free, begins)[1] > 0.3
    actor = agent.actor(3, seed=0, head=head)
    velocity, jump = moves(rolled(actor, obs, begins), begins)
    assert velocity <= 0.6 + 1e-6 and jump <= 0.15 + 1e-6
    assert jump > 0.14 and actor.metrics() == {"head/braked": 0.0, "head/relaxed": 0.0}


def test_clipping_is_letos_baseline_across_chunks() -> None:
    agent = make("bc", execute=3)
    obs = observations(2, 20)
    free, clipped = (rolled(agent.actor(2, seed=4, head=head), obs) for head in ("none", "clip"))
    last = torch.zeros(2, 3)
    for t in range(20):
        last = last + (free[:, t, :3] - last).clamp(-0.1, 0.1)
        torch.testing.assert_close(clipped[:, t, :3], last)
    assert torch.equal(clipped[..., 3], free[..., 3])


def test_projection_is_the_nearest_chunk() -> None:
    """Against a projection by an independent solver, continuity with the last executed action included."""
    import clarabel
    import numpy as np
    from scipy import sparse

    agent = make("bc", execute=3, limits={"acceleration": 0.2, "free": []})
    obs = observations(1, 6, scale=3.0)
    free_actor = agent.actor(1, seed=4, head="none")
    free, made = rolled(free_actor, obs), rolled(agent.actor(1, seed=4, head="qp"), obs)
    for first in (0, 3):
        wanted = free[0, first : first + 3].double().numpy()
        before = made[0, first - 1].double().numpy() if first else np.zeros(4)
        difference = sparse.kron(sparse.csc_matrix(np.eye(3) - np.eye(3, k=-1)), sparse.identity(4))
        rows = sparse.vstack([sparse.identity(12), difference])
        offset = np.concatenate([np.zeros(12), before, np.zeros(8)])
        bound = np.concatenate([np.ones(12), np.full(12, 0.2)])
        g, h = sparse.vstack([rows, -rows]).tocsc(), np.concatenate([bound + offset, bound - offset])
        settings = clarabel.DefaultSettings()
        settings.verbose = False
        solver = clarabel.DefaultSolver(
            sparse.identity(12, format="csc"), -wanted.ravel(), g, h, [clarabel.NonnegativeConeT(len(h))], settings
        )
        expected = torch.tensor(solver.solve().x, dtype=torch.float64).view(3, 4)
        torch.testing.assert_close(made[0, first : first + 3].double(), expected, rtol=0, atol=2e-6)


def test_without_a_certificate_the_arm_brakes_and_plans_anew() -> None:
    agent = make("bc", execute=3, limits={"acceleration": 0.1})
    actor = agent.actor(2, seed=0, head="qp")
    assert isinstance(actor, ChunkActor)
    right, calls = actor.head, []

    class Broken(torch.nn.Module):
        def forward(self, e: Tensor, position: Tensor | None, previous: Tensor) -> tuple[Tensor, SolveInfo]:
            y, info = right(e, position, previous)
            calls.append(len(e))
            if len(calls) == 2:
                y[0] = torch.nan
                info = replace(info, status=torch.tensor([SolveStatus.FAILED, SolveStatus.RELAXED]))
            return y, info

    actor.head = Broken()
    obs = observations(2, 8, scale=3.0)
    actions = rolled(actor, obs)
    assert bool(actions.isfinite().all()) and calls == [2, 2, 1, 1, 1]  # after the failure, the two take turns
    last, now = actions[0, 2], actions[0, 3]
    torch.testing.assert_close(now[:3], last[:3] - last[:3].clamp(-0.1, 0.1))
    assert now[3] == last[3]
    assert moves(actions, torch.arange(8).expand(2, 8) == 0)[1] <= 0.1 + 1e-6
    assert actor.metrics() == {"head/braked": pytest.approx(1 / 7), "head/relaxed": pytest.approx(1 / 7)}
    assert agent.actor(1, seed=0, head="none").metrics() == {}


def test_a_chunk_is_executed_before_the_next_one() -> None:
    agent = make("bc", execute=3)
    obs = observations(2, 7)
    begins = torch.zeros(2, 7, dtype=torch.bool)
    begins[:, 0] = begins[1, 2] = True
    actions = rolled(agent.actor(2, seed=0), obs, begins)
    changed = {key: x.clone() for key, x in obs.items()}
    for x in changed.values():
        x[0, 1:2] += 1  # seen, but by no prediction: the next is made from steps 2 and 3
        x[1, 3:4] += 1
    assert torch.equal(rolled(agent.actor(2, seed=0), changed, begins), actions)
    for x in changed.values():
        x[1, 5] += 1
    assert not torch.equal(rolled(agent.actor(2, seed=0), changed, begins)[1, 5:], actions[1, 5:])
    assert SPEC.action_dim == actions.shape[2]
