import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

import envs
from difftop.options import ConfigError
from envs import EnvConfig, EnvError, make_env, make_vector_env
from envs.errors import WorkerDiedError

TOY = EnvConfig("toy/point-mass")


@pytest.fixture(scope="module", params=[False, True], ids=["local", "processes"])
def vector(request):
    made = make_vector_env(TOY, 2, parallel=request.param)
    yield made
    made.close()


def test_rows_are_the_single_environments(vector):
    singles = [make_env(TOY) for _ in range(2)]
    assert vector.difftop_spec == singles[0].difftop_spec and vector.num_envs == 2
    obs = vector.reset([3, 4])
    for i, seed in enumerate([3, 4]):
        assert (obs["state"][i] == singles[i].reset(seed=seed)[0]["state"]).all()
    rng = np.random.default_rng(0)
    for t in range(25):
        actions = rng.uniform(-1, 1, (2, 2)).astype(np.float32)
        obs, reward, terminated, truncated, infos = vector.step(actions)
        for i, single in enumerate(singles):
            expected = single.step(actions[i])
            assert (obs["state"][i] == expected[0]["state"]).all()
            assert (reward[i], terminated[i], truncated[i], infos[i]) == expected[1:]
        assert truncated.tolist() == [t == 24] * 2
    assert list(obs) == ["state"] and obs["state"].shape == (2, 4) and obs["state"].dtype == np.float32 and reward.shape == (2,)
    assert (vector.render_at(1) == singles[1].render()).all()


def test_only_the_rows_that_are_named_step(vector):
    single, actions = make_env(TOY), np.random.default_rng(1).uniform(-1, 1, (3, 1, 2))
    vector.reset([3, 4])
    single.reset(seed=4)
    for action in actions:
        obs, reward, terminated, truncated, infos = vector.step_only([1], action)
        expected = single.step(action[0])
        assert obs["state"].shape == (1, 4) and (obs["state"][0] == expected[0]["state"]).all()
        assert (reward[0], terminated[0], truncated[0], infos[0]) == expected[1:]
    still = make_env(TOY)
    still.reset(seed=3)
    assert (vector.step_at(0, np.ones(2))[0]["state"] == still.step(np.ones(2))[0]["state"]).all()
    with pytest.raises(EnvError, match="1 actions for 2 environments"):
        vector.step_only([0, 1], np.ones((1, 2)))


def test_boundary_shows_the_last_observation_and_the_caller_resets(vector):
    vector.reset([0, 0])
    for _ in range(10):
        vector.step(np.ones((2, 2)))
    vector.reset_at(1, seed=5)
    for _ in range(15):
        last = vector.step(np.ones((2, 2)))
    assert last.truncated.tolist() == [True, False]
    assert np.abs(last.obs["state"][0, :2]).min() > 1.5  # where the episode ended, not where another begins
    with pytest.raises(EnvError, match="call reset"):
        vector.step(np.ones((2, 2)))
    first = vector.reset_at(0, seed=7)
    assert (first["state"] == make_env(TOY).reset(seed=7)[0]["state"]).all()


def test_bad_action_names_the_environment_and_the_rest_goes_on(vector):
    vector.reset([0, 1])
    with pytest.raises(EnvError, match=r"toy/point-mass, step 1 in the episode of seed 1: the action .*not inside"):
        vector.step(np.array([[0, 0], [0, 2.0]]))
    vector.reset([0, 1])
    vector.step(np.zeros((2, 2)))


def test_several_observations_are_stacked_by_key():
    for parallel in (False, True):
        vector = make_vector_env(EnvConfig("toy/reach", obs="low_dim"), 2, parallel)
        obs = vector.reset([1, 2])
        assert {key: value.shape for key, value in obs.items()} == {"hand_pos": (2, 2), "target_pos": (2, 2)}
        after, *_, info = vector.step_at(1, np.ones(2))
        assert after["hand_pos"] == pytest.approx(obs["hand_pos"][1] + 0.1, abs=1e-6) and info["success"] in (0.0, 1.0)
        vector.close()


def test_counts_are_checked(vector):
    with pytest.raises(EnvError, match="3 seeds for 2 environments"):
        vector.reset([0, 1, 2])
    vector.reset([0, 1])
    with pytest.raises(EnvError, match="1 actions for 2 environments"):
        vector.step(np.zeros((1, 2)))


