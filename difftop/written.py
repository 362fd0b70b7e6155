"""Small text files that a kill or a full disk can't leave half written."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Writes a text beside and renames it: under its name there is always all of the old text or all of the new.

    Raises:
        OSError: it can't be written; what was there before is still there.
    """
    partial = path.with_name(f".writing_{path.name}")
    try:
        partial.write_text(text)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
