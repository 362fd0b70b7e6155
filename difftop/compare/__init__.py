"""Comparison: run folders and published curves in, one HTML page and a Markdown report out. See docs/compare.md."""

from difftop.compare.command import compare_command, status_command
from difftop.compare.comparison import Report, compare
from difftop.compare.config import CompareConfig, StatusConfig, compare_config, status_config
from difftop.compare.curves import CompareError
from difftop.compare.sweep import sweep_status, sweep_table

__all__ = [
    "CompareConfig",
    "CompareError",
    "Report",
    "StatusConfig",
    "compare",
    "compare_command",
    "compare_config",
    "status_command",
    "status_config",
    "sweep_status",
    "sweep_table",
]
