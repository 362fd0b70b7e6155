"""Where an imitation policy is evaluated: in this process, or in one for each environment."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import difftop
from difftop.command import make_factories, make_registry
from difftop.options import ConfigError, build
from difftop.run.cli import composed
from difftop.run.offline import OfflineConfig
from difftop.run.online import RunConfig
from difftop.run.session import Factories, evaluation_envs


def chosen(count: int, *words: str, spawns: bool = True) -> bool:
    """Whether `evaluation_envs` asks for processes."""
    asked: list[tuple[int, bool]] = []
    factories = replace(make_factories(spawns=spawns), envs=lambda config, n, parallel: asked.append((n, parallel)))  # type: ignore
    evaluation_envs(composed(make_registry(), ["agent=bc", "env=metaworld/reach", *words]), factories, count)
    ((n, parallel),) = asked
    assert n == count
    return parallel


def test_auto_takes_processes_where_they_pay_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("difftop.run.session.usable_cores", lambda: 4)
    with caplog.at_level(logging.INFO):
        assert chosen(5, "obs=image") and chosen(2, "obs=pointcloud")
        assert not chosen(5, "obs=low_dim") and not chosen(1, "obs=image") and not chosen(5, "obs=image", spawns=False)
    said = [record.getMessage() for record in caplog.records if "evaluation" in record.getMessage()]
    assert len(said) == 5
    assert said[0] == "evaluation: 5 environments of obs=image each in a process of its own, by run.parallel=auto (cores: 4)"
    assert said[3] == "evaluation: 1 environment of obs=image in this process, by run.parallel=auto (cores: 4)"
    monkeypatch.setattr("difftop.run.session.usable_cores", lambda: 1)
    assert not chosen(5, "obs=image")


def test_what_is_asked_for_is_done(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("difftop.run.session.usable_cores", lambda: 1)
    with caplog.at_level(logging.INFO):
        assert chosen(1, "obs=low_dim", "run.parallel=true") and chosen(1, "run.parallel=True", spawns=False)
        monkeypatch.setattr("difftop.run.session.usable_cores", lambda: 4)
        assert not chosen(5, "obs=image", "run.parallel=false")
    assert not caplog.records


def test_configurations_of_before_have_a_boolean() -> None:
    assert [build(OfflineConfig, {"parallel": value}).parallel for value in (True, False)] == ["true", "false"]
    assert OfflineConfig().parallel == "auto" and RunConfig().parallel is False
    assert build(RunConfig, {"parallel": True}).parallel is True
    with pytest.raises(ConfigError, match=r"run.parallel=maybe: must be auto \| true \| false"):
        build(OfflineConfig, {"parallel": "maybe"}, "run")


def test_a_script_is_not_imported_anew_unasked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`difftop.train` in a script without a guard: a spawned process would run it again."""
    seen: list[Factories] = []

    def noted(settings: Any, factories: Factories) -> Any:
        seen.append(factories)
        raise ConfigError("seen")

    monkeypatch.setattr("difftop.run.imitate.train_imitation", noted)
    with pytest.raises(ConfigError, match="seen"):
        difftop.train(["agent=bc", "env=metaworld/reach", "obs=image", f"root={tmp_path}"])
    assert [factories.spawns for factories in seen] == [False] and make_factories().spawns
