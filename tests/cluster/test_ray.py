"""A sweep on a Ray cluster of two nodes, by loopback: a job whose worker is killed ends as if nothing had happened."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path

import pytest

from difftop.compare.config import StatusConfig
from difftop.compare.sweep import sweep_status
from tests.cluster.small import assert_ended_alike, command, folder, free_port, never_stopped, started, trainer, wait_until
from tests.run.test_session import ROOT

HERE = find_spec("ray") is not None and find_spec("hydra_plugins.hydra_ray_launcher") is not None
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not HERE, reason="Ray: hydra-ray-launcher is not installed; `make ray`")]
SEEDS = range(1, 13)
KILLED = 2  # of the seeds


class Cluster:
    """A head and a second node on this machine, each with one CPU and a loopback address of its own."""

    def __init__(self, home: Path) -> None:
        self.home, self.log, self.port = home, home / "ray.log", free_port()
        self.address = f"127.0.0.2:{self.port}"  # Ray takes 127.0.0.1 for the machine's other address
        token = home / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        self.environment = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_DEDUP_LOGS": "0"}

    def node(self, head: bool) -> AbstractContextManager[subprocess.Popen[bytes]]:
        """A node, for as long as the context lasts; what it says is in `ray.log`."""
        line = [sys.executable, "-c", "from ray.scripts.scripts import main; main()", "start", "--block", "--num-cpus=1"]
        line += ["--object-store-memory=80000000", "--disable-usage-stats"]
        own = [
            "--head",
            f"--port={self.port}",
            "--node-ip-address=127.0.0.2",
            "--include-dashboard=false",
            f"--temp-dir={self.home}",
        ]
        other = [f"--address={self.address}", "--node-ip-address=127.0.0.3"]
        return started([*line, *(own if head else other)], self.log, self.environment)

    def wait_for(self, nodes: int, process: subprocess.Popen[bytes]) -> None:
        """Until so many nodes have started."""
        wait_until(lambda: self.log.read_text().count("Ray runtime started") == nodes, self.log, process)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Two nodes that know each other."""
    home = Path(tempfile.mkdtemp(prefix="ray-"))  # sockets are in it: their paths have at most 107 letters
    both = Cluster(home)
    try:
        with both.node(head=True) as head:
            both.wait_for(1, head)
            with both.node(head=False) as other:
                both.wait_for(2, other)
                yield both
    finally:
        shutil.rmtree(home, ignore_errors=True)


def test_twelve_jobs_of_which_one_loses_its_worker(cluster: Cluster, tmp_path: Path) -> None:
    root, log = tmp_path / "runs", tmp_path / "log"
    sweep = ["-m", f"seed={','.join(map(str, SEEDS))}", "run.frames=100", f"hydra.sweep.dir={tmp_path / 'jobs'}"]
    sweep += ["hydra/launcher=ray_cluster", f"hydra.launcher.ray.init.address={cluster.address}"]
    with started(command(root, *sweep), log, cluster.environment) as launcher:
        wait_until((folder(root, KILLED) / "checkpoints" / "step_000000025").exists, log, launcher)
        os.kill(trainer(folder(root, KILLED)), signal.SIGKILL)
        assert launcher.wait(timeout=900) == 0, log.read_text()
    said = log.read_text()
    assert f"continues at 25 of 100 frames in {folder(root, KILLED)}" in said
    status = sweep_status(StatusConfig(str(root)))
    assert [(run.seed, run.state) for run in status] == [(seed, "finished") for seed in SEEDS]
    assert_ended_alike(folder(root, KILLED), never_stopped(tmp_path / "whole", KILLED, "run.frames=100"))


def test_the_launcher_s_options_have_names() -> None:
    """Of the plugin's own group, `hydra/launcher=ray`, hydra refuses them."""
    options = ["hydra/launcher=ray_cluster", "hydra.launcher.ray.init.num_cpus=2", "hydra.launcher.ray.remote.num_gpus=0.25"]
    line = [sys.executable, "train.py", "--cfg", "hydra", "--package", "hydra.launcher", *options]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "num_cpus: 2" in done.stdout and "num_gpus: 0.25" in done.stdout, done.stderr
