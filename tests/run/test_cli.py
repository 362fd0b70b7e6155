"""The command line: composition, names, help, and the sentences that mistakes get."""

from __future__ import annotations

import pytest

import train
from agents.registry import AGENTS, make_agent, make_policy, names
from difftop.options import ConfigError, describe
from difftop.run.cli import Registry, TopConfig, composed, help_text, run_name
from difftop.run.offline import OfflineConfig
from difftop.run.online import RunConfig
from difftop.run.overrides import prepared_sweep
from difftop.types import TaskSpec
from envs import EnvConfig, env_spec, list_envs

EXPERIMENTS = sorted(path.stem for path in (train.ROOT / "configs" / "experiment").glob("*.yaml"))
PAPER_TASKS = [
    "cartpole-swingup-sparse", "cheetah-run", "cup-catch", "finger-spin", "finger-turn-easy", "finger-turn-hard",
    "hopper-stand", "pendulum-swingup", "quadruped-run", "quadruped-walk", "reacher-easy", "reacher-hard", "walker-run",
    "walker-stand", "walker-walk",
]  # fmt: skip


@pytest.fixture(scope="module")
def registry() -> Registry:
    return train.make_registry()


def test_defaults(registry: Registry) -> None:
    settings = composed(registry, [])
    assert settings.env.name == "dmc/cartpole-swingup"
    assert settings.agent["name"] == "difftop_rl"
    assert settings.agent["acting"]["planner"] == "lm"
    assert settings.run == RunConfig()
    assert settings.top == TopConfig()


def test_groups_and_keys(registry: Registry) -> None:
    settings = composed(registry, ["agent=tdmpc", "env=dmc/walker-walk", "obs=pixels", "seed=3", "agent.acting.mppi.samples=70"])
    assert settings.env.obs == "pixels" and settings.run.batch_size == 256 and settings.agent["loss"]["learning_rate"] == 3e-4
    assert settings.agent["acting"]["planner"] == "mppi" and settings.agent["acting"]["mppi"]["samples"] == 70
    assert settings.top.seed == 3
    assert env_spec(settings.env).obs_shape == (9, 84, 84)


@pytest.mark.parametrize("name", ["dmc/cup-catch", "dmc/ball_in_cup-catch", "DMC/cup_catch"])
def test_other_spellings_of_an_environment(registry: Registry, name: str) -> None:
    assert composed(registry, [f"env={name}"]).env.name == "dmc/cup-catch"


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "default"),
        (["preset=cpu", "planner=none"], "cpu-planner-none"),
        (["obs=pixels"], "pixels"),
        (["name=mine", "preset=cpu"], "mine"),
        (["experiment=difftori_walker-run"], "difftori"),
        (["experiment=difftori_walker-run", "env=dmc/walker-walk"], "difftori_walker-run"),
        (["experiment=leto_can_ph"], "image-leto_ph"),
        (["experiment=leto_square_ph_acc_0.1"], "image-leto_ph_acc_0.1"),
        (["experiment=leto_lift_plate"], "leto"),
        (["experiment=difftop_il_metaworld_push-back"], "difftop_il"),
        (["experiment=difftop_il_tool_hang_diffusion"], "image-difftop_il_diffusion"),
        (["experiment=ablation_no_reward_loss", "env=dmc/cup-catch"], "ablation_no_reward_loss"),
    ],
)
def test_run_name_tells_the_groups(registry: Registry, overrides: list[str], name: str) -> None:
    assert run_name(composed(registry, overrides)) == name


