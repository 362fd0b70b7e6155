"""How much memory a run may take: what the machine has free, within the limits that its containers set."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_UNKNOWN = 2**32  # bytes, where a system tells nothing
_SHARE = 2  # of what is free, one part in so many: the rest is for networks, simulators, and what comes later
_UNLIMITED = 2**62  # a limit beyond this is none

# Version of control groups, by the files that say how much may be used, how much is, and how that is made up.
_UNIFIED = ("memory.max", "memory.current", "inactive_file")
_LEGACY = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def image_cache_bytes(cache_mb: int) -> int:
    """Memory for images of demonstrations: `run.cache_mb`, or half of what is free, shared among the workers of this machine."""
    if cache_mb:
        return cache_mb * 2**20
    return available_bytes() // _SHARE // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # torchrun's


def available_bytes(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Memory that could be taken without swapping: the machine's, or what the tightest control group of this process has left.

    Args:
        proc: where Linux tells of processes.
        groups: where it tells of control groups, of version 1 or 2.
    Returns:
        bytes; half of the machine's memory where nothing says what is free.
    """
    free = [_machine_bytes(proc)]
    for version, place in _places(proc, groups):
        for folder in (place, *place.parents):
            free += _left(folder, *version)
            if folder in (groups, groups / "memory"):
                break
    return max(min(free), 0)


def _machine_bytes(proc: Path) -> int:
    with suppress(OSError, ValueError, IndexError):
        lines = [line.split() for line in (proc / "meminfo").read_text().splitlines()]
        return next(int(words[1]) * 1024 for words in lines if words[0] == "MemAvailable:")
    with suppress(AttributeError, ValueError, OSError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return _UNKNOWN


def _places(proc: Path, groups: Path) -> list[tuple[tuple[str, str, str], Path]]:
    """Folders of the groups that limit this process's memory; inside a container its own is the root."""
    found = []
    with suppress(OSError):
        for line in (proc / "self" / "cgroup").read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            if number == "0":
                found.append((_UNIFIED, groups / path.lstrip("/")))
            elif "memory" in controllers.split(","):
                found.append((_LEGACY, groups / "memory" / path.lstrip("/")))
    return found


def _left(folder: Path, most: str, used: str, reclaimable: str) -> list[int]:
    """What a group may still take; files that it has read and doesn't use give way. Nothing where it has no limit."""
    try:
        limit = int((folder / most).read_text())
        taken = int((folder / used).read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # "max", or no such group here
        return []
    return [limit - taken + int(stat.get(reclaimable, 0))] if limit < _UNLIMITED else []
