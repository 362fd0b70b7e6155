"""The robot's side; imports neither torch nor anything that does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPException
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from difftop.types import EnvSpec

TYPE = "application/octet-stream"
_TIMEOUT_S = 60.0  # the first action may make a planner, or wait for another robot's


class ServeError(ConnectionError):
    """No server, or one that went away; make a new `Client`, with which a new episode begins."""


class Client:
    """Acts by a server, as `difftop.load_policy` does: same contract, same errors.

    One connection, open until `close`; not for several threads at once.

    Attributes:
        spec: what the policy was trained for: observations by key, action dimension, control period.
    """

    def __init__(self, host: str = "localhost", port: int = 8765, *, timeout_s: float = _TIMEOUT_S) -> None:
        """Connects.

        Args:
            host, port: of `mode=serve`.
            timeout_s: after which an answer is given up.
        Raises:
            ServeError: nobody answers there.
        """
        self._where = f"{host}:{port}"
        self._connection = HTTPConnection(host, port, timeout=timeout_s)
        self._lost = False
        self.spec = EnvSpec.from_plain(self._json("GET", "/spec"))

    def act(self, obs: Any) -> np.ndarray[Any, Any]:
        """The next action.

        Args:
            obs: one observation or a batch with N rows, arrays by key, or plain where the policy looks at one only. Images are
                uint8 with channels first. A batch of another size than before begins new episodes.
        Returns:
            `[A]` or `[N, A]`, float32, as `Policy.act`.
        Raises:
            ValueError: an observation is missing or has another shape; the message names both.
            ServeError: the server is gone.
        """
        if not isinstance(obs, Mapping):
            if len(self.spec.obs) != 1:
                raise ValueError(f"the policy looks at several observations, {self.spec.shapes}: give them by key.")
            obs = {next(iter(self.spec.obs)): obs}
        wanted = {key: _plain(key, obs[key]) for key in self.spec.obs if key in obs}  # others would only be sent
        body = self._asked("POST", "/act", save(wanted))
        try:
            action: np.ndarray[Any, Any] = load(body)["action"]
            return action
        except (SafetensorError, KeyError) as error:
            raise ServeError(f"{self._where}: its answer is no action ({error!r}); is it mode=serve of this version?") from error

    def reset(self, index: int | None = None) -> None:
        """An episode begins: in row `index` of a batch, or in all."""
        self._json("POST", "/reset" if index is None else f"/reset?index={index}")

    def latency(self) -> dict[str, float]:
        """Of the server's actions, of all connections: `count`, `median_ms`, `p95_ms`; without the network."""
        found: dict[str, float] = self._json("GET", "/latency")
        return found

    def close(self) -> None:
        """Ends the connection; closing twice is fine."""
        self._connection.close()
        self._lost = True

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _json(self, method: str, path: str) -> Any:
        return json.loads(self._asked(method, path))

    def _asked(self, method: str, path: str, body: bytes = b"") -> bytes:
        """The answer's body."""
        if self._lost:  # HTTPConnection would connect anew by itself, to a policy that has forgotten everything
            raise ServeError(f"{self._where}: the connection has ended; make a new Client, with which a new episode begins.")
        try:
            self._connection.request(method, path, body, {"Content-Type": TYPE})
            response = self._connection.getresponse()
            found = response.read()
        except (OSError, HTTPException) as error:
            self.close()
            raise ServeError(
                f"{self._where}: no answer ({error or type(error).__name__}); start one with `python train.py mode=serve "
                "checkpoint=RUN`, and make a new Client."
            ) from error
        if response.will_close:
            self.close()
        if response.status != 200:
            raise ValueError(_sentence(found, response.status))
        return found


def _plain(key: str, value: Any) -> np.ndarray[Any, Any]:
    """An array as safetensors keeps them."""
    array = np.asarray(value, order="C")
    if array.dtype.kind not in "fiub":
        raise ValueError(f"observation {key!r} is {array.dtype}; it must be an array of numbers.")
    return np.asarray(array, array.dtype.newbyteorder("="), order="C")


def _sentence(body: bytes, status: int) -> str:
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return f"the server answered with status {status}."
