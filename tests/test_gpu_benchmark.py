"""benchmarks/gpu.py where there is no GPU: what it says, what it saves, and its items at their smallest."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.autograd import DeviceType

from benchmarks import gpu
from difftop.command import make_registry
from difftop.run.cli import composed

ON_CPU = ["--device", "cpu", "--quick"]


def test_without_a_gpu_it_says_so_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--json", str(tmp_path / "gpu.json")]) == 1
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and "torch sees no CUDA device here" in said.err
    assert not (tmp_path / "gpu.json").exists()


def test_it_goes_on_with_the_items_that_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[str] = []

    def item(name: str, fails: int = 0) -> gpu.Item:
        def run(machine: gpu.Machine) -> gpu.Measures:
            ran.append(name)
            if ran.count(name) <= fails:
                raise RuntimeError("out of memory\nand more")
            return {"steps_per_s": 50.0}

        return gpu.Item(name, run, (gpu.Bar("steps_per_s", 40, least=True),))

    chosen = [item("one"), item("two", fails=1), item("three")]
    monkeypatch.setattr(gpu, "items", lambda: chosen)
    options = [*ON_CPU, "--json", str(tmp_path / "gpu.json")]
    assert gpu.main([*options, "--only", "t"]) == 1 and ran == ["two", "three"]
    assert "not measured: RuntimeError: out of memory\n" in capsys.readouterr().out
    assert gpu.main([*options, "--minutes", "0"]) == 1 and ran == ["two", "three"]
    assert "left for the same command again: one; two" in capsys.readouterr().out
    assert gpu.main(options) == 0 and ran == ["two", "three", "one", "two"]
    assert "two: steps_per_s 50.00, bar at least 40: met" in capsys.readouterr().out
    saved = json.loads((tmp_path / "gpu.json").read_text())
    assert saved["items"] == {name: {"steps_per_s": 50.0} for name in ("one", "two", "three")}
    (tmp_path / "gpu.json").write_text(json.dumps({**saved, "machine": {"card": "another"}}))
    assert gpu.main(options) == 0 and len(ran) == 7


def test_kernels_are_counted_and_what_a_program_names_is_not() -> None:
    def event(name: str, kind: DeviceType, us: float = 0.0, named: bool = False) -> Any:
        return SimpleNamespace(
            name=name, device_type=kind, is_user_annotation=named, time_range=SimpleNamespace(elapsed_us=lambda: us)
        )

    cuda, cpu = DeviceType.CUDA, DeviceType.CPU
    events = [event("gemm", cuda, 1500.0), event("Optimizer.step#Adam.step", cuda, 9000.0), event("update", cuda, 9000.0, True)]
    events += [event("add", cuda, 500.0), event("cudaStreamSynchronize", cpu), event("aten::_local_scalar_dense", cpu)] * 2
    assert gpu.of_profile(events, 2) == {"busy_ms": 1.25, "kernels": 1.5, "reads": 1.0, "synchronizations": 1.0}


@pytest.mark.parametrize("quick", [False, True])
def test_every_run_of_it_is_a_command_line_that_composes(quick: bool) -> None:
    runs = [item.run for item in gpu.items() if isinstance(item.run, gpu.Training)]
    assert len(runs) == 3
    for run in runs:
        settings = composed(make_registry(), run.options(gpu.Machine("cuda", quick)))
        assert settings.top.capture == run.capture and settings.run.eval_every == 100_000_000


def test_a_rate_leaves_out_the_episodes_that_catch_up(tmp_path: Path) -> None:
    rows = [{"step": str(1000 * i), "wall_s": str(wall)} for i, wall in enumerate((1, 2, 99, 100, 102, 104))]
    assert gpu.rate(rows, tmp_path) == pytest.approx(500.0)
    (tmp_path / "log.txt").write_text("agent=nothing: unknown agent.")
    with pytest.raises(RuntimeError, match=r"too few episodes to tell a rate \(0\): agent=nothing: unknown agent"):
        gpu.rate([], tmp_path / "log.txt")


def test_an_update_and_an_action_run_at_their_smallest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "gpu.json"
    assert gpu.main([*ON_CPU, "--json", str(path), "--only", "tdmpc, 512"]) == 0
    found = json.loads(path.read_text())["items"]["update tdmpc, 512"]
    assert found["eager_wall_ms"] > 0 and found["eager_kernels"] == 0 and "captured_wall_ms" not in found
    assert "update tdmpc, 512" in capsys.readouterr().out
    assert gpu.Case("difftop_rl", batch=1, act=True)(gpu.Machine("cpu", True))["eager_wall_ms"] > 0


@pytest.mark.slow
def test_every_item_runs_at_its_smallest(tmp_path: Path) -> None:
    assert gpu.main([*ON_CPU, "--json", str(tmp_path / "gpu.json"), "--minutes", "30"]) == 0
    found = json.loads((tmp_path / "gpu.json").read_text())["items"]
    assert found.keys() == {item.name for item in gpu.items()} and not any("error" in values for values in found.values())
