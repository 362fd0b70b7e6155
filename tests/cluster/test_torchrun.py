"""Two nodes that train together, by loopback: one is lost, and comes back."""

from __future__ import annotations

import os
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from subprocess import Popen

import pytest
import torch

from difftop.run.checkpoint import load_checkpoint
from tests.cluster.small import free_port, kill_all, started, wait_until
from tests.run.test_workers import PLAIN, SIZES

pytestmark = pytest.mark.slow
STEPS = 600
OWN = {
    "run.grad_steps": STEPS,
    "run.eval_every": STEPS,
    "run.checkpoint_every": 100,
    "run.select_episodes": 1,
    "run.eval_episodes": 1,
}
OPTIONS = [*(text for text in SIZES if text.partition("=")[0] not in OWN), *(f"{key}={value}" for key, value in OWN.items())]


def run_folder(home: Path) -> Path:
    return home / "runs" / "toy-reach" / "bc" / "default" / "seed1"


def line(home: Path, *launcher: str) -> list[str]:
    options = [*PLAIN, *OPTIONS, f"root={home / 'runs'}", f"data={home / 'data'}"]
    return [sys.executable, "-m", "torch.distributed.run", *launcher, "train.py", *options]


def node(home: Path, port: int, rank: int, restarts: int) -> AbstractContextManager[Popen[bytes]]:
    """One of two nodes, with one worker; what it says is in `node<rank>.log`."""
    launcher = ["--nnodes=2", f"--node_rank={rank}", "--nproc_per_node=1", f"--max_restarts={restarts}", "--local_addr=127.0.0.1"]
    launcher += ["--rdzv_backend=c10d", f"--rdzv_endpoint=127.0.0.1:{port}", f"--rdzv_conf=is_host={int(rank == 0)}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    if restarts:  # else torchrun 2.13 tells no node that joins later where the first one is
        environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    return started(line(home, *launcher), home / f"node{rank}.log", environment)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two workers that went through."""
    home = tmp_path_factory.mktemp("whole")
    with started(line(home, "--standalone", "--nproc_per_node=2"), home / "log", os.environ | {"OMP_NUM_THREADS": "1"}) as both:
        assert both.wait(timeout=900) == 0, (home / "log").read_text()
    return run_folder(home)


@pytest.mark.parametrize("restarts", [0, 2])
def test_a_run_of_two_nodes_goes_on_when_one_was_lost(whole: Path, tmp_path: Path, restarts: int) -> None:
    """Without restarts by the same command on both nodes; with them, the other node waits for the lost one."""
    port, folder, log = free_port(), run_folder(tmp_path), tmp_path / "node0.log"
    with node(tmp_path, port, 0, restarts) as one:
        with node(tmp_path, port, 1, restarts) as other:
            wait_until((folder / "checkpoints" / "step_000000100").exists, log, one)
            kill_all(other)
        wait_until(lambda: "another worker of this run is gone" in log.read_text(), log)
        assert load_checkpoint(folder).step < STEPS
        if restarts:
            with node(tmp_path, port, 1, restarts) as other:
                assert one.wait(timeout=900) == 0 == other.wait(timeout=900), log.read_text()
        else:
            assert one.wait(timeout=600) != 0
    if not restarts:
        port = free_port()
        with node(tmp_path, port, 0, 0) as one, node(tmp_path, port, 1, 0) as other:
            assert one.wait(timeout=900) == 0 == other.wait(timeout=900), log.read_text()

    assert "continues at" in log.read_text()
    ended, expected = load_checkpoint(folder), load_checkpoint(whole)
    assert ended.step == expected.step == STEPS
    assert all(torch.equal(ended.model[key], tensor) for key, tensor in expected.model.items())
