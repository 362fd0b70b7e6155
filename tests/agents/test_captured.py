"""Agents whose updates and plans are captured, on a CPU's tape or on one in place of a CUDA graph: as without, bit for bit."""

from __future__ import annotations

import copy
import logging
from importlib.util import find_spec
from typing import Any

import pytest
import torch

from agents.latent.agent import LatentAgent
from agents.registry import make_agent
from difftop.capture import Backend, Graphs, TapeBackend
from difftop.losses import FiniteWatch
from difftop.options import ConfigError
from difftop.types import EnvSpec
from tests.agents import imitators
from tests.agents.test_agents import small
from tests.conftest import PIXELS, STATE, random_batch
from tests.tape import TapeBackend as CudaLike

SCHEDULE = {"horizon": 2, "horizon_start": 1, "horizon_steps": 40, "std_start": 0.5, "std_end": 0.1, "std_steps": 40}
GRADIENT = {"policy_gradient": {"mode": "replay", "every": 2, "states": 4}}


class Early(TapeBackend):
    """A CPU's tape, recorded as early as a CUDA graph, and counted like it."""

    eager_calls, loud = 2, True


BACKENDS = pytest.mark.parametrize("made_by", [CudaLike, Early])


def pair(
    name: str, spec: EnvSpec, planner: str = "mppi", lm: Any = None, made_by: type[Backend] = CudaLike, **more: Any
) -> tuple[LatentAgent, LatentAgent]:
    """The same agent twice, the second captured; both keep what isn't finite for later."""
    acting = {**SCHEDULE, "planner": planner, "mppi": {"samples": 16, "elites": 4}, "lm": {"start_previous": True, **(lm or {})}}
    found = []
    for backend in (None, made_by()):
        agent = small(name, spec, acting=acting, **more)
        agent.finite = FiniteWatch(agent.device, deferred=True)
        steps = [agent.optimizer, agent.prior_optimizer]
        mode = "false" if backend is None else "auto"
        agent.graphs = Graphs(agent.device, mode, generators=[agent.generator], optimizers=steps, backend=backend)
        found.append(agent)
    return found[0], found[1]


def assert_equal(eager: LatentAgent, captured: LatentAgent) -> None:
    for (key, a), b in zip(eager.state_dict().items(), captured.state_dict().values(), strict=True):
        assert torch.equal(a, b), key
    assert torch.equal(eager.generator.get_state(), captured.generator.get_state())


@BACKENDS
def test_captured_updates_follow_how_rare_rewards_are(made_by: type[Backend]) -> None:
    eager, captured = pair("difftop_rl", STATE, made_by=made_by)
    for step in range(24):
        batch = random_batch(STATE, seed=step)
        for agent in (eager, captured):
            agent.finish_episode(agent.actor(1, seed=0), {0: 1.0, 8: 0.5, 16: 0.0}.get(step, agent.world.rare), step)
            agent.update(batch, 5 * step)
    assert_equal(eager, captured)
    assert captured.graphs.captured == 2  # while they are rare, however rare; and after


@BACKENDS
@pytest.mark.parametrize(
    ("name", "spec", "more", "steps"), [("tdmpc", STATE, {}, 20), ("difftop_rl", STATE, GRADIENT, 20), ("tdmpc", PIXELS, {}, 8)]
)
def test_captured_updates_are_the_updates(
    name: str, spec: EnvSpec, more: dict[str, Any], steps: int, made_by: type[Backend]
) -> None:
    eager, captured = pair(name, spec, made_by=made_by, loss={"target_every": 3}, **more)
    for step in range(steps):
        batch, told = random_batch(spec, seed=step), []
        for agent in (eager, captured):
            result = agent.update(batch, 5 * step)
            told.append(result.metrics | ({} if result.priorities is None else {"priorities": result.priorities}))
        assert told[0].keys() == told[1].keys()
        assert all(torch.equal(told[0][tag], told[1][tag]) for tag in told[0])
    assert_equal(eager, captured)
    # With target moves and without; and, without, with the policy gradient through plans of one step, and of two.
    assert captured.graphs.captured == {("tdmpc", 20): 2, ("difftop_rl", 20): 4, ("tdmpc", 8): 1}[name, steps]
    actor = eager.actor(1, seed=0)
    assert captured.finish_episode(actor, 1.0, 0)["train/captures"] == captured.graphs.captured
    assert captured.finish_episode(actor, 1.0, 0) == {"train/captures": torch.tensor(0.0)}
    assert eager.finish_episode(actor, 1.0, 0) == {}


@pytest.mark.parametrize(
    ("name", "planner"), [("difftop_rl", "lm"), ("difftop_rl", "mppi"), ("tdmpc", "mppi"), ("tdmpc", "none")]
)
@pytest.mark.parametrize("explore", [False, True])
@BACKENDS
def test_captured_actions_are_the_actions(name: str, planner: str, explore: bool, made_by: type[Backend]) -> None:
    """While schedules move, environments idle, and plans become longer."""
    actors = []
    for agent in pair(name, STATE, planner, made_by=made_by):
        actors.append(agent.actor(2, seed=3, explore=explore))
        for i in range(2):
            actors[-1].begin(i, i)
    for step in range(16):
        obs = {STATE.only_key: random_batch(STATE, size=2, seed=step).obs[:, 0]}
        t0 = torch.tensor([step == 0, step in (0, 8)])
        for actor in actors:
            if step == 13:
                actor.begin(0, None)
        taken = [actor.act(obs, t0, 4 * step) for actor in actors]
        assert torch.equal(*taken)
        assert torch.equal(actors[0].previous, actors[1].previous)
    eager, captured = actors[0].metrics(), actors[1].metrics()
    assert captured.pop("plan/captures") == 3.0  # plans of one step, of two, and of one environment
    assert eager == captured


