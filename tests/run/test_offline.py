"""The offline loop on its own: batches, validation, selection of the best checkpoint."""

from dataclasses import replace

import pytest
import torch

from agents.policies.training import WindowShape
from difftop.contract import UpdateResult
from difftop.data.files import open_demonstrations
from difftop.losses import NonFiniteLossError
from difftop.run.offline import Batches, OfflineConfig, OfflineHooks, OfflineRun, split
from difftop.run.online import RunError
from difftop.run.rollouts import RolloutEpisode, Rollouts
from envs import EnvConfig, record


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory):
    return open_demonstrations(
        record(EnvConfig(name="toy/reach", obs="low_dim"), 10, seed=0, folder=tmp_path_factory.mktemp("data"))
    )


def test_an_epoch_shows_every_window_once_and_any_batch_can_be_had_alone(demonstrations):
    windows = demonstrations.windows(3, 2)
    seen = []
    windows.gather = lambda index: seen.append(index.tolist())  # numbers of the windows, in place of the windows
    batches = Batches(windows, 8, seed=5)
    for number in range(2 * batches.per_epoch):
        batches.batch(number)
    first, second = seen[: batches.per_epoch], seen[batches.per_epoch :]
    for epoch in (first, second):
        flat = [i for batch in epoch for i in batch]
        assert len(set(flat)) == len(flat) == 8 * batches.per_epoch > len(windows) - 8
    assert first != second
    again = Batches(windows, 8, seed=5)
    again.batch(batches.per_epoch + 1)
    assert seen[-1] == second[1]
    Batches(windows, 8, seed=6).batch(0)
    assert seen[-1] != first[0]
    assert Batches(windows, 10**6, seed=0).batch_size == len(windows)


@pytest.mark.parametrize(("fraction", "held"), [(0.0, 0), (0.1, 1), (0.25, 2), (0.9, 9)])
def test_split_is_by_demonstration_and_loses_none(demonstrations, fraction, held):
    training, held_out = split(demonstrations, fraction, seed=3)
    names = sorted([*training.names, *(held_out.names if held_out else ())])
    assert names == sorted(demonstrations.names) and len(training) == 10 - held
    assert split(demonstrations, fraction, seed=3)[0].names == training.names


class Countdown:
    """An agent whose loss is 1 / (1 + steps) and that remembers what it was shown."""

    windows, device = WindowShape(3, 2), torch.device("cpu")

    def __init__(self, fails_at=-1):
        self.shown, self.fails_at = [], fails_at

    def prepare_(self, windows):
        pass

    def update(self, batch, grad_steps):
        if grad_steps == self.fails_at:
            raise NonFiniteLossError("the loss is nan")
        self.shown.append(batch.actions.sum())
        return UpdateResult({"train/loss": torch.tensor(1 / (1 + grad_steps))}, None)

    def check_finite(self):
        """Nothing is kept for later."""

    def validate(self, batch, seed):
        return {"valid/loss": batch.actions.double().mean(), "valid/windows": torch.tensor(float(len(batch.actions)))}


def hooks(log, successes=None):
    scores = iter(successes or [])

    def select(run):
        if successes is None:
            return None
        solved = next(scores)
        episodes = [RolloutEpisode(k, [0], [0.0], [k < solved]) for k in range(4)]
        return Rollouts(episodes, [], {})

    class Stop:
        stopped = False

    return OfflineHooks(
        select=select,
        on_metrics=lambda run, metrics: log.append(("metrics", run.count.grad_steps, metrics)),
        on_select=lambda run, found, validation: log.append(("select", run.count.grad_steps, validation)),
        save=lambda run, best: log.append(("save", run.count.grad_steps, best)),
        save_batch=lambda batch: log.append(("batch", batch)) or "batch.safetensors",
        stop=Stop(),
    )


CONFIG = OfflineConfig(grad_steps=10, batch_size=4, eval_every=2, checkpoint_every=5, log_every=4)


def test_best_checkpoint_is_the_latest_of_those_with_most_successes(demonstrations):
    log = []
    run = OfflineRun(Countdown(), demonstrations, None, CONFIG, seed=0, hooks=hooks(log, [1, 3, 2, 3, 0]))
    assert run.run()
    saved = [entry[1:] for entry in log if entry[0] == "save"]
    assert saved == [(2, True), (4, True), (5, False), (8, True), (10, False)]
    assert (run.count.best, run.count.best_at) == (0.75, 8)


