"""Tapes leave what their functions leave, to the bit; what can't be replayed is refused."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from difftop.capture import Graphs, TapeBackend, native
from difftop.capture.layout import laid_out
from difftop.capture.recorder import NotRecordedError, Recorder, memory, tensors
from difftop.capture.tape import Tape, Touched
from difftop.host import readable

CPU = torch.device("cpu")


class Training:
    """An update with all that makes one hard to replay: views, in-place shapes, lists, draws, constants, and state of its own."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.SiLU(), nn.Linear(8, 2))
        self.optimizer = torch.optim.AdamW(self.net.parameters(), fused=True)
        self.generator = torch.Generator().manual_seed(1)
        self.mean, self.x = torch.zeros(3), torch.randn(6, 3)

    def __call__(self) -> dict[str, Any]:
        noise = torch.randn(self.x.shape, generator=self.generator)
        order = torch.randperm(len(self.x), generator=self.generator)
        x = self.x.index_select(0, order) + 0.1 * noise
        self.mean.lerp_(x.mean(0), 0.1)
        count = torch.tensor(0.0)
        count += 2  # a constant of the host that is written to
        ends = torch.quantile(x.flatten(), torch.tensor([0.1, 0.9]))
        y = self.net(x - self.mean)
        y.unsqueeze_(0)
        rows = y.squeeze(0).t()[:, ::2]
        loss = (rows.square() * rows.new_full((), 2.0)).mean() + y.logsumexp(-1).mean() / count + 2 ** y.amin()
        loss = loss + torch.where(rows > ends[0], rows, 0.0).sum() + torch.cat([rows, rows], 1).cumsum(1).amax()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.net.parameters(), 1.0, foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {"loss": loss.detach(), "rows": rows.detach(), "some": (norm, None, self.mean, self.x[1:])}

    def state(self) -> list[Tensor]:
        """All that it changes."""
        kept = [x for values in self.optimizer.state.values() for x in values.values()]
        return [*self.net.state_dict().values(), *kept, self.mean, self.generator.get_state()]


def captured(function: Training, backend: TapeBackend) -> Callable[[], Any]:
    for _ in range(2):
        function()
    return backend.capture(function, [function.generator])


@pytest.fixture
def from_python() -> Iterator[None]:
    """No module is loaded, nor compiled; as before afterwards."""
    before = native._building, native._module
    native._building = native._module = None
    yield
    native._building, native._module = before


@pytest.fixture(params=["python", pytest.param("native", marks=pytest.mark.slow)])
def backend(request: pytest.FixtureRequest, from_python: None, monkeypatch: pytest.MonkeyPatch) -> TapeBackend:
    """With the calls made from Python, or from C++, which a minute is spent on to compile."""
    if request.param == "native":
        monkeypatch.setenv("DIFFTOP_NATIVE", "1")
        native.prepare()
        assert native.ready(600.0) is not None
    return TapeBackend()


def test_a_replay_is_the_call_to_the_bit(backend: TapeBackend) -> None:
    eager, taped = Training(), Training()
    replay = captured(taped, backend)
    for _ in range(2):
        eager()
    assert all(map(torch.equal, eager.state(), taped.state()))  # recording has run nothing
    for _ in range(5):
        wanted, found = eager(), replay()
        assert torch.equal(found["loss"], wanted["loss"]) and torch.equal(found["rows"], wanted["rows"])
        (norm, none, mean, view), others = found["some"], wanted["some"]
        assert torch.equal(norm, others[0]) and none is None and mean is taped.mean and torch.equal(view, others[3])
        assert all(map(torch.equal, eager.state(), taped.state()))
    with torch.no_grad():  # memory that was there before is read anew
        for function in (eager, taped):
            function.x.mul_(2)
    assert torch.equal(eager()["loss"], replay()["loss"])
    replay()
    taped()  # and the function itself goes on from what replays have left
    for _ in range(2):
        eager()
    assert all(map(torch.equal, eager.state(), taped.state()))


