"""Non-finite losses: at once on a CPU (tests/agents/test_agents.py), and kept on the device where the host doesn't wait."""

from __future__ import annotations

import copy

import pytest
import torch

from agents.policies.training import ImitationAgent
from agents.registry import names
from difftop.losses import FiniteWatch, NonFiniteLossError, RunningScale
from tests.agents import imitators
from tests.agents.test_agents import small
from tests.conftest import STATE, random_batch

DEVICE = torch.device("cpu")


@pytest.mark.parametrize("name", [*names("rewards"), "difftop_rl on tdmpc", "difftop_rl on tdmpc2"])
def test_watching_later_learns_the_same(name: str) -> None:
    now, later = small(name, STATE), small(name, STATE)
    later.finite = FiniteWatch(DEVICE, deferred=True)
    for agent in (now, later):
        for step in range(3):
            agent.update(random_batch(STATE), step)
    later.check_finite()
    assert all(torch.equal(a, b) for a, b in zip(now.state_dict().values(), later.state_dict().values(), strict=True))


@pytest.mark.parametrize("fault", ["reward", "gradient"])
@pytest.mark.parametrize("name", [*names("rewards"), "difftop_rl on tdmpc", "difftop_rl on tdmpc2"])
def test_no_weight_moves_after_a_non_finite_number(name: str, fault: str) -> None:
    agent, batch = small(name, STATE), random_batch(STATE)
    agent.capture_graphs("false")  # on a CPU it would look after each update
    agent.finite = FiniteWatch(DEVICE, deferred=True)
    agent.update(random_batch(STATE), 0)
    agent.check_finite()
    before = copy.deepcopy({key: value for key, value in agent.named_parameters() if ".model." in key})
    if fault == "reward":
        batch.reward[0, 0] = torch.nan
        message = r"^the model loss is nan$"
    else:
        weight = next(agent.model.encoder.parameters())
        hook = weight.register_hook(lambda gradient: gradient * torch.nan)
        message = r"^the norm of the model loss's gradient is nan$"
    result = agent.update(batch, 1)
    assert result.priorities is None or bool(result.priorities.isfinite().all())
    if fault == "gradient":
        hook.remove()
    agent.update(random_batch(STATE), 2)
    assert all(torch.equal(value, before[key]) for key, value in agent.named_parameters() if key in before)
    for _ in range(2):
        with pytest.raises(NonFiniteLossError, match=message):
            agent.check_finite()


@pytest.mark.parametrize("call", [1, 25])
def test_a_captured_update_tells_at_once_on_a_cpu(call: int) -> None:
    agent, broken = small("difftop_rl", STATE), random_batch(STATE)
    broken.reward[0, 0] = torch.nan
    for step in range(call):
        agent.update(random_batch(STATE), step)
    assert agent.graphs.captured == (call > 20)
    before = copy.deepcopy({key: value for key, value in agent.named_parameters() if ".model." in key})
    with pytest.raises(NonFiniteLossError, match=r"^the model loss is nan$"):
        agent.update(broken, call)
    assert all(torch.equal(value, before[key]) for key, value in agent.named_parameters() if key in before)


@pytest.mark.parametrize("name", ["bc", "rnn_gmm", "act"])
def test_nor_in_imitation(name: str) -> None:
    agent = imitators.make(name)
    assert isinstance(agent, ImitationAgent)
    agent.finite = FiniteWatch(DEVICE, deferred=True)
    agent.update(imitators.random_batch(agent), 0)
    before = copy.deepcopy(agent.state_dict())
    broken = imitators.random_batch(agent)
    broken.actions[0] = torch.nan
    agent.update(broken, 1)
    agent.update(imitators.random_batch(agent), 2)
    assert all(torch.equal(agent.state_dict()[key], before[key]) for key in before)
    with pytest.raises(NonFiniteLossError, match=r"^the loss is nan$"):
        agent.check_finite()


def test_the_first_of_several_is_named() -> None:
    watch = FiniteWatch(DEVICE, deferred=True)
    watch.raise_found()
    for value, name in ((1.0, "a"), (torch.inf, "b"), (torch.nan, "a"), (0.0, "c")):
        watch.check(torch.tensor(value), name)
    with pytest.raises(NonFiniteLossError, match=r"^b is inf$"):
        watch.raise_found()


def test_what_is_not_saved() -> None:
    assert set(RunningScale().state_dict()) == {"spread", "largest", "filled"}
