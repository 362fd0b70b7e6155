"""The loop on the toy environment: what is stored, when updates are paid, and that a stop at any moment changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents.registry import make_agent
from difftop.data.replay import ReplayBuffer
from difftop.losses import FiniteWatch, NonFiniteLossError
from difftop.options import build
from difftop.run.checkpoint import load_checkpoint, restore_replay, save_checkpoint
from difftop.run.online import Hooks, OnlineRun, RunConfig, RunError
from difftop.run.rollouts import Rollouts, roll_out
from difftop.run.seeding import stream
from envs import EnvConfig, env_spec, make_vector_env
from tests.conftest import SMALL

TOY = EnvConfig(name="toy/point-mass")
RUN = {
    "frames": 150,
    "seed_steps": 50,
    "batch_size": 8,
    "eval_every": 60,
    "eval_episodes": 2,
    "eval_envs": 2,
    "checkpoint_every": 10_000,
    "capacity": 100,
    "video": False,
}


class StopAfter:
    """Asks for a stop after some units of work."""

    def __init__(self, units: int | None) -> None:
        self.left = units

    @property
    def stopped(self) -> bool:
        if self.left is not None:
            self.left -= 1
        return self.left == 0


class Harness:
    """A run in `folder`, resumed if it has a checkpoint."""

    def __init__(self, folder: Path, agent: str = "difftop_rl", stop_after: int | None = None, **options: Any) -> None:
        self.folder, self.evals, self.metrics = folder, [], []
        self.config = build(RunConfig, RUN | options)
        spec = env_spec(TOY)
        acting = SMALL["acting"] | {"lm": {"start_previous": True}, "mppi": {"samples": 16, "elites": 4}}
        more = {"policy_gradient": {"states": 4}} if agent == "difftop_rl" else {}
        self.agent = make_agent({"name": agent, **SMALL, **more, "acting": acting}, spec, seed=5)
        self.replay = ReplayBuffer(spec, capacity=self.config.capacity, horizon=5, prioritized=self.config.prioritized)
        hooks = Hooks(self.on_eval, self.on_metrics, self.save, lambda batch: folder / "batch", StopAfter(stop_after))
        envs, eval_envs = make_vector_env(TOY, self.config.num_envs), make_vector_env(TOY, self.config.eval_envs)
        self.run = OnlineRun(self.agent, envs, eval_envs, self.replay, self.config, seed=7, hooks=hooks)
        if (folder / "checkpoints").exists():
            checkpoint = load_checkpoint(folder)
            self.agent.load_state_dict(checkpoint.model)
            self.agent.load_train_state(checkpoint.train_state["agent"])
            restore_replay(checkpoint, self.replay)
            self.run.load_state_dict(checkpoint.train_state["run"])

    def on_eval(self, run: OnlineRun, result: Rollouts) -> None:
        self.evals.append((run.count.agent_steps, result.returns))

    def on_metrics(self, run: OnlineRun, metrics: dict[str, float]) -> None:
        self.metrics.append((run.count.agent_steps, dict(metrics)))

    def save(self, run: OnlineRun) -> None:
        state = {"agent": self.agent.train_state(), "run": run.state_dict()}
        step, model = run.count.agent_steps, self.agent.state_dict()
        save_checkpoint(
            self.folder,
            step=step,
            agent_name="x",
            config={},
            spec=self.replay.spec,
            model=model,
            train_state=state,
            replay=self.replay,
        )

    def everything(self) -> dict[str, Any]:
        """All state that decides the future, clocks apart."""
        run = self.run.state_dict()
        run["count"]["wall_s"] = 0.0
        rows = self.replay.read_rows(self.replay.begin, self.replay.end)
        return {
            "model": self.agent.state_dict(),
            "train": self.agent.train_state(),
            "run": run,
            "rows": rows,
            "replay": self.replay.state_dict(),
        }


def assert_same(a: Any, b: Any, where: str = "") -> None:
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{i}]")
    else:
        assert a == b, where


@pytest.mark.parametrize("agent", [pytest.param("tdmpc", marks=pytest.mark.slow), "difftop_rl"])
def test_stopped_and_resumed_equals_uninterrupted(tmp_path: Path, agent: str) -> None:
    whole = Harness(tmp_path / "whole", agent)
    assert whole.run.run()
    evals, metrics = [], []
    # In random actions, in the middle of a burst, in the middle of an episode, and just before the end.
    for units in (30, 40, 60, 45, 10_000):
        part = Harness(tmp_path / "parts", agent, stop_after=units)
        finished = part.run.run()
        assert finished == (units == 10_000)
        evals += part.evals
        metrics += part.metrics
    assert_same(part.everything(), whole.everything())
    assert evals == whole.evals
    assert_same(metrics, whole.metrics)


def test_a_finished_run_has_nothing_left_to_do(tmp_path: Path) -> None:
    first = Harness(tmp_path, "tdmpc")
    first.run.run()
    again = Harness(tmp_path, "tdmpc")
    assert again.run.run()
    assert again.evals == [] and again.run.count.grad_steps == first.run.count.grad_steps


def test_in_a_checkpoint_from_before_all_episodes_told_how_rare_rewards_are(tmp_path: Path) -> None:
    run = Harness(tmp_path).run
    assert run.run()
    state = run.state_dict()
    told = run.count.told
    assert 0 < told < run.count.episodes  # the toy's episodes explore in turns
    run.load_state_dict(state)
    assert run.count.told == told
    run.load_state_dict(state | {"count": {key: x for key, x in state["count"].items() if key != "told"}})
    assert run.count.told == run.count.episodes


def test_updates_are_paid_after_episodes_and_add_up(tmp_path: Path) -> None:
    harness = Harness(tmp_path, "tdmpc", updates_per_step=0.5)
    harness.run.run()
    assert harness.run.count.agent_steps == 150
    assert harness.run.count.grad_steps == 75
    assert [steps for steps, _ in harness.metrics] == [25, 50, 75, 100, 125, 150]
    assert "train/model_loss" not in harness.metrics[1][1] and "train/model_loss" in harness.metrics[2][1]
    assert [steps for steps, _ in harness.evals] == [0, 60, 120, 150]


def test_replay_holds_what_was_played(tmp_path: Path) -> None:
    harness = Harness(tmp_path, "tdmpc", frames=50, seed_steps=50)
    harness.run.run()
    rows = harness.replay.read_rows(harness.replay.begin, harness.replay.end)
    env = make_vector_env(TOY, 1)
    for number in range(2):
        obs = env.reset_at(0, stream(7, "train_env", number))["state"]
        for t in range(25):
            row = 26 * number + t
            np.testing.assert_array_equal(rows["obs"][row], obs)
            seen, reward, _, _, _ = env.step_at(0, rows["action"][row].numpy())
            obs = seen["state"]
            assert rows["reward"][row].item() == np.float32(reward)
        np.testing.assert_array_equal(rows["obs"][26 * number + 25], obs)


def test_several_environments_fill_one_replay(tmp_path: Path) -> None:
    harness = Harness(tmp_path, "tdmpc", num_envs=3, frames=150)
    harness.run.run()
    assert harness.run.count.agent_steps == 150
    assert harness.run.count.grad_steps == 150
    assert harness.run.count.episodes == 9


def test_evaluating_more_often_does_not_change_training(tmp_path: Path) -> None:
    rarely, often = Harness(tmp_path / "a"), Harness(tmp_path / "b", eval_every=30)
    rarely.run.run()
    often.run.run()
    assert len(often.evals) > len(rarely.evals)
    assert_same(often.agent.state_dict(), rarely.agent.state_dict())


def test_a_run_that_is_made_longer_has_the_evaluations_of_an_uninterrupted_one(tmp_path: Path) -> None:
    Harness(tmp_path / "a", frames=80).run.run()
    longer, whole = Harness(tmp_path / "a", frames=150), Harness(tmp_path / "b", frames=150)
    longer.run.run()
    whole.run.run()
    assert [steps for steps, _ in longer.evals] == [120, 150] and [steps for steps, _ in whole.evals] == [0, 60, 120, 150]
    for (_, mine), (_, theirs) in zip(longer.evals, whole.evals[2:], strict=True):
        assert np.array_equal(mine, theirs)


@pytest.mark.parametrize("rare", [False, True])
def test_slices_are_drawn_by_priority_only_until_rewards_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rare: bool
) -> None:
    """By the mean share of rewarded steps, of all episodes that tell while they are few, then of the last ten or so."""
    harness = Harness(tmp_path, frames=450, prioritized_while_rare=rare)
    run, rarities = harness.run, list[float]()
    monkeypatch.setattr(run.actor, "tells", lambda index: run.slots[index].number % 3 > 0)
    drawn: list[float] = []
    sample, finish = run.replay.sample, run._finish
    share, wanted, told = 0.0, [], 0

    def spy(*args: Any, uniform: float) -> Any:
        drawn.append(uniform)
        return sample(*args, uniform=uniform)

    def reward_some(index: int, terminated: bool) -> None:
        nonlocal share, told
        number, slot = len(wanted), run.slots[index]
        rewarded = len(slot.rewards) // (2 + number)  # half of the first episode's steps, a third of the next one's
        slot.rewards[:] = [1.0] * rewarded + [0.0] * (len(slot.rewards) - rewarded)
        if slot.number % 3 or run.count.agent_steps <= run.config.seed_steps:
            told += 1
            share += max(0.1, 1 / told) * (rewarded / len(slot.rewards) - share)
        wanted.append(min(1.0, 2 * share) if rare else 0.0)
        rarities.append(1 - min(1.0, 2 * share))
        finish(index, terminated)

    monkeypatch.setattr(run.replay, "sample", spy)
    monkeypatch.setattr(run, "_finish", reward_some)
    run.run()
    seen, late = list(dict.fromkeys(drawn)), list(dict.fromkeys(wanted))
    assert seen == pytest.approx(late[-len(seen) :] if rare else [0.0])
    logged = [row["train/rare"] for _, row in harness.metrics if "train/rare" in row]
    assert logged == pytest.approx(rarities[: len(logged)]) and len(logged) > 8
    assert 8 < told < len(wanted) and 0 < run.count.rewarded < 0.3 and len(drawn) == run.count.grad_steps


@pytest.mark.parametrize(
    ("method", "told"),
    [
        ("update", r"the model loss is nan at gradient step 0.*batch"),
        ("finish_episode", r"the model loss is nan after 0 gradient steps, .*: look at the episode"),
    ],
)
def test_a_non_finite_loss_stops_the_run_and_says_where_to_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, told: str
) -> None:
    harness = Harness(tmp_path, "tdmpc")

    def broken(*_: Any) -> Any:
        raise NonFiniteLossError("the model loss is nan")

    monkeypatch.setattr(harness.agent, method, broken)
    with pytest.raises(RunError, match=told):
        harness.run.run()


def test_a_non_finite_loss_kept_on_a_device_stops_the_run_before_a_checkpoint(tmp_path: Path) -> None:
    harness = Harness(tmp_path, "tdmpc", eval_every=1000, checkpoint_every=100)
    harness.agent.capture_graphs("false")  # on a CPU it would look after each update
    harness.agent.finite = FiniteWatch(torch.device("cpu"), deferred=True)
    harness.run.run()
    assert harness.agent.grad_steps > 0 and (tmp_path / "checkpoints").exists()

    broken = Harness(tmp_path / "broken", "tdmpc", eval_every=1000, checkpoint_every=100)
    broken.agent.capture_graphs("false")
    broken.agent.finite = FiniteWatch(torch.device("cpu"), deferred=True)
    with torch.no_grad():
        broken.agent.world.target.encoder[0].weight.fill_(torch.nan)
    with pytest.raises(RunError, match=r"the model loss is nan at or before gradient step \d+, where .* is in .*batch: look"):
        broken.run.run()
    assert broken.agent.grad_steps > 0 and not (tmp_path / "broken" / "checkpoints" / "step_000000100").exists()


def test_resume_notices_a_simulator_that_plays_differently(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Harness(tmp_path, "tdmpc", stop_after=40).run.run()
    monkeypatch.setattr("envs.toy.point_mass._PUSH", 0.41)
    with pytest.raises(RunError, match="does not play as it did"):
        Harness(tmp_path, "tdmpc")


class Scripted:
    """Actions that count the steps of each environment's episode."""

    def __init__(self, n: int) -> None:
        self.steps = torch.zeros(n)

    def begin(self, index: int, seed: int | None) -> None:
        """Nothing to remember."""

    def act(self, obs: dict[str, torch.Tensor], t0: torch.Tensor, steps: int) -> torch.Tensor:
        self.steps = torch.where(t0, 0.0, self.steps + 1)
        return (self.steps / 100)[:, None].expand(-1, 2).contiguous()

    def metrics(self) -> dict[str, float]:
        return {}


def test_evaluation_plays_every_seed_once_whatever_the_number_of_environments() -> None:
    seeds = [11, 12, 13, 14, 15]
    results = [roll_out(make_vector_env(TOY, n), Scripted, seeds, record=n == 2) for n in (1, 2, 5)]
    assert results[0].returns == results[1].returns == results[2].returns
    assert len(set(results[0].returns)) == 5
    assert results[0].lengths.tolist() == [25] * 5
    assert len(results[1].frames) == 26 and results[1].frames[0].shape == (256, 256, 3)
    assert not results[0].judged and np.isnan(results[0].success)