def test_results_share_memory_that_nobody_needs_any_more() -> None:
    function = Training()
    function()
    recorder = Recorder()
    outputs = recorder.record(function)
    calls, moved = laid_out(recorder, outputs)
    used = {memory(x) for call in calls for x in tensors(tuple(call[1:]))}
    before = {memory(x) for call in recorder.calls for x in tensors(tuple(call[1:]))} - recorder.made
    assert len(used - before) < 0.6 * len(recorder.made)
    assert not any(call.made for call in calls)  # every operator here has a variant that writes where it is told
    assert moved["some"][2] is outputs["some"][2]
    tape = Tape(calls, moved, Touched([], []))
    recorder.undo()
    loss = tape.replay()["loss"].clone()
    recorder.undo()
    assert not torch.equal(loss, tape.replay()["loss"])  # other noise
    assert loss.isfinite()


X = torch.tensor([1.0, -2.0, 3.0])
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "if": (lambda: X if X.sum() > 0 else -X, "a number is read on the host"),
    "item": (lambda: X * X[0].item(), "a number is read on the host by item"),
    "tolist": (lambda: X * X.tolist()[0], "a number is read on the host by tolist"),
    "numpy": (lambda: X * float(X.numpy()[0]), "a number is read on the host by numpy"),
    "allclose": (lambda: X * torch.equal(X, X), "a number is read on the host"),
    "nonzero": (lambda: (X > 0).nonzero(), "the shape of what nonzero gives depends on numbers"),
    "mask": (lambda: X[X > 0] * 2, "the shape of what index gives depends on numbers"),
    "split": (lambda: torch.tensor_split(X, torch.tensor([1]))[0], "a number is read on the host by tensor_split"),
    "dlpack": (lambda: torch.from_dlpack(X) * 2, "a number is read on the host by __dlpack__"),
    "data": (lambda: setattr(X.clone(), "data", X) or X, "a tensor gets other memory by data"),  # type: ignore[func-returns-value]
    "statistics": (
        lambda: nn.functional.batch_norm(X.view(3, 1), torch.zeros(1), torch.ones(1), training=True),
        "batch_norm writes to statistics",
    ),
    "conjugate": (lambda: (X + 0j).conj() * 2, "takes a conjugate"),
    "resize": (lambda: X.clone().resize_(2), "the shape of what resize_ gives depends on numbers"),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_what_depends_on_numbers_is_refused(case: str, caplog: pytest.LogCaptureFixture) -> None:
    function, why = REFUSED[case]
    wanted = function()
    with pytest.raises(NotRecordedError, match=why):
        TapeBackend().capture(function, [])
    graphs = Graphs(CPU, "auto")
    with caplog.at_level(logging.DEBUG, "difftop.capture"):
        for _ in range(TapeBackend.eager_calls + 3):
            assert torch.equal(graphs("it", function, []), wanted)
    told = [record for record in caplog.records if "it can't be captured as a tape" in record.getMessage()]
    assert len(told) == 1 and why in told[0].getMessage() and told[0].levelno == logging.DEBUG and graphs.captured == 0


def test_what_python_decides_by_a_draw_is_found_out() -> None:
    generator = torch.Generator().manual_seed(0)

    def sly() -> Tensor:
        """Reads memory that no tensor is asked for."""
        return X * ctypes.c_int64.from_address(torch.randperm(40, generator=generator).data_ptr()).value

    with pytest.raises(NotRecordedError, match="a replay leaves other numbers than the function"):
        TapeBackend().capture(sly, [generator])
    assert torch.equal(generator.get_state(), torch.Generator().manual_seed(0).get_state())


def test_numbers_are_not_rounded_to_the_type_of_what_they_meet(backend: TapeBackend) -> None:
    g = torch.Generator().manual_seed(0)
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.int64):
        x = (torch.randn(300, generator=g) * 5).to(dtype)
        for number in (0.1, 3, 1e4, -0.7):

            def arithmetic(x: Tensor = x, number: float = number) -> list[Tensor]:
                return [
                    x * number,
                    x / number,
                    x + number,
                    number - x,
                    x > number,
                    torch.where(x > 0, x, number),
                    x.clamp(max=number),
                ]

            for found, wanted in zip(backend.capture(arithmetic, [])(), arithmetic(), strict=True):
                assert found.dtype == wanted.dtype and torch.equal(found, wanted), (dtype, number)


