"""Large matrix products at the full width of an AMD CPU.

torch's float32 products are MKL's, which takes AVX-512 on Intel's CPUs alone: one core of a Zen 5 gives 103 GFLOP/s at
192 x 256 x 256, where oneDNN's kernels give 205. torch leaves float32 to oneDNN only where bfloat16 is allowed inside. Without
AMX oneDNN has no use for that and computes in float32, to its last bit; `available` looks whether it does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch

_WORTH = 2e7  # operations of a product: each call takes about 12 microseconds longer, and small ones are most of an update


@contextmanager
def wide_products(rows: int, width: int) -> Iterator[None]:
    """Inside, float32 products run in oneDNN, where that is faster and as exact; else nothing changes.

    The setting is the process's, not the thread's. A product's last bits are others.

    Args:
        rows: that most products have, of states.
        width: units of the hidden layers.
    """
    if 2 * rows * width * width < _WORTH or not available():
        yield
        return
    with _left_to_onednn(_setting()):
        yield


@cache
def available() -> bool:
    """Whether this is an AMD CPU with AVX-512 on which oneDNN keeps all bits of float32."""
    setting = _setting()
    if setting is None or torch.backends.cpu.get_cpu_capability() != "AVX512" or maker() != "AuthenticAMD":
        return False
    with _left_to_onednn(setting):
        return exact()


@contextmanager
def _left_to_onednn(setting: Any) -> Iterator[None]:
    before, setting.fp32_precision = setting.fp32_precision, "bf16"
    try:
        yield
    finally:
        setting.fp32_precision = before


def exact() -> bool:
    """Whether products keep what bfloat16 would round away, as torch is set now."""
    x = torch.full((192, 256), 1 + 2.0**-20)
    return torch.equal(x @ torch.eye(256), x)


def maker() -> str:
    """The CPU's, as Linux names it; empty elsewhere."""
    return _cpuinfo("vendor_id")


@cache
def has_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 itself (AVX-512 BF16 or AMX); False where Linux doesn't tell."""
    return bool({"avx512_bf16", "amx_bf16"} & set(_cpuinfo("flags").split()))


def _cpuinfo(key: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":")[1].strip() for line in lines if line.startswith(key)), "")


def _setting() -> Any:
    """torch's, or None in versions without it."""
    return getattr(torch.backends.mkldnn, "matmul", None) if torch.backends.mkldnn.is_available() else None  # type: ignore[no-untyped-call]
