"""Rollouts: every episode as if it were alone, restarts after a death, and what is kept of each."""

import csv

import numpy as np
import pytest
import torch

from difftop.run.episodes import write_episodes
from difftop.run.rollouts import RolloutEpisode, Rollouts, roll_out
from envs import EnvConfig, EnvError, WorkerDiedError, make_env, make_vector_env

REACH = EnvConfig(name="toy/reach", obs="low_dim", episode_steps=12, video_size=32)


class Towards:
    """Walks at the target at a speed that it remembers from the episode's beginning, so that mixed-up memories would show."""

    def __init__(self, n):
        self.first = torch.zeros(n, 2)
        self.calls = 0
        self.begun = [[] for _ in range(n)]

    def begin(self, index, seed):
        self.begun[index].append(seed)

    def act(self, obs, t0, steps):
        self.calls += 1
        self.first = torch.where(t0[:, None], obs["hand_pos"], self.first)
        return (5 * (obs["target_pos"] - obs["hand_pos"]) * (0.3 + 0.2 * self.first.abs())).clamp(-1, 1)

    def metrics(self):
        return {"calls": float(self.calls)}


def alone(seed):
    """The episode of a seed, played by hand."""
    env, actor = make_env(REACH), Towards(1)
    obs, _ = env.reset(seed=seed)
    episode, over = RolloutEpisode(seed), False
    while not over:
        tensors = {key: torch.from_numpy(value)[None] for key, value in obs.items()}
        action = actor.act(tensors, torch.tensor([not episode.actions]), 0)[0].numpy()
        obs, reward, _, over, info = env.step(action)
        episode.actions.append(action)
        episode.rewards.append(reward)
        episode.success.append(bool(info["success"]))
        episode.positions.append(obs["hand_pos"])
    return episode


def assert_same(found, expected):
    assert found.seed == expected.seed and found.success == expected.success and found.rewards == expected.rewards
    assert (np.array(found.actions) == np.array(expected.actions)).all()
    assert (np.array(found.positions) == np.array(expected.positions)).all()


@pytest.mark.parametrize(("num_envs", "episodes"), [(1, 3), (3, 7), (4, 2)])
def test_every_episode_is_as_if_it_were_alone(num_envs, episodes):
    envs = make_vector_env(REACH, num_envs)
    found = roll_out(envs, Towards, list(range(20, 20 + episodes)), keep="hand_pos", record=True)
    for number, episode in enumerate(found.episodes):
        assert_same(episode, alone(20 + number))
    assert len(found.frames) == 13 and found.frames[0].shape == (32, 32, 3)
    assert found.metrics["eval/restarts"] == 0 and found.metrics["calls"] >= 12
    assert found.success == np.mean([any(alone(20 + k).success) for k in range(episodes)])
    assert found.success_end == np.mean([alone(20 + k).success[-1] for k in range(episodes)])


class Counted:
    """Environments whose steps are counted, one by one."""

    def __init__(self, num_envs):
        self.inner, self.steps, self.resets = make_vector_env(REACH, num_envs), [0] * num_envs, 0
        self.num_envs, self.render_at = num_envs, self.inner.render_at

    def reset_at(self, i, seed):
        self.resets += 1
        return self.inner.reset_at(i, seed)

    def step_only(self, rows, actions):
        for i in rows:
            self.steps[i] += 1
        return self.inner.step_only(rows, actions)


@pytest.mark.parametrize("num_envs", [1, 3, 7])
def test_until_success_the_same_episodes_succeed_in_fewer_steps(num_envs):
    seeds, whole_envs, short_envs = list(range(20, 27)), Counted(num_envs), Counted(num_envs)
    whole = roll_out(whole_envs, Towards, seeds)
    short = roll_out(short_envs, Towards, seeds, until_success=True)
    assert short.success == whole.success and (short.success_steps == whole.success_steps).all()
    assert 0 < short.success < 1  # some go on to the end
    for found, expected in zip(short.episodes, whole.episodes, strict=True):
        played = expected.success_step + 1 or len(expected.actions)
        assert found.success == expected.success[:played] and found.rewards == expected.rewards[:played]
        assert (np.array(found.actions) == np.array(expected.actions[:played])).all()
    assert sum(whole_envs.steps) == 12 * 7 and sum(short_envs.steps) == short.lengths.sum() < 12 * 7 - 10
    assert whole_envs.resets == short_envs.resets == 7


def test_an_environment_without_an_episode_stands_still():
    envs = Counted(4)
    roll_out(envs, Towards, [1, 2, 3, 4, 5, 6])
    assert sorted(envs.steps) == [12, 12, 24, 24]
    envs = Counted(3)
    roll_out(envs, Towards, [1, 2])
    assert envs.steps == [12, 12, 0]


def test_processes_play_the_same_episodes():
    seeds, found = [20, 21, 22, 23, 24], []
    for parallel in (False, True):
        envs = make_vector_env(REACH, 2, parallel)
        found.append([roll_out(envs, Towards, seeds, keep="hand_pos", until_success=until) for until in (False, True)])
        envs.close()
    for inside, outside in zip(*found, strict=True):
        for one, other in zip(inside.episodes, outside.episodes, strict=True):
            assert_same(one, other)
        assert inside.metrics == outside.metrics


