"""Records the operators that a function calls, below autograd, with the tensors that they take and give."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from difftop.host import recording

_READS = {"tolist", "numpy", "__array__", "__dlpack__", "item", "__bool__", "__float__", "__int__", "__index__", "__contains__"}
_READS |= {"tensor_split"}  # where to split, if a tensor says so
_EMPTY = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
_RESHAPING = {"resize_", "resize_as_", "set_"}


class NotRecordedError(RuntimeError):
    """A function that can't be replayed; one sentence says what it does."""


class Call(NamedTuple):
    """One call of an operator.

    Attributes:
        operator: an overload of `torch.ops`.
        arguments, named: its arguments.
        made: what it returned, None in place of what isn't a tensor; empty where all of it is memory that was there before.
    """

    operator: Any
    arguments: Any
    named: Any
    made: tuple[Tensor | None, ...]


class Recorder(TorchDispatchMode):
    """Inside, everything runs, and what writes to memory is remembered in `calls`.

    Views aren't: the tensors that a call takes and gives are kept, and memory stays where it is.

    Attributes:
        calls: in order.
        made: memory that the calls made, by `memory`.
        written: memory that was there before and was written to, with a copy of what it held.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Call] = []
        self.made: set[int] = set()
        self.written: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}
        self._alive: list[Any] = []  # else the same place would be given out twice

    def record(self, function: Callable[[], Any]) -> Any:
        """Its outputs.

        Raises:
            NotRecordedError: it reads a number on the host, or the shape of a result depends on numbers.
        """
        with recording(), _NoReads(), self:
            return function()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs `function` and remembers it."""
        kwargs, name = kwargs or {}, function.overloadpacket.__name__
        _check_fixed(function, name, args)
        for x in written_to(function, args, kwargs):
            place, storage = memory(x), x.untyped_storage()
            if place not in self.made and place not in self.written:
                self.written[place] = (storage, copied(storage))
        out = function(*args, **kwargs)
        self._alive.append((args, kwargs, out))
        if name.startswith("lift_fresh"):  # a constant, made on the host, that may be written to later
            function, args = torch.ops.aten.clone.default, (out.clone(),)
        known = {memory(x) for x in tensors((args, kwargs))}
        outputs = out if isinstance(out, list | tuple) else (out,)
        fresh = any(memory(x) not in known for x in tensors(out))
        self.made |= {memory(x) for x in tensors(out)} - known
        if torch.Tag.inplace_view in function.tags:
            return out
        if fresh or function._schema.is_mutable or not function._schema.returns:  # the last ones check something
            made = tuple(x if isinstance(x, Tensor) else None for x in outputs) if fresh else ()
            # Other views of the same memory, because shapes can be changed in place.
            self.calls.append(Call(function, *tree_map_only(Tensor, torch.Tensor.detach, (args, kwargs, made))))
        return out

    def undo(self) -> None:
        """Memory as it was before."""
        for storage, copy in self.written.values():
            storage.copy_(copy)


class _NoReads(TorchFunctionMode):
    """Refuses what reads numbers without calling an operator."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls `function`, unless it reads."""
        name = getattr(function, "__name__", "")
        if name in _READS:
            raise NotRecordedError(f"a number is read on the host by {name}")
        if name == "__set__" and function == torch.Tensor.data.__set__:  # type: ignore[attr-defined]
            raise NotRecordedError("a tensor gets other memory by data")
        return function(*args, **(kwargs or {}))


def is_empty(operator: Any) -> bool:
    """Whether it only makes memory."""
    return operator.overloadpacket.__name__ in _EMPTY


def written_to(operator: Any, arguments: Any, named: Any) -> Iterator[Tensor]:
    """Tensors among the arguments of a call that it writes to."""
    if not operator._schema.is_mutable:
        return
    for place, argument in enumerate(operator._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = named.get(argument.name) if argument.kwarg_only or place >= len(arguments) else arguments[place]
            yield from tensors(given)


def tensors(tree: Any) -> list[Tensor]:
    """All tensors in nested lists, tuples and dicts."""
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]


def memory(x: Tensor) -> int:
    """Which memory a tensor is in; the same for views of each other, as long as one of them lives."""
    return int(x.untyped_storage()._cdata)


def copied(storage: torch.UntypedStorage) -> torch.UntypedStorage:
    """Other memory with the same bytes."""
    return torch.UntypedStorage(storage.nbytes()).copy_(storage)  # type: ignore[no-untyped-call]


def _check_fixed(function: Any, name: str, args: Any) -> None:
    if torch.Tag.data_dependent_output in function.tags:
        raise NotRecordedError("a number is read on the host")
    masks = any(x.dtype in (torch.bool, torch.uint8) for x in tensors(args[1:2])) if name.startswith("index") else True
    if "batch_norm" in name and "backward" not in name:
        raise NotRecordedError(f"{name} writes to statistics, which its signature doesn't say")
    if any(x.is_conj() or x.is_neg() for x in tensors(args)):
        raise NotRecordedError(f"{name} takes a conjugate that is computed when it is read")
    if (torch.Tag.dynamic_output_shape in function.tags and masks) or name in _RESHAPING:
        raise NotRecordedError(f"the shape of what {name} gives depends on numbers")
