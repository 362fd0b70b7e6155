"""`difftop.capture` with a tape in place of CUDA graphs, and with a fake `torch.cuda`."""

from __future__ import annotations

import logging
import re
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from difftop.capture import CaptureError, CudaBackend, Graphs
from difftop.options import ConfigError
from tests.tape import Tape, TapeBackend

CPU = torch.device("cpu")


class Counted:
    """Something to capture that draws, adds up, and counts how often Python ran it."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.total, self.calls = torch.zeros(3), 0

    def __call__(self, x: Tensor, factor: Tensor | float, more: Tensor | None) -> dict[str, Any]:
        self.calls += 1
        drawn = torch.rand(x.shape, generator=self.generator)
        self.total += (factor * x + drawn).sum(0) if more is None else more
        return {"drawn": drawn, "both": (self.total, None), "total": self.total.view(1, 3)}


def graphs(function: Counted, mode: str = "auto", **more: Any) -> Graphs:
    return Graphs(CPU, mode, generators=[function.generator], **{"backend": TapeBackend(), **more})


def test_replays_are_the_calls() -> None:
    captured, eager = Counted(), Counted()
    run = graphs(captured)
    kept = []
    for call in range(7):
        x = torch.full((2, 3), float(call))
        kept.append(run("it", captured, [x, float(call), None]))
        expected = eager(x, float(call), None)
        assert torch.equal(kept[-1]["drawn"], expected["drawn"])
        assert torch.equal(kept[-1]["both"][0], eager.total) and kept[-1]["both"][1] is None
    assert captured.calls == 3 and run.captured == 1  # two eager ones, and the one that was recorded
    assert torch.equal(captured.total, eager.total)
    assert not torch.equal(kept[-1]["drawn"], kept[-2]["drawn"])  # outputs are copies
    assert kept[-1]["total"].data_ptr() != captured.total.data_ptr()


def test_other_shapes_types_and_variants_are_captured_anew() -> None:
    function = Counted()
    run = graphs(function)
    inputs: list[tuple[list[Any], Any]] = [
        ([torch.zeros(2, 3), 1.0, None], 0),
        ([torch.zeros(4, 3), 1.0, None], 0),
        ([torch.zeros(2, 3, dtype=torch.float64), 1.0, None], 0),
        ([torch.zeros(2, 3), 1.0, torch.zeros(3)], 0),
        ([torch.zeros(2, 3), 1.0, None], 1),
    ]
    for given, variant in inputs * 4:
        run("it", function, given, variant)
    assert run.captured == len(inputs)
    run.clear()
    for _ in range(3):
        run("it", function, *inputs[0])
    assert run.captured == len(inputs) + 1


def test_shapes_that_no_longer_come_are_forgotten() -> None:
    function = Counted()
    run = graphs(function)
    for size in range(1, 40):
        for _ in range(3):
            run("it", function, [torch.zeros(size, 3), 1.0, None])
    assert run.captured == 39 and len(run._recorded) == 24
    run("it", function, [torch.zeros(39, 3), 1.0, None])
    assert run.captured == 39


def test_without_a_capture_the_function_is_called_as_it_is() -> None:
    run, x = Graphs(CPU, "false"), torch.zeros(3)
    assert not run.active
    seen = []
    for _ in range(4):
        run("it", lambda *inputs: seen.append(inputs), [x, 2.0, None])
    assert all(inputs[0] is x and inputs[1] == 2.0 and isinstance(inputs[1], float) for inputs in seen) and len(seen) == 4


def test_a_capture_that_fails_is_told_once_and_costs_no_call(caplog: pytest.LogCaptureFixture) -> None:
    function, eager = Counted(), Counted()
    weight = torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.Adam([weight], fused=True)
    run = graphs(function, backend=TapeBackend(fails=True), optimizers=[optimizer])

    def training(*inputs: Any) -> Any:
        assert optimizer.param_groups[0]["capturable"] is (function.calls == 2)
        (weight * 2).sum().backward()
        out = function(*inputs)
        if function.calls != 3:  # the recorded one fails before it gets here
            optimizer.zero_grad(set_to_none=True)
        return out

    other = run.sharing([function.generator])
    with caplog.at_level(logging.WARNING):
        for call in range(6):
            got = (other if call == 5 else run)("an update", training, [torch.ones(2, 3), 1.0, None])
            assert torch.equal(got["drawn"], eager(torch.ones(2, 3), 1.0, None)["drawn"])
            assert weight.grad is None
    assert torch.equal(function.total, eager.total) and run.captured == 0
    told = [re.sub(r"line \d+", "line N", record.getMessage()) for record in caplog.records]
    assert told == [
        "capture=auto: an update can't be captured as a CUDA graph (tape.py, line N: operation not permitted when stream is "
        "capturing), and runs without one."
    ]
    assert other.active and other.mode == "auto"


def test_capture_true_says_what_and_where() -> None:
    function = Counted()
    run = graphs(function, "true", backend=TapeBackend(fails=True))
    for _ in range(2):
        run("a plan", function, [torch.ones(2, 3), 1.0, None])
    with pytest.raises(CaptureError, match=r"^capture=true: a plan can't be captured as a CUDA graph \(tape.py, line \d+: "):
        run("a plan", function, [torch.ones(2, 3), 1.0, None])
    with pytest.raises(ConfigError, match="capture=true: CUDA graphs need device=cuda, and this is device=cpu"):
        Graphs(CPU, "true")
    with pytest.raises(ConfigError, match=r"capture=yes: must be auto \| true \| false"):
        Graphs(CPU, "yes")


class FakeCuda:
    """What of `torch.cuda` the backend calls, in order; `graph` records on a tape, and fails as the real one does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.told: list[str] = []
        self.stream_now = "default"
        for name in ("stream", "graph", "Stream", "CUDAGraph", "current_stream", "graph_pool_handle", "synchronize"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", lambda *_: self.told.append("pool ended"), raising=False)
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: self.told.append("pinned") or x)

    def Stream(self, device: Any) -> Any:
        return SimpleNamespace(wait_stream=lambda other: self.told.append("side waits"), name="side")

    def current_stream(self, device: Any) -> Any:
        return SimpleNamespace(wait_stream=lambda other: self.told.append("current waits"), name=self.stream_now)

    @contextmanager
    def stream(self, stream: Any) -> Any:
        before, self.stream_now = self.stream_now, stream.name
        try:
            yield
        finally:
            self.stream_now = before

    def graph_pool_handle(self) -> str:
        self.told.append("pool")
        return f"pool {self.told.count('pool')}"

    def synchronize(self, device: Any) -> None:
        self.told.append("synchronize")

    def CUDAGraph(self) -> Any:
        graph = SimpleNamespace(generators=[], tape=Tape())
        graph.register_generator_state = graph.generators.append
        graph.replay = graph.tape.replay
        return graph

    @contextmanager
    def graph(self, graph: Any, pool: Any, stream: Any) -> Any:
        self.told.append(f"captures in {pool}")
        states = [generator.get_state() for generator in graph.generators]
        self.stream_now = stream.name
        try:
            with graph.tape:
                yield
        except RuntimeError as error:  # the real one's end raises again, before it restores the stream
            raise RuntimeError("operation failed due to a previous error during capture") from error
        finally:
            graph.tape.undo()
            for generator, state in zip(graph.generators, states, strict=True):
                generator.set_state(state)
        self.stream_now = "default"