def test_what_only_checks_is_replayed_too(backend: TapeBackend) -> None:
    matrix = torch.eye(3) * 4
    replay = backend.capture(lambda: torch.linalg.cholesky(matrix), [])
    assert torch.equal(replay(), torch.eye(3) * 2)
    matrix.neg_()
    with pytest.raises(RuntimeError, match="not positive-definite"):
        replay()


def test_what_the_module_does_not_take_stays_with_python(from_python: None, caplog: pytest.LogCaptureFixture) -> None:
    class Module:
        """Refuses all that it is asked for."""

        @staticmethod
        def Tape() -> Any:
            """Its one class."""
            raise RuntimeError("no such operator")

    replay = TapeBackend().capture(lambda: X + 1, [])
    native._module = Module
    with caplog.at_level(logging.DEBUG, "difftop.capture"):
        assert all(torch.equal(replay(), X + 1) for _ in range(3))
    assert caplog.text.count("a tape is replayed by Python: no such operator") == 1


def test_a_module_that_leaves_other_numbers_is_not_used(from_python: None, caplog: pytest.LogCaptureFixture) -> None:
    class Wrong:
        """Writes zeros to the memory that is kept."""

        def add(self, *_: Any, **named: Any) -> None:
            """Takes any call."""

        def replay(self) -> None:
            """Makes none."""
            kept.zero_()

    kept = torch.zeros(3)
    replay = TapeBackend().capture(lambda: kept.add_(torch.mul(X, 2)), [])
    native._module = type("Module", (), {"Tape": Wrong})
    with caplog.at_level(logging.DEBUG, "difftop.capture"):
        assert torch.equal(replay(), 2 * X) and torch.equal(replay(), 4 * X)
    assert caplog.text.count("C++ leaves other numbers") == 1


@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.RMSprop, torch.optim.SGD])
def test_optimizers_that_are_not_fused_learn_as_without(make: Any) -> None:
    weights = []
    for mode in ("auto", "false"):
        weight = nn.Parameter(torch.ones(3))
        optimizer = make([weight], lr=0.1)
        graphs = Graphs(CPU, mode, optimizers=[optimizer])

        def training(weight: Any = weight, optimizer: Any = optimizer) -> Tensor:
            loss = (weight - X).square().sum()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return loss.detach()

        for _ in range(30):
            graphs("an update", training, [])
        weights.append(weight.detach())
    assert torch.equal(*weights)


def test_a_refused_function_leaves_torch_s_own_generator() -> None:
    before = torch.get_rng_state()
    with pytest.raises(NotRecordedError):
        TapeBackend().capture(lambda: torch.rand(3) * X[0].item(), [])
    assert torch.equal(torch.get_rng_state(), before)


def test_nothing_is_readable_while_it_is_recorded() -> None:
    seen = []
    TapeBackend().capture(lambda: seen.append(readable(X)) or X + 1, [])  # type: ignore[func-returns-value]
    assert seen[0] is False and readable(X)


def test_nan_is_equal_to_nan() -> None:
    nan = torch.tensor([torch.nan, 1.0])
    assert TapeBackend().capture(lambda: nan * 2, [])()[0].isnan()
    left = torch.zeros(2)
    replay = TapeBackend().capture(lambda: left.copy_(nan), [])
    assert not left.isnan().any() and replay()[0].isnan() and left[0].isnan()


def test_without_a_compiler_python_makes_the_calls(
    from_python: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv("DIFFTOP_NATIVE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "sh -c 'echo no such header >&2; exit 1' sh")
    with caplog.at_level(logging.DEBUG, "difftop.capture"):
        replay = TapeBackend().capture(lambda: X + 1, [])
        assert native.ready(60.0) is None
    assert torch.equal(replay(), X + 1)
    assert "tapes are replayed by Python: no such header" in caplog.text
    assert not list((tmp_path / "difftop").iterdir())
