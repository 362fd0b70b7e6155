"""`mode=compare` and `mode=status`: command lines to reports; train.py hands over its arguments."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from difftop.compare.config import compare_config, status_config
from difftop.compare.sweep import sweep_status, sweep_table
from difftop.key_values import parsed

log = logging.getLogger(__name__)


def compare_command(arguments: Sequence[str]) -> int:
    """`mode=compare KEY=VALUE ...`, keys of `CompareConfig`: writes the report, says where. Returns the exit status, 0.

    Raises:
        ConfigError, CompareError: see `compare`.
    """
    from difftop.compare.comparison import compare  # and Matplotlib, which the other one does without

    log.info("%s", compare(compare_config(parsed(arguments))).line())
    return 0


def status_command(arguments: Sequence[str]) -> int:
    """`mode=status KEY=VALUE ...`, keys of `StatusConfig`: prints the table of a sweep. Returns the exit status, 0.

    Raises:
        ConfigError: a key that isn't there, or a bad value.
    """
    config = status_config(parsed(arguments))
    sys.stdout.write(sweep_table(sweep_status(config), config.root))
    return 0
