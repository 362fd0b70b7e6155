"""The C++ that replays a tape: 50 lines, compiled once per torch in the background, kept in the user's cache.

`DIFFTOP_NATIVE=0` compiles nothing. Without a compiler, and on anything but Linux, tapes are replayed by Python.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import threading
import uuid
from collections.abc import Sequence
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

import torch

from difftop.capture.recorder import Call, tensors

log = logging.getLogger(__name__)

_SOURCE = Path(__file__).with_name("tape.cpp")
_NAME = "_difftop_tape"
_FLAGS = ("-O1", "-std=c++20", "-fPIC", "-shared", "-w")
_lock = threading.Lock()
_building: threading.Thread | None = None
_module: Any = None


def prepare() -> None:
    """Begins to compile in the background, where that hasn't been done."""
    global _building
    with _lock:
        if _building is None:
            _building = threading.Thread(target=_load, name="compiles the tape", daemon=True)
            _building.start()


def ready(timeout_s: float = 0.0) -> Any:
    """The module, or None where it isn't compiled, or not yet: waits for it so long after `prepare`."""
    if timeout_s and _building is not None:
        _building.join(timeout_s)
    return _module


def tape(module: Any, calls: Sequence[Call]) -> Any:
    """The calls as the module's `Tape`; raises where it can't make one of them."""
    made = module.Tape()
    for call in calls:
        if call.made and any("List" in str(result.type) for result in call.operator._schema.returns):
            raise RuntimeError(f"{call.operator} gives a list")
        made.add(call.operator._schema.name, call.operator._schema.overload_name, *_arguments(call), **call.named)
        if call.made:
            made.copy_to(list(call.made))
    return made


def _arguments(call: Call) -> list[Any]:
    """With 0-d tensors in place of numbers where the schema has tensors; no more than these do they change a result's type."""
    given = list(call.arguments)
    for place, argument in enumerate(call.operator._schema.arguments[: len(given)]):
        if str(argument.type) == "Tensor" and isinstance(given[place], bool | int | float):
            other = next(iter(tensors(given)))
            dtype = torch.result_type(other, given[place])
            # A kernel reads the number as it is, and doesn't round it to bfloat16 first.
            given[place] = torch.tensor(given[place], dtype=torch.float64 if other.dim() and other.is_floating_point() else dtype)
    return given


def _load() -> None:
    global _module
    try:
        path = _cached()
        if not path.is_file():
            _compile(path)
        loader = ExtensionFileLoader(_NAME, str(path))
        spec = spec_from_loader(_NAME, loader)
        assert spec is not None
        found = module_from_spec(spec)
        loader.exec_module(found)
        _module = found
    except (OSError, ImportError, subprocess.SubprocessError, RuntimeError, ValueError) as error:
        log.debug("tapes are replayed by Python: %s", error)


def _cached() -> Path:
    """Where the module is kept: another for each torch, Python and source."""
    if os.environ.get("DIFFTOP_NATIVE", "1") == "0" or sys.platform != "linux":
        raise RuntimeError("nothing is compiled here")
    what = (_SOURCE.read_bytes(), torch.__version__.encode(), str(sysconfig.get_config_var("SOABI")).encode())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "difftop" / f"tape-{hashlib.sha256(b'|'.join(what)).hexdigest()[:16]}.so"


def _compile(path: Path) -> None:
    """Takes a minute, at low priority; in a process of its own, which ends its work also when this one has ended."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if not compiler:
        raise RuntimeError("no C++ compiler was found")
    root = Path(torch.__file__).parent
    includes = [root / "include", root / "include" / "torch" / "csrc" / "api" / "include", sysconfig.get_paths()["include"]]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.stem}.{uuid.uuid4().hex}.part")
    command = [*shlex.split(compiler), *_FLAGS, str(_SOURCE), "-o", str(partial), *(f"-I{folder}" for folder in includes)]
    command += [f"-DTORCH_EXTENSION_NAME={_NAME}", f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}"]
    command += [f"-L{root / 'lib'}", f"-Wl,-rpath,{root / 'lib'}", "-ltorch", "-ltorch_cpu", "-ltorch_python", "-lc10"]
    script = f"nice -n 19 {shlex.join(command)} && mv {shlex.quote(str(partial))} {shlex.quote(str(path))}"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, start_new_session=True)
    if done.returncode:
        partial.unlink(missing_ok=True)
        raise RuntimeError((done.stderr.strip().splitlines() or ["the compiler failed"])[0])
