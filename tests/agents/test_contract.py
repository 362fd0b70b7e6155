"""The one contract of all agents: what they are made from, what they refuse, and what packages of others add."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from agents.latent.agent import LatentAgent
from agents.latent.planners import PLANNERS
from agents.latent.planning import Decision, Situation
from agents.registry import AGENTS, Entry, make_agent, names, world_models
from difftop.contract import restore_generator
from difftop.options import ConfigError
from difftop.types import EnvSpec, ObsSpec
from tests.agents.imitators import SMALL as IMITATORS
from tests.agents.imitators import make
from tests.conftest import SMALL, STATE, random_batch

SAMPLED = {"mppi": {"samples": 32, "elites": 8}}
THEIRS = '''
from dataclasses import dataclass, replace

import torch

from agents.latent.planning import Decision
from agents.registry import Entry
from agents.tdmpc import TDMPCConfig, make_tdmpc
from difftop.options import option

ENTRY = Entry("theirs", "make_theirs", "TheirConfig", "somebody's agent")


@dataclass(frozen=True)
class TheirConfig(TDMPCConfig):
    """Options."""

    name: str = option("theirs", "registry name of the agent")


def make_theirs(config, spec, **how):
    return make_tdmpc(config, spec, **how)


class Still:
    """A planner that does nothing."""

    def __init__(self, settings, world):
        self.world = world

    def decide(self, situation):
        return Decision(torch.zeros(len(situation.z), self.world.spec.action_dim))
'''


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A package of somebody else that adds an agent and a planner, one name that is taken, and one that can't be imported."""
    (tmp_path / "theirs.py").write_text(THEIRS)
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    agents = "[difftop.agents]\ntheirs = theirs:ENTRY\nbc = theirs:ENTRY\nbroken = nowhere:ENTRY\n"
    (info / "entry_points.txt").write_text(f"{agents}[difftop.planners]\nstill = theirs:Still\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for table in (AGENTS, PLANNERS):
        table.reread()
    yield
    sys.modules.pop("theirs", None)
    monkeypatch.undo()
    for table in (AGENTS, PLANNERS):
        table.reread()


def test_packages_of_others_add_agents_and_planners(installed: None, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert "theirs" in names("rewards") and AGENTS["bc"].module == "agents.bc" and "broken" not in AGENTS
    assert "bc of theirs is left out; the name is taken" in caplog.text and "broken of theirs is left out" in caplog.text
    assert list(PLANNERS) == ["lm", "mppi", "none", "still"]
    agent = make_agent({"name": "theirs", **SMALL, "acting": SMALL["acting"] | {"planner": "still"}}, STATE, seed=0)
    assert isinstance(agent, LatentAgent)
    agent.update(random_batch(STATE), 0)
    actions = agent.actor(2, seed=0).act({"state": torch.randn(2, 4)}, torch.tensor([True, True]), 0)
    assert torch.equal(actions, torch.zeros(2, 2))
    with pytest.raises(ConfigError, match=r"agent.acting.planner=stil: must be lm \| mppi \| none \| still"):
        make_agent({"name": "theirs", "acting": {"planner": "stil"}}, STATE, seed=0)


def test_nothing_of_others_is_left_without_their_package() -> None:
    assert list(PLANNERS) == ["lm", "mppi", "none"] and "theirs" not in AGENTS
    assert set(names("rewards")) | set(names("demonstrations")) == set(AGENTS)
    with pytest.raises(ValueError, match="learns_from='luck': must be one of rewards, demonstrations"):
        Entry("x", "y", "z", "", "luck")


def test_world_models_of_an_agent() -> None:
    assert list(world_models("difftop_rl")) == ["auto", "scaled", "tdmpc", "tdmpc2"] and world_models("tdmpc") == {}
    on = {world: make_agent({"name": "difftop_rl", "world_model": world, **SMALL}, STATE, seed=0) for world in ("auto", "tdmpc2")}
    assert [agent.config.world_model for agent in on.values()] == ["scaled", "tdmpc2"]  # type: ignore[attr-defined]


class Counting:
    """A planner that remembers what it was asked."""

    def __init__(self, planner: Any) -> None:
        self.planner, self.rows = planner, []

    def decide(self, situation: Situation) -> Decision:
        self.rows.append(len(situation.z))
        decision: Decision = self.planner.decide(situation)
        return decision


@pytest.mark.parametrize("planner", ["lm", "mppi", "none"])
def test_idle_environments_cost_no_plan_and_change_nothing(planner: str) -> None:
    acting = SMALL["acting"] | SAMPLED | {"planner": planner}
    agent = make_agent({"name": "difftop_rl", **SMALL, "acting": acting}, STATE, seed=0)
    assert isinstance(agent, LatentAgent)
    agent.planner = counting = Counting(agent.planner)
    obs, first = {"state": random_batch(STATE, size=4).obs[:, 0]}, torch.ones(4, dtype=torch.bool)
    few, alone = agent.actor(4, seed=0), agent.actor(2, seed=0)
    for i, seed in enumerate((None, 1, None, 2)):
        few.begin(i, seed)
    for t0 in (first, ~first):
        actions = few.act(obs, t0, 0)
        expected = alone.act({"state": obs["state"][[1, 3]]}, t0[:2], 0)
        torch.testing.assert_close(actions[[1, 3]], expected, rtol=0, atol=1e-6)
        assert torch.equal(actions[[0, 2]], torch.zeros(2, 2))
    assert counting.rows == [2, 2, 2, 2] and few.metrics() == alone.metrics()
    for i in range(4):
        few.begin(i, None)
    assert torch.equal(few.act(obs, first, 0), torch.zeros(4, 2)) and len(counting.rows) == 4
    again = agent.actor(4, seed=1)
    again.load_state_dict(few.state_dict())
    assert not any(again.playing)
    few.begin(0, 3)
    few.act(obs, first, 0)
    assert counting.rows[-1] == 1


@pytest.mark.parametrize("name", names("rewards"))
def test_several_observations_are_refused(name: str) -> None:
    two = replace(STATE, obs={"state": ObsSpec("vector", (4,)), "eye": ObsSpec("image", (3, 84, 84))})
    with pytest.raises(ConfigError, match=r"test/state has 2 observations \(state, eye\).*set obs=state or obs=pixels"):
        make_agent({"name": name, **SMALL}, two, seed=0)
    cloud = replace(STATE, obs={"cloud": ObsSpec("points", (64, 3))})
    with pytest.raises(ConfigError, match=r"gives points \(cloud\)"):
        make_agent({"name": name, **SMALL}, cloud, seed=0)


def test_other_observations_may_be_among_them() -> None:
    agent = make_agent({"name": "tdmpc", **SMALL, "acting": SMALL["acting"] | SAMPLED}, STATE, seed=0)
    obs, first = {"state": torch.randn(2, 4)}, torch.tensor([True, True])
    one, other = (agent.actor(2, seed=0).act(seen, first, 0) for seen in (obs, obs | {"clock": torch.zeros(2, 1)}))
    assert torch.equal(one, other)


def test_both_kinds_act_and_update_alike() -> None:
    online, imitating = make_agent({"name": "tdmpc", **SMALL}, STATE, seed=0), make("bc")
    with pytest.raises(ConfigError, match="head=clip: is for agents that imitate, and agent=tdmpc learns from rewards"):
        online.actor(1, seed=0, head="clip")
    assert imitating.actor(1, seed=0, explore=False, head="clip").metrics() == {"head/braked": 0, "head/relaxed": 0}
    from tests.agents.imitators import random_batch as windows

    result = imitating.update(windows(imitating), 0)
    assert result.priorities is None and "train/loss" in result.metrics


@pytest.mark.parametrize("name", ["bc", "rnn_gmm", "leto", "act", "tdmpc", "tdmpc2"])
def test_the_options_and_the_spec_as_json_are_enough(name: str) -> None:
    import json

    from tests.agents.imitators import SPEC, observations

    online = name in names("rewards")
    values = {"name": name, **(SMALL if online else IMITATORS[name])}
    spec: EnvSpec = STATE if online else SPEC
    saved = make_agent(values, spec, seed=1)
    values, spec = json.loads(json.dumps(values)), EnvSpec.from_plain(json.loads(json.dumps(spec.plain())))
    loaded = make_agent(values, spec, seed=2)
    loaded.load_state_dict(saved.state_dict())
    obs = {"state": torch.randn(2, 4)} if online else {key: x[:, 0] for key, x in observations(2, 1).items()}
    a, b = (agent.actor(2, seed=3).act(obs, torch.tensor([True, True]), 0) for agent in (saved, loaded))
    assert torch.equal(a, b)


def test_without_theseus_plans_are_made_and_only_its_backend_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "theseus", None)
    monkeypatch.delitem(sys.modules, "difftop.planning.theseus_lm", raising=False)
    agent = make_agent({"name": "difftop_rl", **SMALL}, STATE, seed=0)
    obs = {"state": torch.zeros(1, 4)}
    assert agent.actor(1, seed=0).act(obs, torch.tensor([True]), 0).shape == (1, 2)
    acting = SMALL["acting"] | {"lm": {"backend": "theseus"}}
    with pytest.raises(ConfigError, match=r"Theseus is not installed; docs/install\.md has the line that adds it"):
        make_agent({"name": "difftop_rl", **SMALL, "acting": acting}, STATE, seed=0)


def test_random_numbers_of_another_device_don_t_go_on() -> None:
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(ConfigError, match=r"^device=cpu: this run was trained on cuda, .* device=cuda, or begin another"):
        restore_generator(generator, torch.zeros(16, dtype=torch.uint8))