class Dying:
    """Environments of which number 1 dies in chosen steps."""

    def __init__(self, num_envs, deaths):
        self.inner, self.deaths, self.steps, self.restarted = make_vector_env(REACH, num_envs), set(deaths), 0, []
        self.num_envs, self.difftop_spec = num_envs, self.inner.difftop_spec
        self.reset_at, self.render_at, self.close = self.inner.reset_at, self.inner.render_at, self.inner.close

    def step_only(self, rows, actions):
        self.steps += 1
        if self.steps in self.deaths:
            raise WorkerDiedError("dead", 1)
        return self.inner.step_only(rows, actions)

    def restart_at(self, i):
        self.restarted.append(i)


def test_the_actor_is_told_which_episode_begins_where(monkeypatch):
    made = []
    monkeypatch.setattr(Towards, "metrics", lambda self: (made.append(self), {})[1])
    roll_out(make_vector_env(REACH, 4), Towards, [1, 2, 3])
    assert made[0].begun == [[1, None], [2, None], [3, None], [None]]


def test_after_a_death_the_episodes_in_progress_begin_again_and_it_is_counted():
    envs = Dying(2, [17])
    found = roll_out(envs, Towards, [1, 2, 3, 4, 5], keep="hand_pos", record=True, died=WorkerDiedError)
    for episode, seed in zip(found.episodes, [1, 2, 3, 4, 5], strict=True):
        assert_same(episode, alone(seed))
    assert envs.restarted == [1] and found.metrics["eval/restarts"] == 1 and len(found.frames) == 13
    early = roll_out(Dying(2, [5]), Towards, [1, 2], record=True, died=WorkerDiedError)
    assert len(early.frames) == 13  # those of the first try are gone


def test_a_second_death_of_the_same_environment_is_an_error():
    with pytest.raises(WorkerDiedError):
        roll_out(Dying(2, [3, 9]), Towards, [1, 2, 3], died=WorkerDiedError)


@pytest.mark.slow
def test_a_killed_worker_is_made_anew():
    envs = make_vector_env(REACH, 2, parallel=True)

    class Killer(Towards):
        def act(self, obs, t0, steps):
            if self.calls == 4:
                envs._workers[0].kill()
                envs._workers[0].join()
            return super().act(obs, t0, steps)

    found = roll_out(envs, Killer, [1, 2, 3], keep="hand_pos", died=WorkerDiedError)
    for episode in found.episodes:
        assert_same(episode, alone(episode.seed))
    assert found.metrics["eval/restarts"] == 1
    with pytest.raises(EnvError, match="lives in this process"):
        make_vector_env(REACH, 1).restart_at(0)
    envs.close()


def test_table_of_episodes_against_numbers_by_hand(tmp_path):
    short = RolloutEpisode(5, [np.array([0.5, 1.0]), np.array([0.25, 1.0])], [1.0, 2.0], [False, True], [3.0, 4.0])
    never = RolloutEpisode(6, [np.array([0.0, 0.0])] * 3, [0.0] * 3, [False] * 3)
    write_episodes(tmp_path / "episodes.csv", Rollouts([short, never], [], {}), [0])
    first, second = csv.DictReader((tmp_path / "episodes.csv").read_text().splitlines())
    assert first == {
        "episode": "0", "env_seed": "5", "success": "1", "success_end": "1", "success_step": "1", "steps": "2", "return": "3",
        "acc_mean": "0.375", "acc_std": "0.125", "acc_max": "0.5", "contact_max_n": "4",
    }  # fmt: skip
    assert second["success"] == "0" and second["success_step"] == "-1" and second["contact_max_n"] == ""


def test_padding_of_unequal_episodes():
    episodes = [RolloutEpisode(0, [np.ones(2)] * n, [0.0] * n, [False] * n) for n in (2, 4)]
    found = Rollouts(episodes, [], {})
    assert found.padded("actions").shape == (2, 4, 2) and found.padded("actions").sum() == 12
    assert found.lengths.tolist() == [2, 4] and found.success_steps.tolist() == [-1, -1]


def test_where_success_is_not_judged_the_return_is_the_score(tmp_path):
    found = Rollouts([RolloutEpisode(k, [np.zeros(1)] * 2, [1.0, float(k)]) for k in range(3)], [], {})
    assert not found.judged and np.isnan(found.success) and np.isnan(found.success_end)
    assert found.returns == [1.0, 2.0, 3.0] and found.score == found.return_mean == 2.0
    assert found.return_std == pytest.approx((2 / 3) ** 0.5)
    write_episodes(tmp_path / "episodes.csv", found, [0])
    first = next(csv.DictReader((tmp_path / "episodes.csv").read_text().splitlines()))
    assert first["success"] == first["success_end"] == "" and first["return"] == "1"
