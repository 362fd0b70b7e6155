"""N environments stepped together, in this process or in worker processes.

Nothing resets itself (Gymnasium's autoreset mode DISABLED): an environment whose episode ended shows its last observation, and
the caller begins the next episode with `reset_at(i, seed)`. So every episode has a seed that the caller chose.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, Protocol, cast

import numpy as np

from difftop.options import ConfigError
from difftop.types import EnvSpec
from envs.config import EnvConfig
from envs.errors import EnvError, WorkerDiedError
from envs.registry import make_env
from envs.suites import Array, Observation

_CLOSE_TIMEOUT_S = 5.0
_STARTING = threading.Lock()


class VectorStep(NamedTuple):
    """Outcome of one step of N environments.

    Attributes:
        obs: by key, `[N, *shape]`; of an episode that ended, its last observation.
        reward: `[N]`, float64.
        terminated: `[N]` bool.
        truncated: `[N]` bool.
        infos: one dict per environment.
    """

    obs: Observation
    reward: Array
    terminated: Array
    truncated: Array
    infos: list[dict[str, Any]]


class VectorEnv(Protocol):
    """N environments of one kind; row i of every result depends on environment i only.

    Attributes:
        num_envs: N.
        difftop_spec: of each of them.
    """

    num_envs: int
    difftop_spec: EnvSpec

    def reset(self, seeds: Sequence[int]) -> Observation:
        """Begins N episodes, one seed each; returns observations by key, `[N, *shape]`."""

    def reset_at(self, i: int, seed: int) -> Observation:
        """Begins an episode in environment i; returns its observation by key."""

    def step(self, actions: Array) -> VectorStep:
        """Steps all with `actions [N, A]`. An environment whose episode ended must be reset first.

        Raises:
            EnvError: an environment failed, its worker died, or an action is outside [-1, 1].
        """

    def step_only(self, rows: Sequence[int], actions: Array) -> VectorStep:
        """Steps the environments `rows [K]` with `actions [K, A]` as `step` does all; the others stand still. K results."""

    def step_at(self, i: int, action: Array) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Steps environment i alone, as Gymnasium's `step` does."""

    def render_at(self, i: int) -> Array:
        """Video frame `[H, W, 3]`, uint8, of environment i."""

    def restart_at(self, i: int) -> None:
        """Makes environment i anew after its worker died.

        Raises:
            EnvError: it can't be made, or it lives in this process.
        """

    def close(self) -> None:
        """Frees everything; closing twice is fine."""


def make_vector_env(config: EnvConfig, num_envs: int, parallel: bool = False) -> VectorEnv:
    """Makes `num_envs` environments, each in a process of its own if `parallel`.

    A round trip to a worker costs about 0.2 ms. So processes pay off for pixels, given a free core each; small state tasks are
    faster without.
    """
    if num_envs < 1:
        raise ConfigError(f"num_envs={num_envs}: must be >= 1.")
    return ProcessVectorEnv(config, num_envs) if parallel else LocalVectorEnv(config, num_envs)


class LocalVectorEnv:
    """A `VectorEnv` in this process."""

    def __init__(self, config: EnvConfig, num_envs: int) -> None:
        self.num_envs = num_envs
        self._envs = [make_env(config) for _ in range(num_envs)]
        self.difftop_spec = self._envs[0].difftop_spec

    def reset(self, seeds: Sequence[int]) -> Observation:
        """See `VectorEnv.reset`."""
        _check_count("seeds", len(seeds), self.num_envs)
        return stack_observations([self.reset_at(i, seed) for i, seed in enumerate(seeds)])

    def reset_at(self, i: int, seed: int) -> Observation:
        """See `VectorEnv.reset_at`."""
        return self._envs[i].reset(seed=seed)[0]

    def step(self, actions: Array) -> VectorStep:
        """See `VectorEnv.step`."""
        return self.step_only(range(self.num_envs), actions)

    def step_only(self, rows: Sequence[int], actions: Array) -> VectorStep:
        """See `VectorEnv.step_only`."""
        _check_count("actions", len(actions), len(rows))
        return _stacked([self._envs[i].step(action) for i, action in zip(rows, actions, strict=True)])

    def step_at(self, i: int, action: Array) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """See `VectorEnv.step_at`."""
        return self._envs[i].step(action)

    def render_at(self, i: int) -> Array:
        """See `VectorEnv.render_at`."""
        return cast(Array, self._envs[i].render())

    def restart_at(self, i: int) -> None:
        """See `VectorEnv.restart_at`."""
        raise EnvError(f"{self.difftop_spec.name}: environment {i} lives in this process and can't be restarted.")

    def close(self) -> None:
        """See `VectorEnv.close`."""
        for env in self._envs:
            env.close()


