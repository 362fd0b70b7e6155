"""docs/imitation.md against the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import train
from agents.registry import config_class
from difftop.options import describe
from tests.agents.imitators import NAMES, make, observations, random_batch, rolled

PAGE = (train.ROOT / "docs" / "imitation.md").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_every_tag_is_explained(name: str, tmp_path: Path) -> None:
    agent = make(name, home=tmp_path)
    batch = random_batch(agent)
    tags = {*agent.update(batch, 0).metrics, *agent.validate(batch, 0)}
    actor = agent.actor(2, seed=0, head="qp")
    rolled(actor, observations(2, 2))
    tags |= set(actor.metrics())
    assert len(tags) >= 5
    assert sorted(tag for tag in tags if f"`{tag}`" not in PAGE) == []
    assert f"## {name}\n" in PAGE


def test_every_named_option_exists() -> None:
    known = {info.key for name in NAMES for info in describe(config_class(name), "agent")}
    named = set(re.findall(r"agent\.([a-z_.]+)", PAGE))
    assert named and sorted(key for key in named if not any(k.startswith(f"agent.{key.rstrip('.')}") for k in known)) == []
