"""A policy over a socket acts bit for bit as in the process, and outlives mistakes and clients."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import difftop
from difftop.options import ConfigError
from difftop.run.checkpoint import CheckpointError
from difftop.serve import Client, ServeError
from difftop.serve.latency import Latency
from difftop.serve.server import serve_command
from difftop.types import EnvSpec, ObsSpec
from tests.test_policy import SIZES, STATE, VECTORS, saved

ROOT = Path(__file__).resolve().parents[1]
SEEN = EnvSpec("test/seen", {"position": ObsSpec("vector", (3,)), "eye_image": ObsSpec("image", (3, 48, 48))}, 2, 25, 0.05)


class Served:
    """`mode=serve` in a process of its own, on a free port."""

    def __init__(self, checkpoint: Path) -> None:
        line = [sys.executable, "train.py", "mode=serve", f"checkpoint={checkpoint}", "port=0", "device=cpu"]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(line, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=env)
        assert self.process.stderr is not None
        self.said, port = "", None
        while port is None:
            said = self.process.stderr.readline()
            assert said, self.said
            self.said += said
            port = re.search(r"serving on 127\.0\.0\.1:(\d+)", said)
        self.port = int(port[1])

    def end(self, how: int = signal.SIGINT) -> str:
        if self.process.poll() is None:
            self.process.send_signal(how)
        self.said += self.process.communicate(timeout=60)[1]
        return self.said


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Served]]:
    """LeTO, whose memory matters."""
    folder = tmp_path_factory.mktemp("leto")
    saved(folder, "leto", VECTORS, **SIZES["leto"])
    server = Served(folder)
    yield folder, server
    server.end(signal.SIGKILL)


def observations(count: int, *lead: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [{"hand_pos": rng.normal(size=(*lead, 3)), "object": rng.normal(size=(*lead, 5))} for _ in range(count)]


def test_it_acts_bit_for_bit_as_in_the_process_also_after_resets_and_in_batches(served: tuple[Path, Served]) -> None:
    folder, server = served
    here = difftop.load_policy(folder, device="cpu")
    with Client("localhost", server.port) as there:
        assert there.spec == here.spec == VECTORS
        for obs in observations(6):
            np.testing.assert_array_equal(there.act(obs), here.act(obs))
        here.reset(), there.reset()
        for t, obs in enumerate(observations(6, 3)):
            if t == 3:
                here.reset(1), there.reset(1)
            found = there.act(obs)
            assert found.dtype == np.float32 and found.shape == (3, 4)
            np.testing.assert_array_equal(found, here.act(obs))
        found = there.latency()
        assert found["count"] >= 12 and 0 < found["median_ms"] <= found["p95_ms"]


def test_each_connection_remembers_for_itself(served: tuple[Path, Served]) -> None:
    folder, server = served
    here = difftop.load_policy(folder, device="cpu")
    expected = [here.act(obs) for obs in observations(4)]
    with Client("localhost", server.port) as first, Client("localhost", server.port) as second:
        for obs, action in zip(observations(4), expected, strict=True):
            np.testing.assert_array_equal(first.act(obs), action)
            np.testing.assert_array_equal(second.act(obs), action)


def test_mistakes_are_one_sentence_and_the_server_goes_on(served: tuple[Path, Served]) -> None:
    _, server = served
    (good,) = observations(1)
    with Client("localhost", server.port) as client:
        for bad, message in (
            ({"hand_pos": np.zeros(3)}, "observation 'object' is missing; the policy looks at"),
            (good | {"object": np.zeros(4)}, r"'object' has shape \[4\]: must be \[5\]"),
            (good | {"object": np.zeros((2, 5))}, "different numbers of rows"),
            ({"hand_pos": np.zeros((0, 3)), "object": np.zeros((0, 5))}, "has no rows"),
            (good | {"object": np.array(["a"] * 5)}, "must be an array of numbers"),
            (np.zeros(8), "give them by key"),
        ):
            with pytest.raises(ValueError, match=message) as caught:
                client.act(bad)
            assert "\n" not in str(caught.value)
            assert client.act(good).shape == (4,)
        with pytest.raises(ValueError, match="not so many rows"):
            client.reset(7)
        for method, path, body, message in (
            ("POST", "/act", b"what", "not in safetensors"),
            ("GET", "/nothing", b"", "must be /spec or /latency"),
            ("POST", "/reset?index=-1", b"", "must be the number of a row"),
        ):
            with pytest.raises(ValueError, match=message):
                client._asked(method, path, body)
        assert client.act(good).shape == (4,)


def test_clients_that_die_or_talk_nonsense_do_not_take_it_down(served: tuple[Path, Served]) -> None:
    _, server = served
    for sent in (b"", b"\x00\xff" * 50, b"POST /act HTTP/1.1\r\nContent-Length: 5000\r\n\r\nabc", b"GET /spec HTTP/1.1\r\n\r\n"):
        with socket.create_connection(("localhost", server.port)) as raw:
            raw.sendall(sent)
    with socket.create_connection(("localhost", server.port)) as raw:
        raw.sendall(b"POST /act HTTP/1.1\r\nContent-Length: 999999999999\r\n\r\n")
        answer = raw.recv(2000).decode()
    assert " 413 " in answer and "at most" in json.loads(answer.partition("\r\n\r\n")[2])["error"]
    with Client("localhost", server.port) as client:
        assert client.act(observations(1)[0]).shape == (4,)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_cleanly_and_says_how_long_actions_took(tmp_path: Path, request: pytest.FixtureRequest, how: int) -> None:
    saved(tmp_path, "bc", SEEN)
    server = Served(tmp_path)
    request.addfinalizer(server.process.kill)
    client = Client("127.0.0.1", server.port)
    request.addfinalizer(client.close)
    here = difftop.load_policy(tmp_path, device="cpu")
    rng = np.random.default_rng(0)
    obs = {"position": np.zeros((2, 3)), "eye_image": rng.integers(0, 256, (2, 3, 48, 48), dtype=np.uint8)}
    np.testing.assert_array_equal(client.act(obs), here.act(obs))
    with pytest.raises(ValueError, match="'eye_image' is float64; images must be uint8"):
        client.act(obs | {"eye_image": obs["eye_image"] / 255})
    said = server.end(how)  # the client is still connected
    assert server.process.returncode == 0, said
    assert re.search(r"1 actions: median [\d.]+ ms, 95th percentile [\d.]+ ms", said) and "Traceback" not in said
    with pytest.raises(ServeError, match="no answer"):
        client.act(obs)
    with pytest.raises(ServeError, match="make a new Client"):
        client.act(obs)
    with pytest.raises(ServeError, match="mode=serve"):
        Client("127.0.0.1", server.port)


def test_what_is_wrong_before_it_serves_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="mode=serve needs checkpoint=RUN"):
        serve_command(["mode=serve"])
    with pytest.raises(CheckpointError, match="no checkpoint"):
        serve_command(["mode=serve", f"checkpoint={tmp_path}"])
    with pytest.raises(ConfigError, match=r"prt: unknown option.*'port'"):
        serve_command(["mode=serve", "prt=1"])
    saved(tmp_path, "tdmpc", STATE, model={"mlp_dim": 16, "encoder_dim": 16, "latent_dim": 8}, acting={"planner": "none"})
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port={port}: can't be listened on"):
            serve_command(["mode=serve", f"checkpoint={tmp_path}", f"port={port}", "device=cpu"])


def test_the_client_needs_no_torch() -> None:
    code = "import sys, difftop.serve; print(sorted({'torch', 'hydra', 'omegaconf', 'gymnasium'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_latencies_are_percentiles() -> None:
    latency = Latency()
    assert latency.summary() == {"count": 0, "median_ms": 0.0, "p95_ms": 0.0}
    for ms in range(101):
        latency.add(ms / 1000)
    assert latency.summary() == pytest.approx({"count": 101, "median_ms": 50.0, "p95_ms": 95.0})
    assert latency.text() == "101 actions: median 50.00 ms, 95th percentile 95.00 ms"
