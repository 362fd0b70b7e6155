"""The command line: composition, names, pairs of agent and environment, and the sentences that mistakes get."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from agents.registry import make_agent, names
from difftop.command import make_registry
from difftop.nn.resnet import ResNet
from difftop.nn.small_conv import SmallConv
from difftop.options import ConfigError, describe
from difftop.run.cli import Registry, TopConfig, checked, composed, run_name
from difftop.run.offline import OfflineConfig
from difftop.run.online import RunConfig
from difftop.run.overrides import given_path, prepared_sweep
from difftop.types import EnvSpec, ObsSpec
from tests.conftest import PIXELS, STATE

LOW_DIM = EnvSpec("test/task", {"robot0_eef_pos": ObsSpec("vector", (3,)), "object": ObsSpec("vector", (10,))}, 7, 400, 0.05)
FILE = "dataset=demonstrations.hdf5"


@pytest.fixture(scope="module")
def registry() -> Registry:
    return make_registry()


@pytest.fixture
def refused(registry: Registry) -> Callable[..., str]:
    """The one sentence that a command line gets."""

    def message(*overrides: str) -> str:
        with pytest.raises(ConfigError) as caught:
            composed(registry, overrides)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return message


def test_defaults(registry: Registry) -> None:
    settings = composed(registry, [])
    assert settings.env.name == "dmc/cartpole-swingup"
    assert settings.agent["name"] == "difftop_rl"
    assert settings.agent["acting"]["planner"] == "lm"
    own = {"seed_steps": 1_000, "seed_noise": "mixed", "batch_size": 64, "updates_per_step": 4, "prioritized_while_rare": True}
    assert settings.run == RunConfig(**own)  # type: ignore[arg-type]
    assert settings.top == TopConfig()


def test_groups_and_keys(registry: Registry) -> None:
    settings = composed(registry, ["agent=tdmpc", "env=dmc/walker-walk", "obs=pixels", "seed=3", "agent.acting.mppi.samples=70"])
    assert settings.env.obs == "pixels" and settings.run.batch_size == 256 and settings.agent["loss"]["learning_rate"] == 3e-4
    assert settings.agent["acting"]["planner"] == "mppi" and settings.agent["acting"]["mppi"]["samples"] == 70
    assert settings.top.seed == 3
    assert settings.choices["env"] == "dmc/walker-walk" and settings.choices["agent"] == "tdmpc"


@pytest.mark.parametrize(
    "spelling", ["env=dmc/cup-catch", "env=dmc/ball_in_cup-catch", "env=DMC/cup_catch", "env.name=dmc/cup-catch"]
)
def test_other_spellings_of_an_environment(registry: Registry, spelling: str) -> None:
    settings = composed(registry, [spelling])
    assert settings.env.name == settings.choices["env"] == "dmc/cup-catch"


@pytest.mark.parametrize(
    "env", ["gym/Pendulum-v1", "gym/HalfCheetah-v5", "metaworld/reach", "robosuite/Lift", "maniskill/PickCube-v1"]
)
def test_an_agent_of_rewards_takes_every_environment_that_gives_them(registry: Registry, env: str) -> None:
    for agent in names("rewards"):
        settings = composed(registry, [f"agent={agent}", f"env={env}"])
        assert settings.env.name == env and settings.env.obs == "state"


def test_what_an_agent_needs_and_an_environment_lacks(registry: Registry, refused: Callable[..., str]) -> None:
    there = ", ".join(sorted(registry.gives("robomimic/can")))
    assert refused("agent=difftop_rl", "env=robomimic/can") == (
        f"agent=difftop_rl learns from rewards; robomimic/can gives none (it gives {there}): take robosuite/PickPlaceCan, "
        "or an agent that imitates, such as leto."
    )
    assert "take robosuite/ToolHang," in refused("agent=tdmpc", "env=robomimic/tool_hang")
    assert refused("agent=leto", "env=dmc/walker-walk") == (
        "agent=leto learns from demonstrations; dmc/walker-walk has no scripted expert that makes them (it gives reward): give "
        "dataset=PATH, or take metaworld/button-press-topdown."
    )
    assert "obs=low_dim: agent=tdmpc learns from rewards, from obs=state or pixels." in refused("agent=tdmpc", "obs=low_dim")
    assert "obs=pixels: agent=bc imitates, from obs=low_dim" in refused("agent=bc", "obs=pixels")


def test_a_file_of_demonstrations_is_enough_to_imitate(registry: Registry) -> None:
    assert composed(registry, ["agent=leto", "env=robomimic/can", FILE]).env.name == "robomimic/can"


def test_an_environment_of_another_package(registry: Registry) -> None:
    """Names are not known ahead: what `canonical_env` accepts is registered when the command line asks for it."""
    theirs = replace(registry, canonical_env=lambda name: name, gives=lambda name: frozenset({"reward"}))
    assert composed(theirs, ["env=theirs/deep/Task-v9", "seed=2"]).env.name == "theirs/deep/Task-v9"
    mute = replace(theirs, gives=lambda name: frozenset())
    with pytest.raises(ConfigError, match="gives none \\(it gives nothing to learn from\\)"):
        composed(mute, ["env=theirs/deep/Task-v9"])


def test_an_agent_that_is_not_here_any_more(registry: Registry) -> None:
    saved = composed(registry, []).plain()
    with pytest.raises(ConfigError, match="agent=dreamer: unknown"):
        checked(registry, saved["top"] | {key: saved[key] for key in ("run", "env")} | {"agent": {"name": "dreamer"}}, {})


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "default"),
        (["preset=cpu", "planner=none"], "cpu-planner-none"),
        (["obs=pixels"], "pixels"),
        (["name=mine", "preset=cpu"], "mine"),
        (["experiment=difftori", "env=dmc/walker-walk"], "difftori"),
        (["experiment=difftori", "env=dmc/walker-walk", "obs=pixels"], "pixels-difftori"),
        (["experiment=leto_ph", FILE], "image-leto_ph"),
        (["experiment=difftop_il", "env=metaworld/push-back"], "difftop_il"),
        (["experiment=difftop_il_diffusion", "env=robomimic/tool_hang", FILE], "image-difftop_il_diffusion"),
        (["experiment=ablation_no_reward_loss", "env=dmc/cup-catch"], "ablation_no_reward_loss"),
    ],
)
def test_run_name_tells_the_groups(registry: Registry, overrides: list[str], name: str) -> None:
    assert run_name(composed(registry, overrides)) == name


@pytest.mark.parametrize(
    ("arguments", "swept"),
    [
        (["agent.loss.learning_rate=1e-4,3e-4", "run.batch_size=8", "seed=1,2"], "[agent.loss.learning_rate]"),
        (["run.batch_size=range(8,33,8)", "++env.action_repeat=1,2"], "[run.batch_size,env.action_repeat]"),
        (["threads=1,2", "run.frames=1e3,2e3", "hydra.launcher.n_jobs=2"], "[threads,run.frames]"),
        (["env=dmc/cup-catch,dmc/walker-walk", "agent=tdmpc,tdmpc2", "preset=standard,cpu", "planner=lm,mppi"], None),
        (["obs=state,pixels", "name=a,b", "root=x,y", "agent.model.encoder=[1,2]"], None),
        (["mode=eval", "checkpoint=a,b", "run.eval_episodes=5,10"], None),
        (["run.batch_size=8,16", "swept=[seed]"], None),
    ],
)
def test_a_sweep_says_what_it_sweeps(registry: Registry, arguments: list[str], swept: str | None) -> None:
    whole, _ = prepared_sweep(registry, ["-m", *arguments])
    told = [text for text in whole if text.startswith("swept=") and text not in arguments]
    assert told == ([f"swept={swept}"] if swept else [])


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["agent.loss.learning_rate=0.0003", "swept=[agent.loss.learning_rate]"], "agent.loss.learning_rate=3e-4"),
        (["agent.loss.learning_rate=3e-4", "run.batch_size=8"], "default"),
        (["preset=cpu", "run.batch_size=8", "threads=2", "swept=[run.batch_size,threads]"], "cpu+run.batch_size=8+threads=2"),
        (["name=mine", "run.prioritized=false", "swept=[run.prioritized]"], "mine+run.prioritized=false"),
        (["env.cameras=[a,b/c]", "swept=[env.cameras]"], "env.cameras=a_b_c"),
        (["agent.loss.learning_rate=0.5", "swept=[agent.loss.learning_rate]"], "agent.loss.learning_rate=0.5"),
        (["agent.loss.learning_rate=0.00125", "swept=[agent.loss.learning_rate]"], "agent.loss.learning_rate=0.00125"),
    ],
)
def test_run_name_tells_what_is_swept(registry: Registry, overrides: list[str], name: str) -> None:
    assert run_name(composed(registry, overrides)) == name


def test_what_is_swept_must_be_an_option(registry: Registry) -> None:
    with pytest.raises(ConfigError, match=r"swept=run\.batch: unknown option"):
        run_name(composed(registry, ["swept=[run.batch]"]))


@pytest.mark.parametrize(
    "path",
    ["runs/agent.loss.learning_rate=3e-4+run.batch_size=8/seed1", "a,b/c=1,2", "with blank/x", "it's/[1]", "plain/x", "a(b)/{c}"],
)
def test_a_path_is_taken_as_it_is(registry: Registry, path: str) -> None:
    settings = composed(registry, ["mode=eval", f"checkpoint={path}", f"root={path}"])
    assert settings.top.checkpoint == settings.top.root == given_path([f"checkpoint={path}"], "checkpoint") == path
    if "," not in path and "[" not in path and "(" not in path:
        (_, word, *_), first = prepared_sweep(registry, ["-m", f"checkpoint={path}", "mode=eval"])
        assert composed(registry, first).top.checkpoint == given_path([word], "checkpoint") == path


def test_planner_reaches_the_agent(registry: Registry, refused: Callable[..., str]) -> None:
    assert composed(registry, ["agent=tdmpc", "planner=none"]).agent["acting"]["planner"] == "none"
    assert "planner=lmm: must be auto | lm | mppi | none. Did you mean 'lm'?" in refused("planner=lmm")
    assert "planner=lm: agent=leto has no planner to choose" in refused("agent=leto", "planner=lm")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("env=dmc/walker-wlak", "dmc/walker-wlak: unknown environment. Did you mean 'dmc/walker-walk'?"),
        ("agent=dreamer", "agent=dreamer: unknown. Known: tdmpc, "),
        ("agent=let", "agent=let: unknown. Did you mean 'leto'?"),
        ("preset=gpu", "preset=gpu: unknown. Did you mean 'cpu'? Known: cpu, cpu_image, cpu_pointcloud, standard."),
        ("obs=pixel", "obs=pixel: unknown. Did you mean 'pixels'?"),
        ("experiment=difftory", "experiment=difftory: unknown. Did you mean 'difftori'?"),
        ("agent.lm.damping=3", "agent.lm.damping: unknown option. Did you mean 'agent.acting.lm.damping'?"),
        ("agent.acting.lm.dampng=3", "Did you mean 'agent.acting.lm.damping'?"),
        ("run.demos=5", "run.demos: is an option of agents that imitate; leave it out, or set agent=."),
        ("agent.widths=[8]", "agent.widths: is an option of agent=diffusion; leave it out, or set agent=."),
        ("sede=3", "sede: unknown option. Did you mean 'seed'? `python train.py --help options` lists all."),
        ("env.obss=state", "env.obss: unknown option. Did you mean 'env.obs'? `python train.py --help env` lists all."),
        ("run.frames=-3", "run.frames=-3: must be >= 1 (length of the run"),
        ("mode=trian", "mode=trian: must be train | eval | demos |"),
        ("seed=x", "seed=x: must be a whole number"),
        ("agent.acting.planner=lmm", "agent.acting.planner=lmm: must be lm | mppi | none ("),
        ("walker", "walker: can't be read; write KEY=VALUE or GROUP=OPTION."),
        ("env.control=my mode(1)", "can't be read; write KEY=VALUE or GROUP=OPTION. Blanks and brackets need quotes"),
        ("~run", "~run: nothing can be taken out of the configuration"),
        ("seed=1,2", "seed=1,2: several values are a sweep; add -m."),
        ("agent=tdmpc,tdmpc2", "agent=tdmpc,tdmpc2: several values are a sweep; add -m."),
        ("env=dmc/walker-walk,dmc/cup-catch", "several values are a sweep; add -m."),
        ("mode=demos", "mode=demos: of which task? Add env=TASK"),
    ],
)
def test_mistakes_get_one_sentence(refused: Callable[..., str], override: str, message: str) -> None:
    assert message in refused(override)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["mode=demos", "env=dmc/walker-walk"], "env=dmc/walker-walk: has no scripted expert"),
        (
            ["mode=demos", "env=metaworld/reach", "preset=cpu"],
            "preset=cpu: mode=demos takes preset=cpu with obs=image or obs=pointcloud only",
        ),
        (["agent=bc", "preset=cpu"], "preset=cpu: agent=bc takes preset=cpu with obs=image"),
        (["agent=bc", "obs=pointcloud", "preset=cpu_image"], "preset=cpu_image: agent=bc takes preset=cpu"),
        (["agent=tdmpc", "preset=cpu_image"], "preset=cpu_image: has sizes of agents that imitate"),
        (["agent=leto", "run.frames=3"], "run.frames: is an option of agents that learn from rewards; leave it out"),
        (["checkpoint=runs/x"], "checkpoint=runs/x: is for mode=eval"),
        ([FILE], "dataset=demonstrations.hdf5: is for agents that imitate"),
    ],
)
def test_what_does_not_fit_together_is_named(refused: Callable[..., str], overrides: list[str], message: str) -> None:
    assert message in refused(*overrides)


def test_whole_numbers_may_be_written_short(registry: Registry) -> None:
    assert composed(registry, ["run.frames=1e5"]).run.frames == 100_000
    assert composed(registry, ["agent.loss.learning_rate=1e-4"]).agent["loss"]["learning_rate"] == 1e-4


def test_a_sweep_has_canonical_names_and_a_first_job(registry: Registry) -> None:
    arguments, first = prepared_sweep(
        registry, ["-m", "env=dmc/ball_in_cup-catch,dmc/walker-walk", "seed=range(1,4)", "run.frames=1e3,2e3"]
    )
    assert arguments == [
        "-m",
        "env=dmc/cup-catch,dmc/walker-walk",
        "seed=range(1,4)",
        "run.frames=1000,2000",
        "swept=[run.frames]",
    ]
    assert first == ["env=dmc/cup-catch", "run.frames=1000"]
    assert (
        prepared_sweep(registry, ["-m", "env=choice(dmc/cup_catch,gym/Pendulum-v1)"])[0][1] == "env=dmc/cup-catch,gym/Pendulum-v1"
    )
    assert prepared_sweep(registry, ["--cfg", "job", "seed=2"]) == (["--cfg", "job", "seed=2"], ["seed=2"])


def test_a_sweep_of_imitation_runs_its_loop(registry: Registry) -> None:
    assert "run=offline" in prepared_sweep(registry, ["-m", "agent=bc,leto"])[0]
    assert "run=offline" in prepared_sweep(registry, ["-m", "experiment=leto_ph,leto_square_mh", "seed=1,2"])[0]
    assert "run=offline" not in prepared_sweep(registry, ["-m", "experiment=tdmpc,difftori_cup-catch"])[0]
    with pytest.raises(ConfigError, match="sweep over one kind at a time"):
        prepared_sweep(registry, ["-m", "agent=bc,tdmpc"])
    with pytest.raises(ConfigError, match="preset=cpu: agent=bc takes preset=cpu with obs=image"):
        prepared_sweep(registry, ["-m", "agent=bc", "preset=standard,cpu"])
    assert "preset=cpu" in prepared_sweep(registry, ["-m", "agent=bc,leto", "preset=cpu", "obs=image"])[0]


def test_a_choice_is_a_file_only_where_it_sets_something(registry: Registry) -> None:
    """Options have their defaults in the dataclasses: no file of a group is without a difference."""
    files = [path for group in ("agent", "world_model", "preset", "obs") for path in (registry.config_dir / group).glob("*.yaml")]
    empty = [
        path.name for path in files if not [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    ]
    assert empty == [] and {path.stem for path in files} >= {"tdmpc2", "cpu", "pixels"}


def test_every_option_has_help(registry: Registry) -> None:
    configs = [TopConfig, RunConfig, OfflineConfig, registry.env_config, *(info.config for info in registry.agents.values())]
    assert [info.key for config in configs for info in describe(config) if len(info.help) < 10] == []


@pytest.mark.parametrize("agent", names("rewards"))
@pytest.mark.parametrize("spec", [STATE, PIXELS], ids=["state", "pixels"])
def test_every_agent_of_rewards_composes_and_is_built(registry: Registry, agent: str, spec: EnvSpec) -> None:
    tiny = ["agent.model.mlp_dim=8", "agent.model.encoder_dim=8"]
    settings = composed(registry, [f"agent={agent}", "preset=cpu", f"obs={spec.only_key}", *tiny])
    assert make_agent(settings.agent, spec, seed=0).config.name == agent


@pytest.mark.parametrize("agent", names("demonstrations"))
def test_every_imitator_composes_and_is_built(registry: Registry, agent: str) -> None:
    base = ["agent.base=bc", "agent.base_checkpoint=runs/none"] if agent == "residual" else []
    settings = composed(registry, [f"agent={agent}", *base])
    assert settings.env.name == "metaworld/button-press-topdown" and settings.env.obs == "low_dim"
    assert isinstance(settings.run, OfflineConfig)
    assert make_agent(settings.agent, LOW_DIM, seed=0, total_steps=1).policy.config.name == agent


@pytest.mark.parametrize("agent", names("demonstrations"))
@pytest.mark.parametrize(("obs", "seen"), [("image", ObsSpec("image", (3, 64, 64))), ("pointcloud", ObsSpec("points", (256, 3)))])
def test_every_imitator_has_a_preset_for_a_cpu(registry: Registry, agent: str, obs: str, seen: ObsSpec) -> None:
    base = ["agent.base=bc", "agent.base_checkpoint=runs/none"] if agent == "residual" else []
    settings = composed(registry, [f"agent={agent}", "preset=cpu", f"obs={obs}", *base])
    assert settings.choices["preset"] == f"cpu_{obs}" and (settings.env.image_size, settings.env.points) == (
        (64, 1024) if obs == "image" else (84, 256)
    )
    spec = EnvSpec("test", {"hand": ObsSpec("vector", (3,)), "seen": seen}, action_dim=4, episode_steps=10, control_dt_s=0.1)
    policy = make_agent(settings.agent, spec, seed=0, total_steps=1).policy
    assert any(isinstance(m, SmallConv) for m in policy.modules()) == (obs == "image")
    assert not any(isinstance(m, ResNet) for m in policy.modules())


def test_the_folder_of_files_may_be_anywhere(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert composed(registry, ["preset=cpu"]).agent["model"]["mlp_dim"] == 256
