"""Memory for recorded calls: results share places as soon as nobody needs them any more, and are written where they stay."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from difftop.capture.recorder import Call, Recorder, is_empty, memory, tensors

_ROOMY = 4  # a place may be so many times as large as what is put there
_SMALL_BYTES = 4096  # or of any size up to this
_FACTORY = ("dtype", "layout", "device", "pin_memory")


def laid_out(recorder: Recorder, outputs: Any) -> tuple[list[Call], Any]:
    """The calls on memory of their own, and what they leave as outputs.

    A call writes its result to where it stays, by its variant with `out=`; `made` is what has to be copied there after it, where
    there is no such variant. What is in the same memory as an output stays until the next replay.
    """
    places = _places(recorder, outputs)

    def moved(x: Tensor) -> Tensor:
        if memory(x) not in places:
            return x
        there = torch.empty(0, dtype=x.dtype)
        return there.set_(places[memory(x)], x.storage_offset(), x.shape, x.stride())

    calls = [Call(call.operator, *tree_map_only(Tensor, moved, tuple(call[1:]))) for call in recorder.calls]
    return [_written_out(call) for call in calls if not is_empty(call.operator)], tree_map_only(Tensor, moved, outputs)


def _places(recorder: Recorder, outputs: Any) -> dict[int, torch.UntypedStorage]:
    """Where the memory that calls made is to be: first come, first served, in the smallest place that is free."""
    uses = [tensors(tuple(call[1:])) for call in recorder.calls] + [tensors(outputs)]
    own = [[x for x in used if memory(x) in recorder.made] for used in uses]
    last = {memory(x): i for i, used in enumerate(own) for x in used}
    places: dict[int, torch.UntypedStorage] = {}
    free: list[torch.UntypedStorage] = []
    for i, used in enumerate(own):
        for x in used:
            if memory(x) not in places:
                places[memory(x)] = _take(free, max(x.untyped_storage().nbytes(), 1))
        free += [places[made] for made in {memory(x) for x in used} if last[made] == i]
    return places


def _take(free: list[torch.UntypedStorage], size: int) -> torch.UntypedStorage:
    """A place for so many bytes, out of the free ones if one fits."""
    fit = [place for place in free if size <= place.nbytes() <= max(_ROOMY * size, _SMALL_BYTES)]
    if not fit:
        return torch.UntypedStorage(size)  # type: ignore[no-untyped-call]
    found = min(fit, key=torch.UntypedStorage.nbytes)
    free.remove(found)
    return found


def _written_out(call: Call) -> Call:
    """The call of a variant that writes to `made`, if there is one."""
    operator, made = call.operator, call.made
    found = None if not made or operator._schema.is_mutable else _with_out(operator)
    if found is None or any(x is None for x in made):
        return call
    variant, names = found
    known = {argument.name for argument in variant._schema.arguments}
    named = {name: value for name, value in call.named.items() if name in known}
    listed = "List" in str(operator._schema.returns[0].type)  # of results, which is one argument
    named |= {names[0]: list(made)} if listed else dict(zip(names, made, strict=True))
    return Call(variant, call.arguments, named, ())


_variants: dict[Any, tuple[Any, list[str]] | None] = {}


def _with_out(operator: Any) -> tuple[Any, list[str]] | None:
    """The overload of an operator that takes the same and writes to `out=`, and the names of what it writes to."""
    if operator not in _variants:
        packet, wanted = operator.overloadpacket, _signature(operator._schema.arguments)
        _variants[operator] = None
        for name in packet.overloads():
            variant = getattr(packet, name)
            outs = [a for a in variant._schema.arguments if a.kwarg_only and a.alias_info is not None and a.alias_info.is_write]
            rest = [a for a in variant._schema.arguments if a not in outs]
            if outs and len(outs) == len(operator._schema.returns) and _signature(rest) == wanted:
                _variants[operator] = variant, [a.name for a in outs]
                break
    return _variants[operator]


def _signature(arguments: Any) -> list[tuple[str, str]]:
    return [(a.name, str(a.type)) for a in arguments if a.name not in _FACTORY]
