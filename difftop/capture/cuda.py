"""CUDA graphs: kernels are recorded with their memory, and launched again as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor


class CudaBackend:
    """`torch.cuda.CUDAGraph`, all graphs in one memory pool: they are replayed one after another, and outputs are copied."""

    makes, eager_calls, loud = "a CUDA graph", 2, True

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.pool = torch.cuda.graph_pool_handle()

    def fed(self, x: Tensor) -> Tensor:
        """A pinned copy of what is on the CPU; torch keeps its memory until the device has read it."""
        return x.contiguous().pin_memory() if x.device.type == "cpu" else x

    def eager(self, function: Callable[[], Any]) -> Any:
        """On the stream that captures, where autograd then finds its nodes."""
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            outputs = function()
        current.wait_stream(self.stream)
        return outputs

    def capture(self, function: Callable[[], Any], generators: Sequence[torch.Generator]) -> Callable[[], Any]:
        """See `Backend`."""
        try:
            return self._captured(function, generators, self.pool)
        except BaseException:
            self._clear_failure(generators)
            raise

    def _captured(self, function: Callable[[], Any], generators: Sequence[torch.Generator], pool: Any) -> Callable[[], Any]:
        graph = torch.cuda.CUDAGraph()
        for generator in generators:
            graph.register_generator_state(generator)
        # The outer context restores the stream: a capture that fails leaves its own one behind.
        here = torch.cuda.stream(torch.cuda.current_stream(self.device))
        with here, torch.cuda.graph(graph, pool=pool, stream=self.stream):
            outputs = function()

        def replay() -> Any:
            graph.replay()
            return outputs

        return replay

    def _clear_failure(self, generators: Sequence[torch.Generator]) -> None:
        """A capture that fails leaves memory going to its pool, and generators as if it went on; one that succeeds ends that."""
        with suppress(Exception):
            torch.cuda.synchronize(self.device)
            end: Any = getattr(torch._C, "_cuda_endAllocateToPool")  # noqa: B009  only a build with CUDA has it
            end(torch.cuda.current_device(), self.pool)
        self.pool = torch.cuda.graph_pool_handle()

        def draws() -> None:
            for generator in [None, *generators]:
                torch.rand(1, device=self.device, generator=generator)

        with suppress(Exception):
            self._captured(draws, generators, None)