def test_without_selection_the_last_checkpoint_is_the_best(demonstrations):
    log = []
    OfflineRun(Countdown(), demonstrations, None, CONFIG, seed=0, hooks=hooks(log)).run()
    assert [entry[1:] for entry in log if entry[0] == "save"][-1] == (10, True)


def test_metrics_are_means_since_the_last_row(demonstrations):
    log = []
    OfflineRun(Countdown(), demonstrations, None, CONFIG, seed=0, hooks=hooks(log)).run()
    rows = {steps: metrics for kind, steps, metrics in (e for e in log if e[0] == "metrics")}
    assert list(rows) == [4, 8, 10]
    assert rows[8]["train/loss"] == pytest.approx((1 / 5 + 1 / 6 + 1 / 7 + 1 / 8) / 4)
    assert 0 <= rows[4]["time/loading_share"] <= 1


@pytest.mark.parametrize("loading", ["inline", "ahead"])
def test_a_run_that_was_stopped_shows_the_batches_of_one_that_was_not(demonstrations, loading):
    whole, config = Countdown(), replace(CONFIG, loading=loading)
    OfflineRun(whole, demonstrations, None, CONFIG, seed=7, hooks=hooks([])).run()
    agent, log = Countdown(), []
    stopping = hooks(log)
    first = OfflineRun(agent, demonstrations, None, config, seed=7, hooks=stopping)
    agent_update = agent.update
    agent.update = lambda batch, k: (setattr(stopping.stop, "stopped", k == 5), agent_update(batch, k))[1]
    assert not first.run() and log[-1] == ("save", 6, True)
    agent.update = agent_update
    second = OfflineRun(agent, demonstrations, None, config, seed=7, hooks=hooks([]))
    second.load_state_dict(first.state_dict())
    assert second.run() and torch.equal(torch.stack(agent.shown), torch.stack(whole.shown))


def test_validation_weighs_all_windows_alike(demonstrations):
    training, held_out = split(demonstrations, 0.5, seed=0)
    run = OfflineRun(Countdown(), training, held_out, CONFIG, seed=0, hooks=hooks([]))
    windows = held_out.windows(3, 2)
    expected = windows.gather(torch.arange(len(windows))).actions.double().mean()
    assert run.validate()["valid/loss"] == pytest.approx(float(expected), abs=1e-6)
    assert OfflineRun(Countdown(), training, None, CONFIG, seed=0, hooks=hooks([])).validate() == {}


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_batch(demonstrations):
    log = []
    with pytest.raises(RunError, match=r"the loss is nan at gradient step 3; .* batch is in batch.safetensors"):
        OfflineRun(Countdown(fails_at=3), demonstrations, None, CONFIG, seed=0, hooks=hooks(log)).run()
    assert log[-1][0] == "batch"


@pytest.mark.parametrize(("log_every", "checkpoint_every", "stops_at"), [(4, 100, 4), (100, 6, 6), (100, 100, 20)])
def test_a_loss_kept_on_a_device_stops_the_run_at_the_next_row_or_checkpoint(
    demonstrations, log_every, checkpoint_every, stops_at
):
    class Keeps(Countdown):
        def check_finite(self):
            raise NonFiniteLossError("the loss is nan")

    log, every = [], {"log_every": log_every, "checkpoint_every": checkpoint_every, "eval_every": 100, "grad_steps": 20}
    with pytest.raises(RunError, match=rf"the loss is nan at or before gradient step {stops_at - 1}, where the weights"):
        OfflineRun(Keeps(), demonstrations, None, replace(CONFIG, **every), seed=0, hooks=hooks(log)).run()
    assert [entry[0] for entry in log] == ["batch"]


def test_demonstrations_too_short_for_a_window_are_one_sentence(demonstrations):
    agent = Countdown()
    agent.windows = WindowShape(100, 2)
    with pytest.raises(RunError, match="no window of 101 steps fits the 10 demonstrations"):
        OfflineRun(agent, demonstrations, None, CONFIG, seed=0, hooks=hooks([]))
