"""Training in several processes: what they share, and that together they do what one does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from difftop.data.files import open_demonstrations
from difftop.run.checkpoint import Checkpoint, load_checkpoint
from difftop.run.offline import Batches
from difftop.run.online import RunError
from difftop.run.workers import Workers, joined
from envs import EnvConfig, record
from tests.run.test_imitate import SMALL

ROOT = Path(__file__).resolve().parents[2]
PLAIN = ["agent=bc", "agent.window=1", "agent.horizon=1", "agent.distribution=deterministic", "agent.hidden_dims=[16]"]
SIZES = [option for option in SMALL if not option.startswith("agent")]


def launched(home: Path, *overrides: str, workers: int = 2) -> subprocess.CompletedProcess[str]:
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={workers}"] if workers > 1 else []
    options = [*PLAIN, *SIZES, f"root={home / 'runs'}", f"data={home / 'data'}", *overrides]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *start, "train.py", *options], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )


def ended(home: Path, *overrides: str, workers: int = 2) -> Checkpoint:
    done = launched(home, *overrides, workers=workers)
    assert done.returncode == 0, done.stderr
    return load_checkpoint(next((home / "runs").glob("*/bc/*/seed1")))


def test_one_process_is_alone() -> None:
    with joined("cpu") as workers:
        assert workers == Workers() and workers.leads
        x = torch.ones(3)
        workers.mean_([x])
        assert torch.equal(x, torch.ones(3)) and workers.any(True) and not workers.any(False)
        assert workers.told("same") == "same" and workers.lead_first(lambda: 7) == 7


def test_a_batch_is_shared_without_rest(tmp_path: Path) -> None:
    windows = open_demonstrations(record(EnvConfig(name="toy/reach", obs="low_dim"), 4, seed=0, folder=tmp_path)).windows(2, 2)
    whole = Batches(windows, 6, seed=3)
    parts = [Batches(windows, 6, seed=3, workers=Workers(rank, 3)) for rank in range(3)]
    for number in range(2 * whole.per_epoch):
        shares = [part.batch(number).actions for part in parts]
        assert torch.equal(torch.stack(shares, 1).flatten(0, 1), whole.batch(number).actions)
    with pytest.raises(RunError, match="4 workers can't share batches of 6 windows"):
        Batches(windows, 6, seed=3, workers=Workers(0, 4))


@pytest.mark.slow
def test_two_workers_do_what_one_does_and_go_on_after_a_stop(tmp_path: Path) -> None:
    one = ended(tmp_path / "one", workers=1)
    two = ended(tmp_path / "two")
    assert one.model.keys() == two.model.keys()
    for key, tensor in one.model.items():
        torch.testing.assert_close(two.model[key], tensor, rtol=1e-3, atol=1e-5)
    ended(tmp_path / "parts", "run.grad_steps=20")
    parts = ended(tmp_path / "parts")
    assert all(torch.equal(parts.model[key], tensor) for key, tensor in two.model.items())
    assert (tmp_path / "two/runs/toy-reach/bc/default/seed1/evaluation/summary.json").is_file()


@pytest.mark.slow
def test_mistakes_under_torchrun(tmp_path: Path) -> None:
    uneven = launched(tmp_path, "run.batch_size=15")
    assert uneven.returncode != 0 and "2 workers can't share batches of 15 windows" in uneven.stderr
    online = launched(tmp_path, "mode=demos")
    assert online.returncode != 0 and "torchrun trains imitation agents only" in online.stderr
