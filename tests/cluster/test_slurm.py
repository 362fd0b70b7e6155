"""A sweep on Slurm: jobs that are cancelled, preempted or out of time end as if nothing had happened."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.one_node_slurm import Slurm, missing, one_node
from tests.cluster.small import assert_ended_alike, command, folder, never_stopped, started, trainer, wait_until
from tests.run.test_session import ROOT, rows

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing()), reason=f"Slurm: not here: {missing()}; `make slurm`")]
SEEDS = (1, 2, 3)


@pytest.fixture
def slurm() -> Iterator[Slurm]:
    """A node with room for one job of each seed."""
    with one_node(cpus=len(SEEDS)) as cluster:
        yield cluster


def held_still(root: Path, log: Path, launcher: subprocess.Popen[bytes]) -> dict[int, int]:
    """Waits until every run of the sweep has saved something, and stops its process there: none can end before what is to
    happen to it has happened. Returns the processes by seed."""
    stopped: dict[int, int] = {}

    def all_saved() -> bool:
        for seed in set(SEEDS) - set(stopped):
            if (folder(root, seed) / "checkpoints" / "step_000000025").exists():
                stopped[seed] = trainer(folder(root, seed))
                os.kill(stopped[seed], signal.SIGSTOP)
        return len(stopped) == len(SEEDS)

    wait_until(all_saved, log, launcher)
    return stopped


def frames(root: Path, seed: int) -> int:
    """How far a run is in its table."""
    return int(rows(folder(root, seed) / "metrics.csv")[-1]["step"])


def stopped_in_three_ways(
    slurm: Slurm, processes: dict[int, int], log: Path, launcher: subprocess.Popen[bytes]
) -> dict[str, int]:
    """One job is preempted by a more important one, one cancelled, one told that its time is up; returns their seeds."""
    seed_of = {job: SEEDS[int(job.rpartition("_")[2])] for job in slurm.states()}
    assert sorted(seed_of.values()) == list(SEEDS)
    more_important = slurm.say("sbatch", "--parsable", "--partition=high", "--output=/dev/null", "--wrap=sleep 600").strip()
    wait_until(lambda: slurm.states().get(more_important) == "RUNNING", log, launcher)
    (preempted,) = (job for job in seed_of if slurm.states()[job] != "RUNNING")
    cancelled, out_of_time = sorted(set(seed_of) - {preempted})
    slurm.say("scancel", cancelled)
    slurm.say("scancel", "--signal=USR2", out_of_time)  # submitit's, some time before a job's limit: it requeues the job
    os.kill(processes[seed_of[out_of_time]], signal.SIGCONT)
    slurm.say("scancel", more_important)
    return {"preempted": seed_of[preempted], "cancelled": seed_of[cancelled], "out of time": seed_of[out_of_time]}


def test_jobs_that_slurm_stops_are_completed_by_the_same_command(slurm: Slurm, tmp_path: Path) -> None:
    root, log = tmp_path / "runs", tmp_path / "log"
    sweep = ["-m", f"seed={','.join(map(str, SEEDS))}", "hydra/launcher=submitit_slurm", "hydra.launcher.partition=low"]
    sweep += ["hydra.launcher.timeout_min=30", "hydra.launcher.cpus_per_task=1", f"hydra.sweep.dir={tmp_path / 'jobs'}"]
    line = command(root, *sweep)
    with started(line, log, slurm.environment) as launcher:
        seeds = stopped_in_three_ways(slurm, held_still(root, log, launcher), log, launcher)
        wait_until(lambda: not slurm.states(), log, launcher)
        assert launcher.poll() is None  # without accounting (sacct), submitit isn't told that a job was cancelled, and waits
    assert [frames(root, seeds[how]) for how in ("preempted", "out of time")] == [200, 200]
    assert frames(root, seeds["cancelled"]) < 200

    again = subprocess.run(line, cwd=ROOT, env=slurm.environment, capture_output=True, text=True, timeout=900)
    assert again.returncode == 0, again.stderr
    for seed in SEEDS:
        assert_ended_alike(folder(root, seed), never_stopped(tmp_path / "whole", seed))
