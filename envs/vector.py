"""N environments stepped together, in this process or in worker processes.

Nothing resets itself (Gymnasium's autoreset mode DISABLED): an environment whose episode ended shows its last observation, and
the caller begins the next episode with `reset_at(i, seed)`. So every episode has a seed that the caller chose.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections.abc import Sequence
from contextlib import closing, suppress
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, Protocol, cast

import numpy as np

from difftop.options import ConfigError
from difftop.types import EnvSpec
from envs.base import Array
from envs.config import EnvConfig
from envs.errors import EnvError
from envs.registry import env_spec, make_env

_CLOSE_TIMEOUT_S = 5.0


class VectorStep(NamedTuple):
    """Outcome of one step of N environments.

    Attributes:
        obs: `[N, *obs_shape]`; of an episode that ended, its last observation.
        reward: `[N]`, float64.
        terminated: `[N]` bool.
        truncated: `[N]` bool.
        infos: one dict per environment.
    """

    obs: Array
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

    def reset(self, seeds: Sequence[int]) -> Array:
        """Begins N episodes, one seed each; returns observations `[N, *obs_shape]`."""

    def reset_at(self, i: int, seed: int) -> Array:
        """Begins an episode in environment i; returns its observation `[*obs_shape]`."""

    def step(self, actions: Array) -> VectorStep:
        """Steps all with `actions [N, A]`. An environment whose episode ended must be reset first.

        Raises:
            EnvError: an environment failed, its worker died, or an action is outside [-1, 1].
        """

    def step_at(self, i: int, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Steps environment i alone, as Gymnasium's `step` does."""

    def render_at(self, i: int) -> Array:
        """Video frame `[H, W, 3]`, uint8, of environment i."""

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
        self.difftop_spec = env_spec(config)
        self._envs = [make_env(config) for _ in range(num_envs)]

    def reset(self, seeds: Sequence[int]) -> Array:
        """See `VectorEnv.reset`."""
        _check_count("seeds", len(seeds), self.num_envs)
        return np.stack([self.reset_at(i, seed) for i, seed in enumerate(seeds)])

    def reset_at(self, i: int, seed: int) -> Array:
        """See `VectorEnv.reset_at`."""
        return self._envs[i].reset(seed=seed)[0]

    def step(self, actions: Array) -> VectorStep:
        """See `VectorEnv.step`."""
        _check_count("actions", len(actions), self.num_envs)
        return _stacked([env.step(action) for env, action in zip(self._envs, actions, strict=True)])

    def step_at(self, i: int, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """See `VectorEnv.step_at`."""
        return self._envs[i].step(action)

    def render_at(self, i: int) -> Array:
        """See `VectorEnv.render_at`."""
        return cast(Array, self._envs[i].render())

    def close(self) -> None:
        """See `VectorEnv.close`."""
        for env in self._envs:
            env.close()


class ProcessVectorEnv:
    """A `VectorEnv` with one worker process per environment.

    Workers are spawned: a forked copy of a process that has rendered hangs in OpenGL. They end when this process ends.
    """

    def __init__(self, config: EnvConfig, num_envs: int) -> None:
        self.num_envs = num_envs
        self.difftop_spec = env_spec(config)
        self._pipes: list[Connection] = []
        self._workers: list[multiprocessing.process.BaseProcess] = []
        context = multiprocessing.get_context("spawn")
        for i in range(num_envs):
            ours, theirs = context.Pipe()
            worker = context.Process(target=_serve, args=(theirs, config), daemon=True, name=f"env-{i}")
            worker.start()
            theirs.close()  # the worker's copy is now the only one, so that its death closes the pipe
            self._pipes.append(ours)
            self._workers.append(worker)
        try:
            for i in range(num_envs):
                _raised(self._receive(i))  # each says when its environment is made
        except (EnvError, ConfigError):
            self.close()
            raise

    def reset(self, seeds: Sequence[int]) -> Array:
        """See `VectorEnv.reset`."""
        _check_count("seeds", len(seeds), self.num_envs)
        return np.stack([obs for obs, _ in self._call_all("reset", [{"seed": seed} for seed in seeds])])

    def reset_at(self, i: int, seed: int) -> Array:
        """See `VectorEnv.reset_at`."""
        obs, _ = self._call(i, "reset", {"seed": seed})
        return cast(Array, obs)

    def step(self, actions: Array) -> VectorStep:
        """See `VectorEnv.step`."""
        _check_count("actions", len(actions), self.num_envs)
        return _stacked(self._call_all("step", [{"action": action} for action in actions]))

    def step_at(self, i: int, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """See `VectorEnv.step_at`."""
        result: tuple[Array, float, bool, bool, dict[str, Any]] = self._call(i, "step", {"action": action})
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

    def _call_all(self, method: str, arguments: Sequence[dict[str, Any]]) -> list[Any]:
        for i, given in enumerate(arguments):
            self._send(i, method, given)
        results = [self._receive(i) for i in range(self.num_envs)]  # every answer is taken before any error is raised
        return [_raised(result) for result in results]

    def _send(self, i: int, method: str, arguments: dict[str, Any]) -> None:
        if not self._pipes:
            raise EnvError(f"{self.difftop_spec.name}: the environments are closed; make new ones.")
        try:
            self._pipes[i].send((method, arguments))
        except OSError as error:
            raise self._dead(i) from error

    def _receive(self, i: int) -> Any:
        try:
            return self._pipes[i].recv()
        except (EOFError, OSError) as error:
            raise self._dead(i) from error

    def _dead(self, i: int) -> EnvError:
        worker = self._workers[i]
        worker.join(_CLOSE_TIMEOUT_S)
        code = worker.exitcode
        how = f"killed by {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
        self.close()
        return EnvError(
            f"{self.difftop_spec.name}: worker {i} of {self.num_envs} died ({how}); stderr has its last words, if any."
        )


def _serve(pipe: Connection, config: EnvConfig) -> None:
    """Body of a worker: answers (method, arguments) with the result, or with the error that the environment raised.

    Anything but an `EnvError` is a bug: it ends the worker with a traceback, and the parent reports the death.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent saves first, then closes us
    os.environ["LP_NUM_THREADS"] = "0"  # one rendering thread per worker: several workers' threads only fight
    with suppress(EOFError, OSError):  # the parent closed the pipe, or is gone
        try:
            env = make_env(config)
        except (EnvError, ConfigError) as error:
            pipe.send(error)
            return
        pipe.send(None)
        with closing(env):
            while True:
                method, arguments = pipe.recv()
                try:
                    result = getattr(env, method)(**arguments)
                except EnvError as error:
                    error.add_note("".join(traceback.format_exception(error)))  # survives the pipe, unlike the traceback
                    result = error
                pipe.send(result)


def _raised(result: Any) -> Any:
    if isinstance(result, EnvError | ConfigError):
        raise result
    return result


def _check_count(what: str, given: int, num_envs: int) -> None:
    if given != num_envs:
        raise EnvError(f"{given} {what} for {num_envs} environments; give one each.")


def _stacked(results: Sequence[tuple[Array, float, bool, bool, dict[str, Any]]]) -> VectorStep:
    obs, reward, terminated, truncated, infos = zip(*results, strict=True)
    return VectorStep(np.stack(obs), np.array(reward), np.array(terminated), np.array(truncated), list(infos))