class ProcessVectorEnv:
    """A `VectorEnv` with one worker process per environment.

    Workers are spawned: a forked copy of a process that has rendered hangs in OpenGL. They end when this process ends.
    """

    def __init__(self, config: EnvConfig, num_envs: int) -> None:
        self.num_envs, self._config = num_envs, config
        self._pipes: list[Connection] = []
        self._workers: list[multiprocessing.process.BaseProcess] = []
        for i in range(num_envs):
            pipe, worker = self._spawn(i)
            self._pipes.append(pipe)
            self._workers.append(worker)
        try:
            specs = [_raised(self._receive(i)) for i in range(num_envs)]  # each says what it made
        except (EnvError, ConfigError):
            self.close()
            raise
        self.difftop_spec: EnvSpec = specs[0]

    def _spawn(self, i: int) -> tuple[Connection, multiprocessing.process.BaseProcess]:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        worker = context.Process(target=_serve, args=(theirs, self._config), daemon=True, name=f"env-{i}")
        with _as_spawned():
            worker.start()
        theirs.close()  # the worker's copy is now the only one, so that its death closes the pipe
        return ours, worker

    def restart_at(self, i: int) -> None:
        """See `VectorEnv.restart_at`."""
        self._pipes[i].close()
        self._pipes[i], self._workers[i] = self._spawn(i)
        _raised(self._receive(i))

    def reset(self, seeds: Sequence[int]) -> Observation:
        """See `VectorEnv.reset`."""
        _check_count("seeds", len(seeds), self.num_envs)
        begun = self._call_all("reset", [{"seed": seed} for seed in seeds], range(self.num_envs))
        return stack_observations([obs for obs, _ in begun])

    def reset_at(self, i: int, seed: int) -> Observation:
        """See `VectorEnv.reset_at`."""
        obs: Observation = self._call(i, "reset", {"seed": seed})[0]
        return obs

    def step(self, actions: Array) -> VectorStep:
        """See `VectorEnv.step`."""
        return self.step_only(range(self.num_envs), actions)

    def step_only(self, rows: Sequence[int], actions: Array) -> VectorStep:
        """See `VectorEnv.step_only`."""
        _check_count("actions", len(actions), len(rows))
        return _stacked(self._call_all("step", [{"action": action} for action in actions], rows))

    def step_at(self, i: int, action: Array) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """See `VectorEnv.step_at`."""
        result: tuple[Observation, float, bool, bool, dict[str, Any]] = self._call(i, "step", {"action": action})
        return result

    def render_at(self, i: int) -> Array:
        """See `VectorEnv.render_at`."""
        return cast(Array, self._call(i, "render", {}))

    def close(self) -> None:
        """See `VectorEnv.close`."""
        for pipe in self._pipes:
            pipe.close()  # a worker ends when its pipe closes
        for worker in self._workers:
            worker.join(_CLOSE_TIMEOUT_S)
            if worker.is_alive():
                worker.kill()
                worker.join()
        self._pipes, self._workers = [], []

    def _call(self, i: int, method: str, arguments: dict[str, Any]) -> Any:
        self._send(i, method, arguments)
        return _raised(self._receive(i))

    def _call_all(self, method: str, arguments: Sequence[dict[str, Any]], rows: Sequence[int]) -> list[Any]:
        sent = [_attempted(self._send, i, method, given) for i, given in zip(rows, arguments, strict=True)]
        # Every answer is taken before any error is raised: one left in its pipe would answer the next call.
        results = [error or _attempted(self._receive, i) for i, error in zip(rows, sent, strict=True)]
        return [_raised(result) for result in results]

    def _send(self, i: int, method: str, arguments: dict[str, Any]) -> None:
        if not self._pipes:
            raise EnvError(f"{self._config.name}: the environments are closed; make new ones.")
        try:
            self._pipes[i].send((method, arguments))
        except OSError as error:
            raise self._dead(i) from error

    def _receive(self, i: int) -> Any:
        try:
            return self._pipes[i].recv()
        except (EOFError, OSError) as error:
            raise self._dead(i) from error

    def _dead(self, i: int) -> WorkerDiedError:
        worker = self._workers[i]
        worker.join(_CLOSE_TIMEOUT_S)
        code = worker.exitcode
        how = f"killed by {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
        return WorkerDiedError(
            f"{self._config.name}: worker {i} of {self.num_envs} died ({how}); stderr has its last words, if any.", i
        )


