"""Options that were: an override of one is told in one sentence what to use."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from difftop.command import make_registry
from difftop.options import ConfigError, describe
from difftop.run.cli import Registry, composed
from difftop.run.gone import gone_options
from difftop.run.overrides import prepared_sweep


@pytest.fixture(scope="module")
def registry() -> Registry:
    return make_registry()


@pytest.mark.parametrize("offline", [False, True])
def test_what_is_gone_is_no_option_of_any_agent(registry: Registry, offline: bool) -> None:
    gone: Mapping[str, str] = gone_options(offline=offline)
    names = [name for name in registry.agents if (name in registry.imitators) == offline]
    for name in names:
        kinds = registry.kinds({"name": name})
        known = {info.key for where, kind in kinds.items() for info in describe(kind, "" if where == "top" else where)}
        assert len(known) > 50 and not known & set(gone)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["run.log_every=5"], "run.log_every: this option is gone; agents that learn from rewards write a row for every"),
        (["+run.priority_alpha=0.7"], "run.priority_alpha: this option is gone; it is 0.6, as in TD-MPC"),
        (["mode=demos", "env=metaworld/reach", "episodes=3"], "episodes: this option is gone; run.demos is the number"),
        (["agent=diffusion", "agent.kernel=3"], "agent.kernel: this option is gone; it is 5"),
        (["agent=bc", "agent.low_noise=false"], "agent.low_noise: this option is gone"),
    ],
)
def test_an_override_of_one_says_what_to_use(registry: Registry, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        composed(registry, overrides)
    assert str(caught.value).startswith(message) and str(caught.value).endswith(" Leave it out.")


def test_one_in_a_sweep_is_told_before_any_job(registry: Registry) -> None:
    _, first = prepared_sweep(registry, ["-m", "seed=1,2", "run.log_every=1,5"])
    with pytest.raises(ConfigError, match=r"run\.log_every: this option is gone"):
        composed(registry, first)


def test_imitation_still_chooses_how_often_a_row_is_written(registry: Registry) -> None:
    assert composed(registry, ["agent=bc", "run.log_every=5"]).run.log_every == 5


def test_demonstrations_to_write_are_counted_by_run_demos(registry: Registry) -> None:
    assert composed(registry, ["mode=demos", "env=metaworld/reach"]).run.demos == 0  # as many as it makes by itself
    assert composed(registry, ["mode=demos", "env=metaworld/reach", "run.demos=3"]).run.demos == 3
