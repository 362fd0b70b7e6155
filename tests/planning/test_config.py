"""Options: a mistake is an error that names it."""

from pathlib import Path

import pytest

from difftop.options import ConfigError, build, describe
from difftop.planning import LMConfig, LMPlanner, MPPIConfig, MPPIPlanner


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dampng": 1.0}, "dampng: unknown option. Did you mean 'damping'"),
        ({"objective": "stage"}, "objective=stage: must be stagewise | return | cost"),
        ({"backend": "jax"}, "backend=jax: must be auto | plain | theseus"),
        ({"backward": "dlm"}, "backward=dlm: must be unroll | truncated | implicit"),
        ({"iterations": 0}, "iterations=0: must be >= 1"),
        ({"damping": 0.0}, "damping=0.0: must be > 0"),
        ({"radius": 3.0}, "radius=3.0: must be > 0, <= 2"),
        ({"step_size": 2.0}, "step_size=2.0: must be > 0, <= 1"),
    ],
)
def test_lm_options(values: dict, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        build(LMConfig, values)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LMConfig(objective="stage"), "LMConfig.objective=stage: must be stagewise | return | cost"),
        (LMConfig(damping=-1.0), "LMConfig.damping=-1.0: must be > 0"),
        (MPPIConfig(iterations=0), "MPPIConfig.iterations=0: must be >= 1"),
    ],
)
def test_a_planner_checks_options_that_were_given_to_it_directly(config: LMConfig | MPPIConfig, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        (LMPlanner if isinstance(config, LMConfig) else MPPIPlanner)(config, 2)
    assert message in str(error.value)


def test_mppi_options() -> None:
    with pytest.raises(ConfigError, match=r"temperature=-1.0: must be > 0"):
        build(MPPIConfig, {"temperature": -1.0})
    assert build(MPPIConfig, {}).prior_samples == 25


@pytest.mark.parametrize("config", [LMConfig, MPPIConfig])
def test_every_option_is_explained_in_the_docs(config: type) -> None:
    text = (Path(__file__).parents[2] / "docs" / "planner.md").read_text()
    for info in describe(config):
        assert f"`{info.key}`" in text, info.key
