"""`--help`: one screen, and topics that have the rest."""

from __future__ import annotations

import pytest

from difftop.command import make_registry
from difftop.compare.config import CompareConfig, StatusConfig
from difftop.options import ConfigError, describe
from difftop.run.cli import Registry, TopConfig
from difftop.run.experiments import experiment_names
from difftop.run.help import WIDTH, envs_text, help_text
from difftop.run.settings import LOOPS, MODES, SETTABLE

TOPICS = [
    "agent",
    "env",
    "envs",
    "run",
    "options",
    "mode",
    "mode=eval",
    "experiment",
    "experiment=difftori",
    "obs",
    "preset",
    "world_model",
]


@pytest.fixture(scope="module")
def registry() -> Registry:
    return make_registry()


def test_help_fits_one_screen(registry: Registry) -> None:
    lines = help_text(registry, ["--help"]).splitlines()
    assert len(lines) <= 45 and max(map(len, lines)) <= 120


def test_help_names_what_can_be_chosen(registry: Registry) -> None:
    text = help_text(registry)
    suites = {name.partition("/")[0] for name in registry.list_envs()}
    wanted = [*MODES, *registry.agents, *(f"{suite}/" for suite in suites), *experiment_names(registry.config_dir)]
    wanted += ["state", "pixels", "low_dim", "standard", "cpu", "tdmpc2", "seed=1", "run.frames=500000", "--help agent=NAME"]
    assert [name for name in wanted if name not in text] == []


def test_topics_have_every_option_with_its_range(registry: Registry) -> None:
    shown = {f"agent={name}": [(info.config, "agent")] for name, info in registry.agents.items()}
    shown |= {
        "run": [(loop, "run") for loop in LOOPS.values()],
        "env": [(registry.env_config, "env")],
        "options": [(TopConfig, "")],
    }
    shown |= {"mode=compare": [(CompareConfig, "")], "mode=status": [(StatusConfig, "")]}
    for topic, configs in shown.items():
        text = " ".join(help_text(registry, ["--help", topic]).split())
        for config, where in configs:
            for info in describe(config, where):
                assert f"{info.key}=" in text and " ".join(info.help.split()) in text, (topic, info.key)


@pytest.mark.parametrize("topic", TOPICS)
def test_a_topic_fits_the_width(registry: Registry, topic: str) -> None:
    text = help_text(registry, [topic, "-h"])
    assert text.endswith("\n") and max(map(len, text.splitlines())) <= WIDTH


@pytest.mark.parametrize("mode", list(SETTABLE))
def test_modes_of_checkpoints_say_what_may_be_set(registry: Registry, mode: str) -> None:
    text = help_text(registry, [f"mode={mode}"])
    assert all(f"{key}=" in text for key in SETTABLE[mode])
    assert ("agent.execute=" in text) == (mode == "eval")
    assert "run.frames=" not in text


def test_planners_are_the_registry_s(registry: Registry) -> None:
    assert f"[{' | '.join(['auto', *registry.planners])}]" in help_text(registry, ["options"])


def test_an_agent_on_another_world_model(registry: Registry) -> None:
    assert "agent.model.simplex_dim" in help_text(registry, ["--help", "agent=difftop_rl", "world_model=tdmpc2"])
    assert "agent.model.simplex_dim" not in help_text(registry, ["--help", "agent=difftop_rl"])


def test_the_table_of_environments(registry: Registry) -> None:
    text = envs_text(registry)
    assert [name for name in registry.list_envs() if name not in text] == []
    assert "each gives" in text and help_text(registry, ["envs"]) == text
    gives = ", ".join(sorted(registry.gives("robomimic/can")))
    assert help_text(registry, ["env=robomimic/can"]).startswith(f"env=robomimic/can: gives {gives}\n")


@pytest.mark.parametrize(
    ("topic", "message"),
    [
        ("agents", "--help agents: unknown topic. Did you mean 'agent'? Topics: agent, env, "),
        ("agent=letto", "agent=letto: unknown. Did you mean 'leto'?"),
        ("mode=complete", "mode=complete: must be train | eval"),
        ("experiment=difftory", "experiment=difftory: unknown. Did you mean 'difftori'?"),
        ("env=dmc/walker-wlak", "unknown environment. Did you mean 'dmc/walker-walk'?"),
    ],
)
def test_mistakes_get_one_sentence(registry: Registry, topic: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        help_text(registry, ["--help", topic])
    assert message in str(caught.value) and "\n" not in str(caught.value)
