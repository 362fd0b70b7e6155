"""A function of tensors is recorded once per shape, then replayed without any Python between its operations.

    graphs = Graphs(device, "auto", generators=[generator], optimizers=[optimizer])
    loss = graphs("an update", update, [obs, action])        # `update(obs, action)`, eager, captured or replayed

Inputs are copied into tensors that stay where they are; outputs are copies. The first calls of each shape run eagerly: they are
real calls, and make what a capture must find (an optimizer's state, a library's workspace).
"""

from __future__ import annotations

import logging
import traceback
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from difftop.capture.cuda import CudaBackend
from difftop.capture.tape import TapeBackend
from difftop.options import ConfigError

log = logging.getLogger(__name__)

MODES = ("auto", "true", "false")
_BACKENDS: dict[str, Callable[[torch.device], Backend]] = {"cuda": CudaBackend, "cpu": TapeBackend}
Input = Tensor | float | None
_KEPT = 24  # graphs; more are of shapes that a schedule has left behind
_TORCH = str(Path(torch.__file__).parent)


class CaptureError(RuntimeError):
    """With `capture=true`, something that can't be captured; one sentence says what and why."""


class Backend(Protocol):
    """What records and replays: `CudaBackend`, `TapeBackend`, or another in a test.

    Attributes:
        makes: what it makes, in words.
        eager_calls: of each shape, before it is worth its capture.
        loud: whether captures are worth a number in the metrics, and a function that can't be captured a warning.
    """

    makes: str
    eager_calls: int
    loud: bool

    def fed(self, x: Tensor) -> Tensor:
        """`x`, from where copying it to the device waits for nothing."""

    def eager(self, function: Callable[[], Any]) -> Any:
        """Calls `function` where it will be captured."""

    def capture(self, function: Callable[[], Any], generators: Sequence[torch.Generator]) -> Callable[[], Any]:
        """Records `function`, which runs nothing; what it returns runs it, and gives its outputs, always the same tensors."""


@dataclass
class _Recorded:
    """One shape of one function: its static inputs, and its graph as soon as there is one."""

    inputs: tuple[Tensor | None, ...]
    calls: int = 0
    replay: Callable[[], Any] | None = None