@pytest.mark.parametrize("name", ["tdmpc", "difftop_rl"])
def test_in_bfloat16_too(name: str) -> None:
    eager, captured = (small(name, STATE, precision="bf16") for _ in range(2))
    eager.capture_graphs("false")
    captured.graphs = Graphs(
        captured.device,
        generators=[captured.generator],
        optimizers=[captured.optimizer, captured.prior_optimizer],
        backend=Early(),
    )
    for step in range(12):
        for agent in (eager, captured):
            agent.update(random_batch(STATE, seed=step), 0)
    assert captured.graphs.captured
    assert_equal(eager, captured)


def test_a_copy_of_a_captured_agent_goes_on_alone() -> None:
    agent = pair("difftop_rl", STATE, made_by=Early)[1]
    for step in range(6):
        agent.update(random_batch(STATE, seed=step), 0)
    assert agent.graphs.captured
    other = copy.deepcopy(agent)
    for each in (agent, other):
        each.update(random_batch(STATE, seed=9), 0)
    assert_equal(agent, other)


def test_an_observation_that_is_not_finite_is_told_on_a_cpu() -> None:
    actor = pair("difftop_rl", STATE, "lm", made_by=Early)[1].actor(1, seed=0)
    seen = random_batch(STATE, size=1).obs[:, 0]
    for _ in range(4):
        actor.act({STATE.only_key: seen}, torch.tensor([False]), 0)
    with pytest.raises(ValueError, match="state: some of the observed numbers are not finite"):
        actor.act({STATE.only_key: seen * torch.nan}, torch.tensor([False]), 0)


def test_a_checkpoint_that_is_loaded_is_captured_anew() -> None:
    eager, captured = pair("tdmpc", STATE)
    states = []
    for agent in (eager, captured):
        for step in range(8):
            if step == 4:
                states.append(copy.deepcopy(agent.train_state()))
                agent.load_state_dict(copy.deepcopy(agent.state_dict()))
                agent.load_train_state(states[-1])
            agent.update(random_batch(STATE, seed=step), 0)
    assert_equal(eager, captured)
    assert states[0].keys() == states[1].keys() and not states[1]["optimizer"]["param_groups"][0]["capturable"]


def test_what_cannot_be_captured_is_told_once_for_all_actors(caplog: pytest.LogCaptureFixture) -> None:
    obs, t0 = {STATE.only_key: random_batch(STATE, size=2).obs[:, 0]}, torch.tensor([True, True])
    agent = pair("tdmpc", STATE)[1]
    steps = [agent.optimizer, agent.prior_optimizer]
    agent.graphs = Graphs(agent.device, generators=[agent.generator], optimizers=steps, backend=CudaLike(fails=True))
    with caplog.at_level(logging.WARNING):
        for seed in range(2):
            actor = agent.actor(2, seed=seed)
            for _ in range(4):
                actor.act(obs, t0, 0)
        for step in range(6):
            agent.update(random_batch(STATE, seed=step), 0)
    assert [text.getMessage().split(" can't")[0] for text in caplog.records] == [
        "capture=auto: a plan",
        "capture=auto: an update",
    ]


@pytest.mark.skipif(find_spec("theseus") is None, reason="theseus isn't installed")
def test_a_planner_that_reads_numbers_is_not_captured() -> None:
    agent = pair("difftop_rl", STATE, "lm", {"backend": "theseus"})[1]
    assert agent.graphs.active and not agent.actor(1, seed=0).graphs.active


def test_tapes_are_not_counted() -> None:
    """A run that goes on records anew, and its metrics are those of one that was never stopped."""
    agent, actor = small("tdmpc", STATE), small("tdmpc", STATE).actor(1, seed=0)
    agent.update(random_batch(STATE), 0)
    assert agent.graphs.active and not agent.graphs.loud
    assert agent.finish_episode(actor, 1.0, 0) == {} and "plan/captures" not in actor.metrics()


def test_who_can_be_captured_and_where() -> None:
    with pytest.raises(ConfigError, match="capture=true: CUDA graphs need device=cuda, and this is device=cpu"):
        make_agent({"name": "tdmpc"}, STATE, seed=0, capture="true")
    for capture, active in (("auto", True), ("false", False)):
        agent = make_agent({"name": "tdmpc"}, STATE, seed=0, capture=capture)
        assert isinstance(agent, LatentAgent) and agent.graphs.active is agent.finite.deferred is active
    with pytest.raises(ConfigError, match="capture=true: is for agents that learn from rewards, and agent=bc imitates"):
        make_agent({"name": "bc"}, imitators.SPEC, seed=0, capture="true")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("name", "more"), [("tdmpc", {}), ("difftop_rl", GRADIENT), ("tdmpc2", {})])
def test_on_a_gpu_captured_updates_and_actions_agree_with_eager_ones(name: str, more: dict[str, Any]) -> None:
    told: list[list[Any]] = []
    for capture in ("false", "true"):
        agent = small(name, STATE, "lm", device="cuda", **more)
        agent.capture_graphs(capture)
        actor = agent.actor(2, seed=3, explore=True)
        for i in range(2):
            actor.begin(i, i)
        told.append([])
        for step in range(12):
            batch = random_batch(STATE, seed=step)
            told[-1].append(agent.update(batch, 0).metrics["train/model_loss"])
            told[-1].append(actor.act({STATE.only_key: batch.obs[:2, 0]}, torch.tensor([step == 0] * 2), 0))
        agent.check_finite()
        assert (agent.graphs.captured > 0) == (actor.graphs.captured > 0) == (capture == "true")
    for eager, captured in zip(*told, strict=True):
        torch.testing.assert_close(captured, eager, rtol=1e-2, atol=1e-2)
