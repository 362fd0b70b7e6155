"""Checksums of the data sets that are written here: seals of HDF5 files, and of the files of a folder.

A seal is the SHA-256 of all that a file holds, appended to it.

HDF5 protects no number that it stores: a bit that flips on a disk or in a copy is another action, and nobody is told. Programs
that read HDF5 ignore what follows the end that a file's own header names, so a sealed file is read by all of them; one that
writes to the file cuts the seal off, so an edited file counts as one that has none, like everybody else's.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from difftop.data.faults import DemonstrationError

_MAGIC = b"difftop sha256 "
_BYTES = len(_MAGIC) + 64 + 1
_CHUNK_BYTES = 2**20  # stays in the processor's cache between being read and being summed
_thread = threading.local()


def seal(path: Path) -> None:
    """Appends its seal to a file that is closed and whole."""
    digest = _digest(path, path.stat().st_size)
    with path.open("ab") as file:
        file.write(_MAGIC + digest.encode() + b"\n")


def check_seal(path: Path) -> None:
    """Does nothing where a file is as it was sealed, or has no seal.

    The whole file is read, once in a process as long as it doesn't change (about 1 s per GB from the system's cache).

    Raises:
        DemonstrationError: the file isn't as it was sealed, or its seal isn't.
        OSError: it can't be read.
    """
    stat = path.stat()
    with path.open("rb") as file:
        file.seek(max(0, stat.st_size - 2 * _BYTES))
        end = file.read()
    last = end[-_BYTES:]
    if _MAGIC[:11] not in end and not _resembles(last):
        return
    said = last.removeprefix(_MAGIC).rstrip(b"\n").decode(errors="replace")
    whole = last.startswith(_MAGIC) and last.endswith(b"\n") and len(said) == 64
    if not whole or _known_digest(str(path), stat.st_size - _BYTES, stat.st_mtime_ns) != said:
        raise DemonstrationError(
            f"{path}: it doesn't match the checksum that it was written with, so it is damaged: copy or record it again."
        )


def sum_of(path: Path) -> str:
    """SHA-256 of a whole file; of one that doesn't change it is computed once in a process."""
    stat = path.stat()
    return _known_digest(str(path), stat.st_size, stat.st_mtime_ns)


def check_sum(path: Path, said: str, where: str) -> None:
    """Raises `DemonstrationError` unless a file is as it was written.

    Args:
        path: of the file.
        said: `sum_of` it then.
        where: this is kept, for the message.
    """
    try:
        found = sum_of(path)
    except OSError as error:
        raise DemonstrationError(f"{path}: can't be read ({error.strerror}); a copy may be incomplete.") from error
    if found != said:
        raise DemonstrationError(
            f"{path}: it doesn't match its checksum in {where}, so it is damaged: copy or convert it again (if it was edited on "
            f"purpose, remove {where})."
        )


def json_sum(values: Mapping[str, Any]) -> str:
    """SHA-256 of plain values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _resembles(last: bytes) -> bool:
    """Whether the last bytes of a file are a seal in which some are wrong."""
    return sum(a == b for a, b in zip(last, _MAGIC, strict=False)) > len(_MAGIC) // 2


@lru_cache(maxsize=256)
def _known_digest(path: str, size: int, changed_ns: int) -> str:
    """`_digest`; the time of the last change is only there to tell contents apart."""
    return _digest(Path(path), size)


def _digest(path: Path, size: int) -> str:
    """SHA-256 of the first `size` bytes."""
    found = hashlib.sha256()
    if not hasattr(_thread, "block"):  # new memory for every file would have to be cleared
        _thread.block = memoryview(bytearray(_CHUNK_BYTES))
    block: memoryview = _thread.block
    with path.open("rb", buffering=0) as file:
        while size > 0 and (count := file.readinto(block[: min(_CHUNK_BYTES, size)])):
            found.update(block[:count])
            size -= count
    return found.hexdigest()