@contextmanager
def _as_spawned() -> Iterator[None]:
    """While a worker starts, the process-wide start method is `spawn` too.

    A spawned child takes over its parent's process-wide method, whatever context started it, and dies where it doesn't know that
    method: joblib's workers have one of their own (`loky`), and so have those of other launchers.
    """
    with _STARTING:
        before = multiprocessing.get_start_method(allow_none=True)
        multiprocessing.set_start_method("spawn", force=True)
        try:
            yield
        finally:
            multiprocessing.set_start_method(before, force=True)


def _serve(pipe: Connection, config: EnvConfig) -> None:
    """Body of a worker: answers (method, arguments) with the result, or with the error that the environment raised.

    Anything but an `EnvError` is a bug: it ends the worker with a traceback, and the parent reports the death.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # Ctrl-C, timeout and Slurm reach the whole group: the parent saves first,
        signal.signal(number, signal.SIG_IGN)  # then closes the pipe, which ends us
    os.environ["LP_NUM_THREADS"] = "0"  # one rendering thread per worker: several workers' threads only fight
    with suppress(EOFError, OSError):  # the parent closed the pipe, or is gone
        try:
            env = make_env(config)
        except (EnvError, ConfigError) as error:
            pipe.send(error)
            return
        pipe.send(env.difftop_spec)
        with closing(env):
            while True:
                method, arguments = pipe.recv()
                try:
                    result = getattr(env, method)(**arguments)
                except EnvError as error:
                    error.add_note("".join(traceback.format_exception(error)))  # survives the pipe, unlike the traceback
                    result = error
                pipe.send(result)


def stack_observations(rows: Sequence[Observation]) -> Observation:
    """One observation per environment to arrays with N rows, by key."""
    return {key: np.stack([row[key] for row in rows]) for key in rows[0]}


def _attempted(call: Callable[..., Any], *arguments: Any) -> Any:
    """What `call` returns, or the `EnvError` that it raises."""
    try:
        return call(*arguments)
    except EnvError as error:
        return error


def _raised(result: Any) -> Any:
    if isinstance(result, EnvError | ConfigError):
        raise result
    return result


def _check_count(what: str, given: int, num_envs: int) -> None:
    if given != num_envs:
        raise EnvError(f"{given} {what} for {num_envs} environments; give one each.")


def _stacked(results: Sequence[tuple[Observation, float, bool, bool, dict[str, Any]]]) -> VectorStep:
    obs, reward, terminated, truncated, infos = zip(*results, strict=True)
    return VectorStep(stack_observations(obs), np.array(reward), np.array(terminated), np.array(truncated), list(infos))
