"""One process at a time in a folder: two would write their rows, checkpoints and demonstrations over each other's."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from difftop.options import ConfigError

log = logging.getLogger(__name__)


@contextmanager
def sole_owner(folder: Path) -> Iterator[None]:
    """Makes `folder`, and holds it while inside. The system lets go of it when the process ends, however it ends.

    Folders that it made, and in which nothing was written, are taken away again. Processes on other machines are seen where the
    disk they share passes locks on, as NFS does since Linux 2.6.12.

    Raises:
        ConfigError: another living process holds it, or it can't be made.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder}: can't be made ({error.strerror}); choose a folder to write to by root=FOLDER.") from error
    with ExitStack() as handles:
        try:
            _lock(folder, handles)
        except BlockingIOError as error:
            raise ConfigError(
                f"{folder}: another process is training this very run; wait for it, stop it, or choose another name=NAME."
            ) from error
        except OSError as error:
            log.warning("%s can't be locked (%s): don't start this run twice.", folder, error.strerror)
        try:
            yield
        finally:
            with suppress(OSError):  # one isn't empty
                for path in made:
                    path.rmdir()


@contextmanager
def in_turn(folder: Path, what: str) -> Iterator[None]:
    """Waits until no other process is inside with the same `folder`, which exists; says that it waits for `what`.

    Where the disk passes no locks on, nothing waits.
    """
    with ExitStack() as handles:
        with suppress(OSError):
            try:
                _lock(folder, handles)
            except BlockingIOError:
                log.info("waiting for another process that makes %s", what)
                _lock(folder, handles, wait=True)
        yield


def _lock(folder: Path, handles: ExitStack, wait: bool = False) -> None:
    """Locks the folder, or where its disk locks only what is open for writing, as NFS does, a file `.lock` in it.

    Raises:
        BlockingIOError: another process has it, and `wait` is false.
        OSError: the disk passes no locks on.
    """
    how = fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB)
    handle = os.open(folder, os.O_RDONLY)
    handles.callback(os.close, handle)
    try:
        fcntl.flock(handle, how)
    except BlockingIOError:
        raise
    except OSError:
        handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        handles.callback(os.close, handle)
        fcntl.flock(handle, how)
