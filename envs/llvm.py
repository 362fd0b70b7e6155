"""Keeps two copies of LLVM apart: Triton's, which PyTorch's builds for CUDA bring, and the one that Mesa draws with.

Triton exports its LLVM's symbols. Loaded after Mesa's libLLVM its own calls bind to that one, and the process ends with a
segmentation fault in `import triton`, which PyTorch does when the first optimizer is made. The other way round both work.
"""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module


def load_triton() -> None:
    """Imports Triton where it is installed; call it before anything that draws is loaded. The first call takes 0.2 s."""
    with suppress(ImportError):
        import_module("triton")
