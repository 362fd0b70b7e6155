"""Agents on a device that isn't there: no host wait, and no tensor of the CPU mixed into its work.

Under `FakeTensorMode` tensors have shapes, types and devices, and no numbers: to read one is an error, and so is an operation
on two devices. The device is torch's `meta`, because a torch without CUDA can't slice a tensor of that device, and autograd asks
a real one for its guard; whatever isn't a CPU takes the same branches.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from agents.latent.agent import LatentAgent
from agents.policies.training import ImitationAgent
from agents.registry import make_agent
from difftop.losses import FiniteWatch
from difftop.types import EnvSpec
from tests.agents import imitators
from tests.agents.test_agents import NAMES, PLANNERS, small
from tests.conftest import random_batch

DEVICE = torch.device("meta")
_GENERATOR = torch.Generator
SMALL_IMITATORS: dict[str, dict[str, Any]] = {**imitators.SMALL, "difftop_il": {}}
SMALL_IMITATORS["leto"] = SMALL_IMITATORS["leto"] | {"head": "none"}  # the solver of head=qp reads what it solves


class Card(torch.Generator):
    """A generator of the device that isn't there."""

    device = DEVICE


class Either(torch.Generator):
    """What `torch.Generator` is meanwhile."""

    def __new__(cls, device: Any = "cpu") -> Any:
        """One of the device, or a real one."""
        return Card() if torch.device(device) == DEVICE else _GENERATOR(device)


class Idle:
    """An optimizer that does nothing: the real ones ask for the device."""

    def __init__(self, parameters: Any, **options: Any) -> None:
        given = list(parameters)
        self.param_groups = given if isinstance(given[0], dict) else [{"params": given}]

    def step(self) -> None:
        """Nothing."""

    def zero_grad(self, set_to_none: bool) -> None:
        """Nothing."""


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets agents be made on the device."""
    monkeypatch.setattr(torch, "Generator", Either)
    monkeypatch.setattr(torch.nn.Module, "to", lambda module, device: module)
    monkeypatch.setattr(torch, "autocast", lambda *device, enabled: nullcontext())
    clip = torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(
        torch.nn.utils, "clip_grad_norm_", lambda parameters, norm, foreach: clip(parameters, norm, foreach=False)
    )
    exponential = torch.Tensor.exponential_
    monkeypatch.setattr(torch.Tensor, "exponential_", lambda x, generator: exponential(x))  # torch has no fake of it with one
    monkeypatch.setattr(torch.optim, "Adam", Idle)
    monkeypatch.setattr(torch.optim, "AdamW", Idle)


def move(module: torch.nn.Module) -> None:
    """`module.to(DEVICE)`, under a `FakeTensorMode`; for which torch has nothing."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            setattr(part, name, torch.nn.Parameter(torch.empty(parameter.shape, device=DEVICE), parameter.requires_grad))
        for name, buffer in list(part.named_buffers(recurse=False)):
            setattr(part, name, torch.empty(buffer.shape, dtype=buffer.dtype, device=DEVICE))


@contextmanager
def latent(name: str, spec: EnvSpec, planner: str | None = None) -> Iterator[LatentAgent]:
    """A small agent there."""
    agent = small(name, spec, planner, device=DEVICE.type)
    with FakeTensorMode():
        move(agent)
        for group in agent.optimizer.param_groups:
            if "lr" in group:  # a rate of its own, which the update sets
                group["lr"] = torch.empty((), device=DEVICE)
        agent.finite = FiniteWatch(DEVICE)
        agent.critic_parameters = list(agent.gradient.critic.parameters()) if agent.gradient else []
        yield agent


@pytest.mark.parametrize("name", NAMES)
def test_an_update_waits_for_nothing(card: None, name: str, spec: EnvSpec) -> None:
    with latent(name, spec) as agent:
        for step in range(2):
            result = agent.update(random_batch(spec), step)
    assert all(value.device == DEVICE and value.dim() == 0 for value in result.metrics.values())


@pytest.mark.parametrize("planner", PLANNERS)
@pytest.mark.parametrize("name", NAMES)
def test_acting_waits_for_nothing(card: None, name: str, planner: str, spec: EnvSpec) -> None:
    with latent(name, spec, planner) as agent:
        actor = agent.actor(2, seed=0, explore=True)
        for playing in ((1, 2), (None, 3)):
            for i, seed in enumerate(playing):
                actor.begin(i, seed)
            obs, t0 = {spec.only_key: random_batch(spec, size=2).obs[:, 0]}, torch.zeros(2, dtype=torch.bool)
            action = actor.act(obs, t0, 0)
            assert action.shape == (2, 2) and action.device == DEVICE
        with pytest.raises(DataDependentOutputException):  # the one wait, when the log is written
            actor.metrics()


@contextmanager
def imitator(name: str, **more: Any) -> Iterator[ImitationAgent]:
    """A small agent there that imitates."""
    agent = make_agent({"name": name, **SMALL_IMITATORS[name], **more}, imitators.SPEC, seed=0, device=DEVICE.type)
    assert isinstance(agent, ImitationAgent)
    if name in ("residual", "difftop_il") and SMALL_IMITATORS[name].get("base"):
        agent.policy.base.policy = imitators.make("rnn_gmm").policy.requires_grad_(False).eval()
    with FakeTensorMode():
        for policy in {agent.policy, agent.acting}:
            move(policy)
        agent.finite = FiniteWatch(DEVICE)
        agent.optimizer = Idle(p for p in agent.policy.parameters() if p.requires_grad)  # type: ignore[assignment]
        yield agent


@pytest.mark.parametrize("name", SMALL_IMITATORS)
def test_nor_does_an_update_of_one_that_imitates(card: None, name: str) -> None:
    with imitator(name) as agent:
        result = agent.update(imitators.random_batch(agent), 0)
    assert all(value.device == DEVICE and value.dim() == 0 for value in result.metrics.values())
