"""Experiments: one file per method, a table of its tasks, and the names of before."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from agents.registry import make_agent, make_policy
from difftop.command import make_registry
from difftop.options import ConfigError, defaults
from difftop.run.cli import Registry, composed, register, run_name
from difftop.run.config_folder import config_folder
from difftop.run.experiments import Experiment, as_named_now, experiment_names, read_experiment
from difftop.run.overrides import prepared, prepared_sweep
from difftop.types import EnvSpec, ObsSpec
from tests.conftest import STATE

PAPER_TASKS = [
    "cartpole-swingup-sparse", "cheetah-run", "cup-catch", "finger-spin", "finger-turn-easy", "finger-turn-hard",
    "hopper-stand", "pendulum-swingup", "quadruped-run", "quadruped-walk", "reacher-easy", "reacher-hard", "walker-run",
    "walker-stand", "walker-walk",
]  # fmt: skip
ABLATIONS = ("policy_gradient", "prior_start", "reward_loss", "dynamics_loss")
# Each name there was when a file was a method on a task: agent, options that aren't the agent's and the loop's defaults,
# environment, name of the run. Composed by the commit before.
BEFORE: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "experiments_before.json").read_text())
QUICK = [  # one or two of each method; the others are slow
    "tdmpc_walker-walk", "tdmpc2_walker-walk", "difftop_rl_walker-walk", "difftori_walker-walk", "difftori_cup-catch",
    "leto_can_ph_low_dim", "leto_square_mh", "leto_square_ph_acc_0.5", "leto_lift_plate", "difftop_il_square_rnn_gmm",
    "difftop_il_metaworld_basketball", "difftop_il_maniskill_PickCube-v1", "ablation_no_reward_loss",
]  # fmt: skip
IMITATORS = ("diffusion", "rnn_gmm", "bc", "ibc", "leto", "act", "diffusion_transformer")
FILE = "dataset=demonstrations.hdf5"
VECTOR = ObsSpec("vector", (3,))
SPECS = {
    "state": STATE,
    "low_dim": EnvSpec("test/task", {"robot0_eef_pos": VECTOR, "object": ObsSpec("vector", (10,))}, 7, 400, 0.05),
    "image": EnvSpec("test/task", {"robot0_eef_pos": VECTOR, "eye_image": ObsSpec("image", (3, 84, 84))}, 7, 400, 0.05),
    "pointcloud": EnvSpec(
        "test/task", {"state": ObsSpec("vector", (9,)), "pointcloud": ObsSpec("points", (64, 3))}, 7, 400, 0.05
    ),
}


@pytest.fixture(scope="module")
def registry() -> Registry:
    return make_registry()


def given(registry: Registry, name: str) -> list[str]:
    """What composes an experiment: those that imitate are given demonstrations."""
    imitates = read_experiment(registry.config_dir, name).groups["agent"] in registry.imitators
    return [f"experiment={name}", *([FILE] if imitates else [])]


def flat(values: dict[str, Any], where: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{where}.{key}" if where else key
        out |= flat(value, name) if isinstance(value, dict) else {name: value}
    return out


def differing(values: dict[str, Any], config: type) -> dict[str, Any]:
    usual = flat(defaults(config))
    return {key: value for key, value in flat(values).items() if usual.get(key, ...) != value}


@pytest.mark.parametrize("name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in BEFORE])
def test_a_name_of_before_composes_what_it_did(registry: Registry, name: str) -> None:
    was = BEFORE[name]
    settings = composed(registry, [f"experiment={name}", *([FILE] if was["loop"] == "OfflineConfig" else [])])
    plain = settings.plain()
    assert settings.agent["name"] == was["agent"] and type(settings.run).__name__ == was["loop"]
    assert differing(settings.agent, registry.options(settings.agent)) == was["agent_options"]
    if settings.agent.get("world_model") != "scaled":  # `difftop_rl`'s own settings, which are new
        assert differing(plain["run"], type(settings.run)) == was["run_options"]
    assert differing(plain["env"], registry.env_config) | {"name": settings.env.name} == was["env"]
    if name != "leto_lift_plate":  # whose task was taken out of its name: it is a method of its own
        assert run_name(settings) == was["run_name"]


def test_a_name_of_before_is_one_of_now_with_its_task(registry: Registry) -> None:
    assert as_named_now("difftori_walker-walk") == ["experiment=difftori", "env=dmc/walker-walk"]
    now = set(experiment_names(registry.config_dir))
    for name in BEFORE:
        words = dict(word.split("=") for word in as_named_now(name))
        assert words.get("experiment", name) in now
        assert "env" not in words or registry.canonical_env(words["env"]) == words["env"] == BEFORE[name]["env"]["name"]
    assert {f"dmc/{task}" for task in PAPER_TASKS} == set(read_experiment(registry.config_dir, "difftori").tasks)


def test_there_is_a_file_for_each_method_of_the_papers_and_few(registry: Registry) -> None:
    names = set(experiment_names(registry.config_dir))
    assert {"tdmpc", "tdmpc2", "difftop_rl", "difftori", "leto_ph", "leto_mh", "difftop_il"} <= names
    assert {f"difftop_il_{base}" for base in ("rnn_gmm", "diffusion")} | {f"ablation_no_{what}" for what in ABLATIONS} <= names
    assert set(IMITATORS) <= names and len(names) < 20 + len(IMITATORS)


@pytest.mark.parametrize("name", experiment_names(config_folder()))
def test_every_experiment_composes_and_builds_its_agent(registry: Registry, name: str) -> None:
    settings = composed(registry, given(registry, name))
    if name in ("diffusion", "act"):  # gigabytes
        with torch.device("meta"):
            assert make_policy(settings.agent, SPECS[settings.env.obs], seed=0).config.name == name
        return
    made = make_agent(settings.agent, SPECS[settings.env.obs], seed=0, total_steps=1)
    assert getattr(made, "policy", made).config.name == settings.agent["name"]


# What the papers' codes train, by experiment and words beside it: the agent's options, and gradient steps, batch, demonstrations.
BUDGETS = [
    ("diffusion", [], {"widths": [512, 1024, 2048], "step_dim": 128, "sampler": "ddpm", "steps": 100}, (1_400_000, 64, 0)),
    ("diffusion", ["obs=low_dim"], {"widths": [256, 512, 1024], "step_dim": 256, "sampler": "ddpm"}, (500_000, 256, 0)),
    ("diffusion", ["env=maniskill/PickCube-v1"], {"widths": [64, 128, 256], "step_dim": 64}, (30_000, 1024, 100)),
    ("diffusion", ["env=metaworld/reach", "obs=low_dim"], {"widths": [256, 512, 1024]}, (500_000, 256, 0)),
    ("rnn_gmm", [], {"hidden_dim": 1000, "layers": 2, "window": 10}, (300_000, 16, 0)),
    ("rnn_gmm", ["env=robomimic/square", "obs=low_dim"], {"hidden_dim": 400}, (200_000, 100, 0)),
    ("bc", [], {"hidden_dims": [1024, 1024], "distribution": "gmm"}, (300_000, 16, 0)),
    ("bc", ["obs=low_dim"], {"hidden_dims": [1024, 1024], "distribution": "gmm"}, (200_000, 100, 0)),
    ("bc", ["env=maniskill/PickCube-v1"], {"hidden_dims": [256, 256], "distribution": "deterministic"}, (30_000, 1024, 100)),
    ("ibc", [], {"hidden_dims": [1024] * 4, "negatives": 1024, "samples": 1024}, (700_000, 128, 0)),
    ("ibc", ["obs=low_dim"], {"hidden_dims": [1024] * 4, "negatives": 1024}, (500_000, 256, 0)),
    ("act", [], {"dim": 512, "heads": 8, "feedforward": 3200, "encoder_layers": 4, "horizon": 100, "kl": 10}, (100_000, 8, 0)),
    ("act", ["env=metaworld/reach"], {"decoder_layers": 7, "horizon": 50, "ensemble_rate": 0.01}, (100_000, 8, 0)),
    ("diffusion_transformer", [], {"layers": 8, "dim": 256, "heads": 4, "dropout": 0.3, "horizon": 10}, (1_400_000, 64, 0)),
    ("diffusion_transformer", ["obs=low_dim"], {"layers": 8, "backbone": "transformer"}, (500_000, 256, 0)),
    ("leto", [], {"hidden_dim": 1000, "window": 12, "horizon": 6, "pad": False}, (100_000, 64, 0)),
]


@pytest.mark.parametrize(("name", "words", "options", "budget"), BUDGETS)
def test_the_papers_budgets(
    registry: Registry, name: str, words: list[str], options: dict[str, Any], budget: tuple[int, int, int]
) -> None:
    settings = composed(registry, [f"experiment={name}", *words, FILE])
    assert {key: settings.agent[key] for key in options} == options
    assert (settings.run.grad_steps, settings.run.batch_size, settings.run.demos) == budget
    rates = {"act": 1e-5} | ({"bc": 3e-4} if "env=maniskill/PickCube-v1" in words else {})
    training = settings.agent["training"]
    assert training["learning_rate"] == rates.get(name, 1e-4)
    if name in ("diffusion", "ibc"):  # AdamW, a warm-up and a cosine
        assert (training["weight_decay"], training["schedule"], training["warmup_steps"]) == (1e-6, "cosine", 500)
        assert training["beta1"] == 0.95
    assert training["ema"] == (0.9999 if name.startswith("diffusion") else 0.0)


def test_diffusion_on_images_has_the_paper_s_size(registry: Registry) -> None:
    settings = composed(registry, ["experiment=diffusion", FILE])
    obs = {"agentview_image": (3, 84, 84), "robot0_eye_in_hand_image": (3, 84, 84), "eef_pos": (3,), "quat": (4,), "qpos": (2,)}
    spec = EnvSpec("test/task", {key: ObsSpec.of(shape) for key, shape in obs.items()}, 7, 400, 0.05)
    with torch.device("meta"):
        policy = make_policy(settings.agent, spec, seed=0)
    weights = sum(p.numel() for p in policy.net.parameters())
    assert 250e6 < weights < 260e6, weights


def test_act_on_images_has_the_paper_s_size(registry: Registry) -> None:
    """About 80 M weights, one camera's network among them; the paper's four cameras share one."""
    settings = composed(registry, ["experiment=act", FILE])
    obs = {"top_image": (3, 84, 84), "joints": (14,)}
    spec = EnvSpec("test/task", {key: ObsSpec.of(shape) for key, shape in obs.items()}, 14, 400, 0.02)
    with torch.device("meta"):
        policy = make_policy(settings.agent, spec, seed=0)
    assert 75e6 < sum(p.numel() for p in policy.parameters()) < 90e6


def test_tool_hang_is_seen_larger(registry: Registry) -> None:
    for name in ("diffusion", "rnn_gmm", "bc", "ibc", "act", "diffusion_transformer"):
        words = [f"experiment={name}", "env=robomimic/tool_hang", FILE]
        assert (
            composed(registry, words).env.image_size == 240 and composed(registry, [*words, "obs=low_dim"]).env.image_size == 84
        )


def test_a_pattern_may_be_of_one_observation_only() -> None:
    tasks = {"toy/a@image": {"run": {"x": 1}}, "toy/*": {"run": {"x": 2}}, "*@low_dim": {"run": {"x": 3}}}
    made = Experiment("made", {}, tasks, "general", "")
    assert made.differences("toy/a", "image") == ["run.x=1"] and made.differences("toy/a", "low_dim") == ["run.x=2"]
    assert made.differences("dmc/b", "low_dim") == ["run.x=3"] and made.differences("dmc/b", "image") == []


def test_a_task_has_its_own_settings_and_the_command_line_the_last_word(registry: Registry) -> None:
    walker, cup = (composed(registry, ["experiment=difftori", f"env=dmc/{task}"]) for task in ("walker-run", "cup-catch"))
    assert walker.agent["acting"]["lm"]["iterations"] == 200 and cup.agent["acting"]["lm"]["iterations"] == 100
    assert walker.agent["acting"]["lm"]["step_size"] == 3e-5 and walker.env.action_repeat == 2  # of the table, before the general
    assert walker.agent["acting"]["lm"]["objective"] == "return" and walker.run.eval_episodes == 3  # of the general part
    mine = composed(
        registry, ["agent.acting.lm.iterations=7", "experiment=difftori", "env=dmc/walker-run", "env.action_repeat=1"]
    )
    assert mine.agent["acting"]["lm"]["iterations"] == 7 and mine.env.action_repeat == 1
    assert mine.agent["acting"]["lm"]["step_size"] == 3e-5


def test_a_table_may_choose_other_groups_and_name_the_environment(registry: Registry) -> None:
    points = composed(registry, ["experiment=difftop_il", "env=maniskill/PickCube-v1", FILE])
    assert points.env.obs == "pointcloud" and run_name(points) == "pointcloud-difftop_il"
    assert points.agent["base_checkpoint"] == "runs/maniskill-PickCube-v1/bc/pointcloud/seed1"
    words = prepared(registry, ["experiment=difftop_il", "env=maniskill/PickCube-v1", "obs=image", FILE])
    assert [word for word in words if word.startswith("obs=")] == ["obs=image"]


def test_a_task_that_the_table_has_not(registry: Registry, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        settings = composed(registry, ["experiment=difftori", "env=gym/Pendulum-v1"])
    assert settings.agent["acting"]["lm"]["iterations"] == 50  # the official code's default
    assert [r.message for r in caplog.records] == [
        "experiment=difftori has no settings of its own for gym/Pendulum-v1: its general ones are used"
    ]
    with pytest.raises(ConfigError, match="experiment=leto_lift_plate: is for env=robosuite/LiftPlate; env=robosuite/Lift isn't"):
        composed(registry, ["experiment=leto_lift_plate", "env=robosuite/Lift"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["experiment=difftori_walker-rum"], "a name of before, for experiment=difftori env=dmc/walker-rum; .*'dmc/walker-run'"),
        (["experiment=difftori_walker-run", "env=dmc/cup-catch"], "write experiment=difftori env=dmc/cup-catch"),
        (["experiment=leto_phh"], "experiment=leto_phh: unknown. Did you mean 'leto_ph'?"),
        (["experiment=leto_ph", "agent=tdmpc"], "experiment=leto_ph: is of agent=leto; leave out agent=tdmpc."),
        (["experiment=difftori", "agent=tdmpc2"], "experiment=difftori: sets options that agent=tdmpc2 hasn't; leave out"),
        (
            ["experiment=difftori", "env=dmc/walker-walk", "agent=tdmpc2"],
            "experiment=difftori: sets options that agent=tdmpc2 hasn't; leave out",
        ),
    ],
)
def test_mistakes_get_one_sentence(registry: Registry, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        composed(registry, overrides)
    assert "\n" not in str(caught.value)


def test_an_agent_of_the_experiment_may_be_named_beside_it(registry: Registry) -> None:
    settings = composed(registry, ["experiment=leto_ph", "agent=leto", FILE])
    assert settings.env.obs == "image" and settings.env.name == "robomimic/can" and settings.agent["hidden_dim"] == 1000


def test_what_an_ablation_takes_away_is_away(registry: Registry) -> None:
    agents = {name: composed(registry, [f"experiment=ablation_no_{name}"]).agent for name in ABLATIONS}
    assert agents["policy_gradient"]["policy_gradient"]["mode"] == "none"
    assert agents["reward_loss"]["loss"]["reward"] == 0 and agents["dynamics_loss"]["loss"]["consistency"] == 0
    assert agents["prior_start"]["acting"]["prior_start"] is False


def test_jobs_of_a_sweep_take_their_tables_themselves(registry: Registry) -> None:
    arguments, first = prepared_sweep(registry, ["-m", "experiment=difftori", "env=dmc/walker-run,dmc/cup-catch"])
    assert arguments == ["-m", "experiment=difftori", "env=dmc/walker-run,dmc/cup-catch"]
    assert composed(registry, first).agent["acting"]["lm"]["iterations"] == 200
    former, _ = prepared_sweep(registry, ["-m", "experiment=difftori_walker-run,tdmpc_cup-catch"])
    assert former == ["-m", "experiment=difftori_walker-run,tdmpc_cup-catch"]


@pytest.mark.parametrize(
    ("overrides", "jobs"),
    [
        (
            ["experiment=difftori_walker-run,tdmpc_cup-catch", "agent.loss.horizon=3"],
            [["experiment=difftori_walker-run", "agent.loss.horizon=3"], ["experiment=tdmpc_cup-catch", "agent.loss.horizon=3"]],
        ),
        (
            ["experiment=leto_can_ph,leto_mh", "run.grad_steps=10", "agent.window=8"],
            [["experiment=leto_can_ph", "run.grad_steps=10", "agent.window=8"], ["experiment=leto_mh", "run.grad_steps=10"]],
        ),
        (
            ["experiment=difftop_il", "env=metaworld/push,maniskill/PickCube-v1"],
            [["experiment=difftop_il", "env=metaworld/push"], ["experiment=difftop_il", "env=maniskill/PickCube-v1"]],
        ),
    ],
)
def test_hydra_composes_every_job_of_a_sweep(registry: Registry, overrides: list[str], jobs: list[list[str]]) -> None:
    """Before a job's overrides come to `composed`, hydra has composed them itself."""
    arguments, _ = prepared_sweep(registry, ["-m", *overrides])
    register(registry, arguments)
    usual = [word for word in arguments if word == "run=offline"]
    for words in jobs:
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(registry.config_dir.resolve()), version_base="1.3"):
            assert compose("config", [*words, *usual]).agent.name
        given = [*words, *usual, *([FILE] if usual else [])]
        assert composed(registry, given).agent["name"]


def test_what_is_printed_of_a_run_has_the_task_s_settings_and_no_table(registry: Registry) -> None:
    arguments, _ = prepared_sweep(registry, ["--cfg", "job", "experiment=difftori", "env=dmc/cup-catch"])
    assert arguments[:2] == ["--cfg", "job"] and "env.action_repeat=2" in arguments and arguments[-1] == "~tasks"
    register(registry, arguments)
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(registry.config_dir.resolve()), version_base="1.3"):
        printed = compose("config", arguments[2:])
    assert printed.env.action_repeat == 2 and "tasks" not in printed