def test_number_of_environments_is_checked():
    with pytest.raises(ConfigError, match="num_envs=0"):
        make_vector_env(TOY, 0)


@pytest.mark.parametrize("parallel", [False, True])
def test_unknown_environment_is_found_before_any_worker_starts(parallel):
    with pytest.raises(ConfigError, match="unknown environment"):
        make_vector_env(EnvConfig("toy/point-mess"), 1, parallel)


def test_dead_worker_is_an_error_that_names_it():
    vector = make_vector_env(TOY, 2, parallel=True)
    vector.reset([0, 1])
    workers = list(vector._workers)
    os.kill(workers[1].pid, signal.SIGKILL)
    with pytest.raises(WorkerDiedError, match=r"toy/point-mass: worker 1 of 2 died \(killed by SIGKILL\)") as death:
        for _ in range(2):
            vector.step(np.zeros((2, 2)))
    assert death.value.index == 1
    vector.restart_at(1)
    obs = vector.reset([0, 1])
    assert (obs["state"][1] == make_env(TOY).reset(seed=1)[0]["state"]).all()
    vector.step(np.zeros((2, 2)))
    vector.close()
    assert not any(worker.is_alive() for worker in workers)
    with pytest.raises(EnvError, match="closed"):
        vector.step(np.zeros((2, 2)))


@pytest.mark.parametrize("dead", [0, 1])
def test_the_living_worker_s_answer_is_not_left_for_the_next_call(dead):
    vector = make_vector_env(TOY, 2, parallel=True)
    vector.reset([0, 1])
    vector._workers[dead].kill()
    vector._workers[dead].join()  # so that its pipe is closed before anything is sent
    with pytest.raises(WorkerDiedError) as death:
        vector.step(np.zeros((2, 2)))
    assert death.value.index == dead
    vector.restart_at(dead)
    obs = vector.reset([5, 6])
    for i in range(2):
        assert (obs["state"][i] == make_env(TOY).reset(seed=5 + i)[0]["state"]).all()
    vector.close()


def test_error_in_a_worker_arrives_whole(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "no-such-backend")
    with pytest.raises(EnvError, match=r"MUJOCO_GL=no-such-backend.*apt-get install"):
        make_vector_env(EnvConfig("dmc/walker-walk"), 1, parallel=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_workers_ignore_signals_to_the_group_and_end_on_close(number):
    vector = make_vector_env(TOY, 1, parallel=True)
    (worker,) = vector._workers
    vector.reset([0])
    os.kill(worker.pid, number)
    vector.step(np.zeros((1, 2)))
    vector.close()
    assert not worker.is_alive() and worker.exitcode == 0


def test_workers_start_inside_the_workers_of_joblib(tmp_path):
    pytest.importorskip("joblib")
    script = tmp_path / "sweep.py"
    code = """
        import multiprocessing

        import joblib

        def episode(seed):
            from envs import EnvConfig, make_vector_env

            before = multiprocessing.get_start_method()
            vector = make_vector_env(EnvConfig("toy/point-mass"), 1, parallel=True)
            shown = vector.reset([seed])["state"].shape
            vector.close()
            assert multiprocessing.get_start_method() == before == "loky", before
            return shown

        if __name__ == "__main__":
            print(joblib.Parallel(n_jobs=2)(joblib.delayed(episode)(seed) for seed in (1, 2)))
    """
    script.write_text(textwrap.dedent(code))
    environ = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run([sys.executable, str(script)], env=environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[(1, 4), (1, 4)]\n"


def test_the_start_method_of_the_process_stays_as_it_was():
    before = multiprocessing.get_start_method(allow_none=True)
    try:
        for method in (None, "fork", "forkserver"):
            multiprocessing.set_start_method(method, force=True)
            make_vector_env(TOY, 1, parallel=True).close()
            assert multiprocessing.get_start_method(allow_none=True) == method
    finally:
        multiprocessing.set_start_method(before, force=True)


@pytest.mark.slow
def test_workers_render_after_their_parent_did():
    config = EnvConfig("dmc/walker-walk", obs="pixels", render_quality="fast")
    try:
        expected = make_env(config).reset(seed=1)[0]["pixels"]
    except envs.RenderError as error:
        pytest.skip(str(error))
    vector = make_vector_env(config, 2, parallel=True)
    assert (vector.reset([1, 1])["pixels"] == expected).all()
    vector.close()
