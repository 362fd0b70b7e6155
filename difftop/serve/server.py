"""`mode=serve`: answers until Ctrl-C; see `difftop.serve` for what is asked and answered."""

from __future__ import annotations

import json
import logging
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, current_thread, main_thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from difftop.key_values import parsed
from difftop.options import ConfigError, build
from difftop.policy import Policy, load_policy
from difftop.run.serve_options import ServeConfig
from difftop.serve.client import TYPE
from difftop.serve.latency import Latency

log = logging.getLogger(__name__)

_LARGEST = 2**28  # bytes of an observation: some hundred rows of several cameras
_IDLE_S = 3600.0  # after which a silent connection is closed, so that robots that vanished don't gather
_JSON = "application/json"


def serve_command(arguments: Sequence[str]) -> None:
    """Serves until Ctrl-C or SIGTERM, then says how long actions took.

    Raises:
        ConfigError: an unknown option, or the port is taken.
        CheckpointError: there is no checkpoint.
    """
    config = build(ServeConfig, parsed(arguments))
    if not config.checkpoint:
        raise ConfigError("mode=serve needs checkpoint=RUN, a run folder or a checkpoint of it.")
    policy = load_policy(config.checkpoint, config.device, seed=config.seed, head=config.head or None)
    try:
        server = PolicyServer(policy, config.host, config.port)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"host={config.host} port={config.port}: can't be listened on ({error}); take another port, or 0 for a free one."
        ) from error
    if current_thread() is main_thread():  # SIGINT too: a shell that starts it in the background ignores it
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)
    with server:
        try:
            warm_up(policy)
            log.info("%s, %d steps: serving on %s", config.checkpoint, policy.steps, "{}:{}".format(*server.server_address[:2]))
            log.info("looks at %s; Ctrl-C ends", policy.spec.shapes)
            server.serve_forever()
        except KeyboardInterrupt:
            log.info("ended; %s", server.latency.text())


def warm_up(policy: Policy) -> None:
    """Acts once, by a memory that is thrown away: the first action of a process makes planners and buffers."""
    types = {"image": np.uint8}
    policy.fresh().act({key: np.zeros(seen.shape, types.get(seen.kind, np.float32)) for key, seen in policy.spec.obs.items()})


class PolicyServer(ThreadingHTTPServer):
    """A thread for each connection, one action at a time.

    Attributes:
        policy: whose weights all connections share.
        latency: of all actions.
    """

    daemon_threads, block_on_close = True, False  # a client that is silent doesn't hold up the end
    allow_reuse_address = True

    def __init__(self, policy: Policy, host: str, port: int) -> None:
        """Binds; raises OSError where it can't."""
        self.policy, self.latency, self.acting = policy, Latency(), Lock()
        super().__init__((host, port), _Connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Of one connection; the others go on."""
        log.warning("%s: the connection broke", client_address[0], exc_info=log.isEnabledFor(logging.DEBUG))


class _Mistake(ValueError):
    """Of the sender."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class _Connection(BaseHTTPRequestHandler):
    """One robot's connection, with a policy of its own memory."""

    server: PolicyServer
    protocol_version = "HTTP/1.1"  # which keeps connections open
    disable_nagle_algorithm = True  # a small answer would wait for an acknowledgement, 40 ms
    wbufsize = -1  # head and body in one packet
    timeout = _IDLE_S

    def setup(self) -> None:
        """Begins with a memory of its own."""
        super().setup()
        self._policy = self.server.policy.fresh()

    def do_GET(self) -> None:
        """What the policy is, and how fast."""
        self._answered({"/spec": self._spec, "/latency": self._latency})

    def do_POST(self) -> None:
        """Actions and resets."""
        self._answered({"/act": self._act, "/reset": self._reset})

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a line per action would be too many."""

    def _answered(self, known: Mapping[str, Callable[[bytes], tuple[str, bytes]]]) -> None:
        """Answers the request; every mistake is one sentence, and the connection goes on where it can."""
        status, kind = 200, _JSON
        try:
            path = urlsplit(self.path).path
            body = self._body()
            if path not in known:
                raise _Mistake(f"{self.command} {path}: must be {' or '.join(known)}.", 404)
            kind, answer = known[path](body)
        except _Mistake as error:
            status, answer = error.status, _json({"error": str(error)})
        except Exception as error:  # of an agent; the server outlives it
            log.warning("%s: %s: %s", self.path, type(error).__name__, error)
            status, answer = 500, _json({"error": f"the policy failed: {type(error).__name__}: {error}"})
        try:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)
            self.wfile.flush()
        except OSError:  # the client is gone
            self.close_connection = True

    def _body(self) -> bytes:
        given = self.headers.get("Content-Length", "0")
        if not given.isdecimal() or "Transfer-Encoding" in self.headers:
            self.close_connection = True  # where the next request begins isn't known
            raise _Mistake(f"Content-Length={given}: must be the number of bytes.")
        size = int(given)
        if size > _LARGEST:
            self.close_connection = True
            raise _Mistake(f"{size:,} bytes: an observation has at most {_LARGEST:,}; send fewer rows.", 413)
        body = self.rfile.read(size)
        if len(body) < size:
            raise ConnectionError("cut off")
        return body

    def _act(self, body: bytes) -> tuple[str, bytes]:
        begun = time.perf_counter()
        try:
            obs = load(body)
        except (SafetensorError, KeyError, ValueError, TypeError) as error:
            raise _Mistake(f"/act: the observation is not in safetensors ({error}).") from error
        for key, seen in self._policy.spec.obs.items():
            if seen.kind == "image" and key in obs and obs[key].dtype != np.uint8:
                raise _Mistake(f"observation {key!r} is {obs[key].dtype}; images must be uint8, channels first.")
            if key in obs and obs[key].ndim > len(seen.shape) and not len(obs[key]):
                raise _Mistake(f"observation {key!r} has no rows; send at least one.")
        try:
            with self.server.acting:
                action = self._policy.act(obs)
        except ValueError as error:
            raise _Mistake(str(error)) from error
        answer = save({"action": np.ascontiguousarray(action)})
        self.server.latency.add(time.perf_counter() - begun)
        return TYPE, answer

    def _reset(self, _: bytes) -> tuple[str, bytes]:
        given = parse_qs(urlsplit(self.path).query).get("index", [""])[0]
        if given and not given.isdecimal():
            raise _Mistake(f"/reset?index={given}: must be the number of a row.")
        try:
            self._policy.reset(int(given) if given else None)
        except IndexError as error:
            raise _Mistake(f"/reset?index={given}: there are not so many rows; act first.") from error
        return _JSON, _json({})

    def _spec(self, _: bytes) -> tuple[str, bytes]:
        return _JSON, _json(self._policy.spec.plain())

    def _latency(self, _: bytes) -> tuple[str, bytes]:
        return _JSON, _json(self.server.latency.summary())


def _json(values: Any) -> bytes:
    return json.dumps(values).encode()
