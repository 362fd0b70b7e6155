"""The one entry point: `python train.py [OPTION=VALUE ...]`; `python train.py --help` explains it. Installed, it is `difftop`."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent


def guard_packages() -> None:
    """Exits where `agents` or `envs`, common names, are another package's."""
    for name in ("agents", "envs", "difftop"):
        found = importlib.util.find_spec(name)
        where = Path(found.origin).resolve().parent if found and found.origin else None
        if where != ROOT / name:
            sys.exit(
                f"error: `import {name}` finds {where or 'nothing'} instead of {ROOT / name}: another installed package has "
                "this name; give difftop an environment of its own with `make setup`."
            )


if __name__ == "__main__":
    guard_packages()
    from difftop.command import run_command

    run_command()
