"""One process at a time in a folder: two would write their rows, checkpoints and demonstrations over each other's."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
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
    finally:
        os.close(handle)


@contextmanager
def in_turn(folder: Path, what: str) -> Iterator[None]:
    """Waits until no other process is inside with the same `folder`, which exists; says that it waits for `what`.

    Where the disk passes no locks on, nothing waits.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.info("waiting for another process that makes %s", what)
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
