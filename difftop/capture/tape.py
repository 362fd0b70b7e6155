"""CUDA graphs for a CPU: the operators that a function called, called again on the same memory.

A small network's update is a thousand calls of a few microseconds each, and around each of them Python, autograd, modules and
optimizers take as long again. A tape holds what is left when these are gone: operators and their arguments. It calls them from
C++ (`native`), or, where there is no compiler, from Python. The numbers are those of the function, to the bit: the same kernels
run in the same order.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from difftop.capture import native
from difftop.capture.layout import laid_out
from difftop.capture.recorder import Call, NotRecordedError, Recorder, tensors

log = logging.getLogger(__name__)

_TRIALS = 2  # of a tape against its function, with other random numbers


class TapeBackend:
    """Captures on tapes; `difftop.capture.Backend`."""

    makes, eager_calls, loud = "a tape", 20, False

    def __init__(self, device: torch.device | None = None) -> None:
        """There is one device."""

    def fed(self, x: Tensor) -> Tensor:
        """As it is."""
        return x

    def eager(self, function: Callable[[], Any]) -> Any:
        """Its outputs."""
        return function()

    def capture(self, function: Callable[[], Any], generators: Sequence[torch.Generator]) -> Callable[[], Any]:
        """See `Backend`; memory and generators are as before."""
        recorder, drawn = Recorder(), [generator.get_state() for generator in generators]
        default = torch.get_rng_state()
        try:
            outputs = recorder.record(function)
            touched = Touched([storage for storage, _ in recorder.written.values()], generators)
            tape = Tape(*laid_out(recorder, outputs), touched)
            for trial in range(_TRIALS):
                recorder.undo()
                for generator in generators:
                    generator.manual_seed(trial)
                if not touched.same(function, tape.replay):
                    raise NotRecordedError("a replay leaves other numbers than the function")
        finally:
            recorder.undo()
            torch.set_rng_state(default)
            for generator, state in zip(generators, drawn, strict=True):
                generator.set_state(state)
        return tape.replay


class Touched:
    """What a function leaves beside its outputs: memory that was there before, and generators."""

    def __init__(self, storages: Sequence[torch.UntypedStorage], generators: Sequence[torch.Generator]) -> None:
        self.storages, self.generators = list(storages), list(generators)

    def same(self, function: Callable[[], Any], other: Callable[[], Any]) -> bool:
        """Whether both leave the same bits, from the same state; it is as before afterwards.

        A function that lets Python decide by a number that it has drawn goes on, replayed, as it decided while it was recorded.
        """
        before, left = self._state(), []
        for run in (function, other):
            outputs = [_bits(x).clone() for x in tensors(run())]
            left.append([*outputs, *self._state()])
            for storage, x in zip(self.storages, before, strict=False):
                _bytes(storage).copy_(x)
            for generator, state in zip(self.generators, before[len(self.storages) :], strict=True):
                generator.set_state(state)
        wanted, found = left
        return len(wanted) == len(found) and all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True))

    def _state(self) -> list[Tensor]:
        return [*(_bytes(storage).clone() for storage in self.storages), *(g.get_state() for g in self.generators)]


class Tape:
    """Calls that run on memory of their own.

    Args:
        calls: in order, as `laid_out` gives them.
        outputs: what they leave.
        touched: what else.
    """

    def __init__(self, calls: Sequence[Call], outputs: Any, touched: Touched) -> None:
        self.calls, self.outputs, self.touched = list(calls), outputs, touched
        self._native: Any = None
        native.prepare()

    def replay(self) -> Any:
        """Runs all of it; the outputs, always the same tensors."""
        if self._native is None and (module := native.ready()) is not None:
            self._native = self._of(module)
        if self._native:
            self._native.replay()
        else:
            self.replay_in_python()
        return self.outputs

    def _of(self, module: Any) -> Any:
        """For C++; False where it takes other arguments than Python does, or leaves anything else."""
        try:
            made = native.tape(module, self.calls)
            if self.touched.same(self.replay_in_python, lambda: made.replay() or self.outputs):
                return made
            error: Exception = RuntimeError("C++ leaves other numbers")
        except (RuntimeError, TypeError, ValueError, StopIteration) as caught:
            error = caught
        log.debug("a tape is replayed by Python: %s", error)
        return False

    @torch.inference_mode()
    def replay_in_python(self) -> Any:
        """What `native` does."""
        for operator, arguments, named, made in self.calls:
            found = operator(*arguments, **named)
            if made:
                for place, x in zip(made, found if isinstance(found, list | tuple) else (found,), strict=True):
                    if place is not None:
                        place.copy_(x)
        return self.outputs


def _bits(x: Tensor) -> Tensor:
    """Its bytes; every NaN has the same ones."""
    return (torch.where(x.isnan(), torch.nan, x) if x.is_floating_point() else x).contiguous().view(-1).view(torch.uint8)


def _bytes(storage: torch.UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8).set_(storage)