class Graphs:
    """Functions of one owner, captured.

    Args:
        device: where they run.
        mode: `auto`: eagerly where a capture fails, which is told once; `true`: CUDA graphs, and a failure is an error; `false`.
        generators: that the functions draw from.
        optimizers: whose steps they take.
        backend: what records; None: CUDA graphs, on a CPU a tape, and nothing on another device.
    Raises:
        ConfigError: mode=true on a device without CUDA graphs.
    Attributes:
        active: whether anything is captured here.
        captured: number of captures so far.
    """

    def __init__(
        self,
        device: torch.device,
        mode: str = "auto",
        *,
        generators: Sequence[torch.Generator] = (),
        optimizers: Sequence[torch.optim.Optimizer] = (),
        backend: Backend | None = None,
    ) -> None:
        if mode not in MODES:
            raise ConfigError(f"capture={mode}: must be {' | '.join(MODES)}.")
        if mode == "true" and backend is None and device.type != "cuda":
            raise ConfigError(f"capture=true: CUDA graphs need device=cuda, and this is device={device.type}; use capture=auto.")
        if mode != "false" and backend is None and device.type in _BACKENDS:
            backend = _BACKENDS[device.type](device)
        self.device, self.mode, self.generators, self.optimizers = device, mode, list(generators), list(optimizers)
        self._backend = None if mode == "false" else backend
        self._recorded: OrderedDict[Hashable, _Recorded] = OrderedDict()
        self._failed: set[str] = set()
        self.captured = 0

    @property
    def active(self) -> bool:
        """Whether anything is captured here."""
        return self._backend is not None

    @property
    def loud(self) -> bool:
        """Whether captures are worth a number in the metrics."""
        return self._backend is not None and self._backend.loud

    def sharing(self, generators: Sequence[torch.Generator]) -> Graphs:
        """For functions that draw from other generators and take no steps; what couldn't be captured is known to both."""
        other = Graphs(self.device, self.mode, generators=generators, backend=self._backend)
        other._failed = self._failed
        return other

    def __getstate__(self) -> dict[str, Any]:
        """Without what is recorded: that is of the tensors of this one's owner."""
        return self.__dict__ | {"_recorded": OrderedDict()}

    def clear(self) -> None:
        """Forgets all graphs, as when tensors that they know have been replaced."""
        self._recorded.clear()

    def __call__(self, name: str, function: Callable[..., Any], inputs: Sequence[Input], variant: Hashable = ()) -> Any:
        """`function(*inputs)`.

        Args:
            name: what it is, as a sentence's subject.
            function: does the same for the same name, variant and shapes: what changes from call to call, of numbers too, is
                among its inputs, or in tensors that stay where they are. Its outputs are tensors and None, in tuples and dicts.
            inputs: tensors, numbers and None. Where `active`, numbers arrive as 0-d tensors.
            variant: of the function; each is captured for itself.
        Raises:
            CaptureError: mode=true, and it can't be captured.
        """
        if self._backend is None or name in self._failed:
            return function(*inputs)
        recorded = self._of_shape((name, variant, *map(_shape, inputs)), inputs)
        for static, x in zip(recorded.inputs, inputs, strict=True):
            if isinstance(x, Tensor) and static is not None:
                static.copy_(self._backend.fed(x), non_blocking=True)
            elif static is not None and x is not None:
                static.fill_(x)
        bound = partial(function, *recorded.inputs)
        if recorded.replay is None:
            recorded.calls += 1
            if recorded.calls <= self._backend.eager_calls:
                return _copies(self._backend.eager(bound))
            recorded.replay = self._captured(name, bound)
            if recorded.replay is None:
                return function(*inputs)
        return _copies(recorded.replay())

    def _of_shape(self, key: Hashable, inputs: Sequence[Input]) -> _Recorded:
        if key not in self._recorded:
            static = tuple(None if x is None else _like(x, self.device) for x in inputs)
            self._recorded[key] = _Recorded(static)
            if len(self._recorded) > _KEPT:
                self._recorded.popitem(last=False)
        self._recorded.move_to_end(key)
        return self._recorded[key]

    def _captured(self, name: str, bound: Callable[[], Any]) -> Callable[[], Any] | None:
        """The replay; None where it can't be had, which has been told."""
        assert self._backend is not None
        try:
            with _capturable(self.optimizers):
                replay = self._backend.capture(bound, self.generators)
        except Exception as error:
            for optimizer in self.optimizers:  # gradients of a backward pass that was never run
                optimizer.zero_grad(set_to_none=True)
            why = f"{name} can't be captured as {self._backend.makes} ({_reason(error)})"
            if self.mode == "true":
                raise CaptureError(f"capture=true: {why}; use capture=auto.") from error
            log.log(logging.WARNING if self._backend.loud else logging.DEBUG, "capture=auto: %s, and runs without one.", why)
            self._failed.add(name)
            return None
        self.captured += 1
        return replay


@contextmanager
def _capturable(optimizers: Sequence[torch.optim.Optimizer]) -> Iterator[None]:
    """Inside, optimizers keep all that they count on the device; outside it would only be told that nobody captures."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    before = [group.get("capturable", False) for group in groups]
    for group in groups:
        group["capturable"] = True
    try:
        yield
    finally:
        for group, was in zip(groups, before, strict=True):
            group["capturable"] = was


def _shape(x: Input) -> Hashable:
    return (tuple(x.shape), x.dtype) if isinstance(x, Tensor) else type(x).__name__


def _like(x: Tensor | float, device: torch.device) -> Tensor:
    return torch.zeros(x.shape, dtype=x.dtype, device=device) if isinstance(x, Tensor) else torch.zeros((), device=device)


def _copies(outputs: Any) -> Any:
    """The same tuples and dicts, of copies."""
    if isinstance(outputs, Tensor):
        return outputs.clone()
    if isinstance(outputs, dict):
        return {key: _copies(value) for key, value in outputs.items()}
    if isinstance(outputs, tuple):
        copies = [_copies(value) for value in outputs]
        return type(outputs)(*copies) if hasattr(outputs, "_fields") else tuple(copies)
    return outputs


def _reason(error: BaseException) -> str:
    """The first error, of which a capture's end may have made others, and the line of ours that met it."""
    while error.__context__ is not None:
        error = error.__context__
    ours = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(_TORCH)]
    where = f"{Path(ours[-1].filename).name}, line {ours[-1].lineno}: " if ours else ""
    return where + (str(error).splitlines() or [type(error).__name__])[0]