def test_planner_reaches_the_agent(registry: Registry) -> None:
    assert composed(registry, ["agent=tdmpc", "planner=none"]).agent["acting"]["planner"] == "none"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("env=dmc/walker-wlak", "dmc/walker-wlak: unknown environment. Did you mean 'dmc/walker-walk'?"),
        ("agent=dreamer", "agent=dreamer: unknown. Known: tdmpc, "),
        ("preset=gpu", "preset=gpu: unknown."),
        ("obs=pixel", "obs=pixel: unknown. Did you mean 'pixels'?"),
        ("experiment=difftori_walker-rum", "experiment=difftori_walker-rum: unknown. Did you mean 'difftori_walker-run'?"),
        ("agent.lm.damping=3", "agent.lm.damping: unknown option. Did you mean 'agent.acting.lm.damping'?"),
        ("agent.acting.lm.dampng=3", "Did you mean 'agent.acting.lm.damping'?"),
        ("sede=3", "sede: unknown option. Did you mean 'seed'?"),
        ("run.frames=-3", "run.frames=-3: must be >= 1. length of the run"),
        ("mode=trian", "mode=trian: must be train | eval | demos | compare | status."),
        ("seed=x", "seed: Value 'x'"),
        ("agent.acting.planner=lmm", "agent.acting.planner=lmm: must be lm | mppi | none."),
        ("walker", "walker: can't be read; write KEY=VALUE or GROUP=OPTION."),
        ("dataset=my file(1).hdf5", "can't be read; write KEY=VALUE or GROUP=OPTION. Blanks and brackets need quotes"),
        ("~run", "~run: nothing can be taken out of the configuration"),
        ("seed=1,2", "seed=1,2: several values are a sweep; add -m."),
        ("agent=tdmpc,tdmpc2", "agent=tdmpc,tdmpc2: several values are a sweep; add -m."),
        ("env=dmc/walker-walk,dmc/cup-catch", "several values are a sweep; add -m."),
        ("mode=demos", "mode=demos: of which task? Add env=TASK"),
    ],
)
def test_mistakes_get_one_sentence(registry: Registry, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        composed(registry, [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["mode=demos", "env=dmc/walker-walk"], "env=dmc/walker-walk: has no scripted expert"),
        (
            ["experiment=difftori_walker-walk", "agent=tdmpc2"],
            "experiment=difftori_walker-walk: sets options that agent=tdmpc2 hasn't",
        ),
    ],
)
def test_what_does_not_fit_together_is_named(registry: Registry, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        composed(registry, overrides)
    assert message in str(caught.value)


def test_whole_numbers_may_be_written_short_and_names_have_aliases(registry: Registry) -> None:
    assert composed(registry, ["run.frames=1e5"]).run.frames == 100_000
    assert composed(registry, ["agent.loss.learning_rate=1e-4"]).agent["loss"]["learning_rate"] == 1e-4
    arguments, first = prepared_sweep(
        registry, ["-m", "env=dmc/ball_in_cup-catch,dmc/walker-walk", "seed=range(1,4)", "run.frames=1e3,2e3"]
    )
    assert arguments == ["-m", "env=dmc/cup-catch,dmc/walker-walk", "seed=range(1,4)", "run.frames=1000,2000"]
    assert first == ["env=dmc/cup-catch", "run.frames=1000"]
    assert prepared_sweep(registry, ["--cfg", "job", "seed=2"]) == (["--cfg", "job", "seed=2"], ["seed=2"])


def test_help_names_every_option_and_choice(registry: Registry) -> None:
    text = help_text(registry)
    keys = [
        info.key
        for config, where in [(TopConfig, ""), (RunConfig, "run"), (EnvConfig, "env")]
        for info in describe(config, where)
    ]
    keys += [info.key for config, _ in registry.agents.values() for info in describe(config, "agent")]
    missing = [name for name in [*keys, *AGENTS, *list_envs(), *EXPERIMENTS] if name not in text]
    assert missing == []
    undocumented = [
        info.key for config, _ in registry.agents.values() for info in describe(config, "agent") if len(info.help) < 10
    ]
    assert undocumented == []


def test_there_is_an_experiment_for_each_row_of_the_papers() -> None:
    for agent in ("tdmpc", "tdmpc2", "difftop_rl", "difftori"):
        assert {f"{agent}_{task}" for task in PAPER_TASKS} <= set(EXPERIMENTS)
    leto = {f"leto_{task}_{kind}" for task in ("can", "square") for kind in ("ph", "mh")}
    limits = {f"leto_square_ph_acc_{limit}" for limit in ("0.05", "0.1", "0.2", "0.5", "1.0")}
    improved = {f"difftop_il_{task}_{base}" for task in ("square", "transport", "tool_hang") for base in ("rnn_gmm", "diffusion")}
    ablations = {f"ablation_no_{what}" for what in ("policy_gradient", "prior_start", "reward_loss", "dynamics_loss")}
    assert leto | limits | improved | ablations <= set(EXPERIMENTS)
    assert sum(name.startswith("difftop_il_metaworld_") for name in EXPERIMENTS) == 22


@pytest.mark.parametrize("agent", names("rl"))
@pytest.mark.parametrize("obs", ["state", "pixels"])
def test_every_agent_of_rewards_composes_and_is_built(registry: Registry, agent: str, obs: str) -> None:
    tiny = ["agent.model.mlp_dim=8", "agent.model.encoder_dim=8"]
    settings = composed(registry, [f"agent={agent}", "preset=cpu", f"obs={obs}", *tiny])
    assert make_agent(settings.agent, env_spec(settings.env), seed=0).config.name == agent


@pytest.mark.parametrize("agent", names("il"))
def test_every_imitator_composes_and_is_built(registry: Registry, agent: str) -> None:
    base = ["agent.base=bc", "agent.base_checkpoint=runs/none"] if agent == "residual" else []
    settings = composed(registry, [f"agent={agent}", *base])
    assert settings.env.name == "metaworld/button-press-topdown" and isinstance(settings.run, OfflineConfig)
    assert make_policy(settings.agent, LOW_DIM, seed=0).config.name == agent


LOW_DIM = TaskSpec("test/task", {"robot0_eef_pos": (3,), "object": (10,)}, 7, 400, 0.05)
IMAGES = TaskSpec("test/task", {"robot0_eef_pos": (3,), "eye_image": (3, 84, 84)}, 7, 400, 0.05)
POINTS = TaskSpec("test/task", {"state": (9,), "pointcloud": (64, 3)}, 7, 400, 0.05)


QUICK = [  # one or two of each family; the others are slow
    "tdmpc_walker-walk", "tdmpc2_walker-walk", "difftop_rl_walker-walk", "difftori_walker-walk", "leto_can_ph_low_dim",
    "leto_square_ph_acc_0.5", "difftop_il_square_rnn_gmm", "difftop_il_metaworld_basketball", "difftop_il_maniskill_PickCube-v1",
]  # fmt: skip


@pytest.mark.parametrize(
    "experiment", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in EXPERIMENTS]
)
def test_every_experiment_composes_and_builds_its_agent(registry: Registry, experiment: str) -> None:
    settings = composed(registry, [f"experiment={experiment}"])
    name = settings.agent["name"]
    if name in names("il"):
        spec = {"low_dim": LOW_DIM, "image": IMAGES, "pointcloud": POINTS}[settings.env.obs]
        policy = make_policy(settings.agent, spec, seed=0)
        assert policy.config.name == name and experiment.startswith(name)
        return
    agent = make_agent(settings.agent, env_spec(settings.env), seed=0)
    assert agent.config.name == name
    if not experiment.startswith("ablation"):
        assert settings.env.name == f"dmc/{experiment.removeprefix('difftori_').removeprefix(f'{name}_')}"
    if experiment.startswith("difftori"):
        assert agent.config.policy_gradient.mode == "on_policy" and agent.config.acting.lm.objective == "return"


def test_what_an_ablation_takes_away_is_away(registry: Registry) -> None:
    agents = {name: composed(registry, [f"experiment=ablation_no_{name}"]).agent for name in ABLATIONS}
    assert agents["policy_gradient"]["policy_gradient"]["mode"] == "none"
    assert agents["reward_loss"]["loss"]["reward"] == 0 and agents["dynamics_loss"]["loss"]["consistency"] == 0
    assert agents["prior_start"]["acting"]["prior_start"] is False


ABLATIONS = ("policy_gradient", "prior_start", "reward_loss", "dynamics_loss")