def test_the_cuda_backend_feeds_warms_captures_and_replays(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, function, eager = FakeCuda(monkeypatch), Counted(), Counted()
    run = graphs(function, backend=CudaBackend(CPU))
    for call in range(5):
        x = torch.full((2, 3), float(call))
        got = run("it", function, [x, float(call), None])
        assert torch.equal(got["drawn"], eager(x, float(call), None)["drawn"])
    assert torch.equal(function.total, eager.total) and function.calls == 3
    assert cuda.told.count("pinned") == 5 and cuda.stream_now == "default"
    assert cuda.told[:4] == ["pool", "pinned", "side waits", "current waits"] and cuda.told.count("captures in pool 1") == 1


def test_the_cuda_backend_clears_up_after_a_failure(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    cuda, function = FakeCuda(monkeypatch), Counted()
    run = graphs(function, backend=CudaBackend(CPU))

    def waits(*inputs: Any) -> Any:
        if function.calls == 2:
            raise RuntimeError("a number was read on the host")
        return function(*inputs)

    for _ in range(2):
        run("it", waits, [torch.ones(2, 3), 1.0, None])
    with caplog.at_level(logging.WARNING), pytest.raises(RuntimeError, match="read on the host"):
        run("it", waits, [torch.ones(2, 3), 1.0, None])  # eagerly it fails too
    assert "test_graphs.py" in caplog.text and "a number was read on the host" in caplog.text
    assert cuda.stream_now == "default" and run.captured == 0
    assert "pool ended" in cuda.told and cuda.told[-1] == "captures in None"  # the capture that ends the generators' own
    function.calls = 0
    before = function.total.clone()
    run("it", waits, [torch.ones(2, 3), 1.0, None])
    assert not torch.equal(function.total, before)
