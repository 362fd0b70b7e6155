"""A CUDA graph without a GPU: operations are recorded with their tensors and their numbers, and run again on the same memory.

As with a real one, recording runs nothing, and Python's part of the function isn't run again: a number that it took from the host
stays as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only


class Tape(TorchDispatchMode):
    """Records what runs inside; `undo` takes it back, `replay` runs it."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, list[Tensor]]] = []
        self._alive: list[Any] = []
        self._made: set[int] = set()
        self._before: dict[int, tuple[Any, Any]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs `function` and remembers it."""
        kwargs = kwargs or {}
        self._keep(function, args, kwargs)
        out = function(*args, **kwargs)
        known = {_memory(x) for x in _tensors((args, kwargs))}
        fresh = [x for x in _tensors(out) if _memory(x) not in known]
        self._made |= {_memory(x) for x in fresh}
        self._alive.append((args, kwargs, out))
        if function.overloadpacket is not torch.ops.aten._local_scalar_dense and (fresh or function._schema.is_mutable):
            # Other views of the same memory, because shapes can be changed in place.
            seen, named, made = tree_map_only(Tensor, torch.Tensor.detach, (args, kwargs, fresh))
            self.operations.append((function, seen, named, made))
        return out

    def _keep(self, function: Any, args: Any, kwargs: Any) -> None:
        """Copies what `function` will write to, unless it was made here."""
        for place, argument in enumerate(function._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                written = kwargs.get(argument.name) if argument.kwarg_only or place >= len(args) else args[place]
                for x in _tensors(written):
                    if _memory(x) not in self._made | set(self._before):
                        storage = x.untyped_storage()
                        self._before[_memory(x)] = (storage, storage.clone())

    def undo(self) -> None:
        """As it was before."""
        for storage, copy in self._before.values():
            storage.copy_(copy)

    @torch.inference_mode()
    def replay(self) -> None:
        """Runs all of it on the tensors that are there now."""
        for function, args, kwargs, fresh in self.operations:
            known = {_memory(x) for x in _tensors((args, kwargs))}
            again = [x for x in _tensors(function(*args, **kwargs)) if _memory(x) not in known]
            for old, new in zip(fresh, again, strict=True):
                old.copy_(new)


class TapeBackend:
    """Captures on a tape. `fails`: every capture does, after it has recorded."""

    makes, eager_calls, loud = "a CUDA graph", 2, True

    def __init__(self, fails: bool = False) -> None:
        self.fails = fails

    def fed(self, x: Tensor) -> Tensor:
        """As it is."""
        return x

    def eager(self, function: Callable[[], Any]) -> Any:
        """Its outputs."""
        return function()

    def capture(self, function: Callable[[], Any], generators: Sequence[torch.Generator]) -> Callable[[], Any]:
        """See `difftop.capture.Backend`."""
        drawn = [generator.get_state() for generator in generators]
        try:
            with Tape() as tape:
                outputs = function()
                if self.fails:
                    raise RuntimeError("operation not permitted when stream is capturing\nand more lines")
        finally:
            tape.undo()
            for generator, state in zip(generators, drawn, strict=True):
                generator.set_state(state)

        def replay() -> Any:
            tape.replay()
            return outputs

        return replay


def _tensors(tree: Any) -> list[Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor) and x.numel()]


def _memory(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()
