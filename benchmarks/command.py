"""The command line that benchmarks share."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping

import torch


def parse(description: str | None, quick: str = "small sizes: shows that it runs, measures nothing") -> argparse.Namespace:
    """The options `--quick` and `--json`; also sets torch to one thread."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--json", metavar="PATH", help="write the measures there")
    torch.set_num_threads(1)
    return parser.parse_args()


def save(measures: Mapping[str, float], path: str | None) -> None:
    """Writes `{measure: value}` where `--json` says, if it does."""
    if path:
        with open(path, "w") as file:
            json.dump(measures, file, indent=2)
