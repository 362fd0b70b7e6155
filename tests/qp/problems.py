"""The benchmark's quadratic programs and independent solvers, under the name that tests use."""

from benchmarks.qp_problems import (
    XYZ_ROWS,
    Z_ROW,
    Problem,
    box_limits,
    clarabel_solve,
    duplicated,
    leto_limits,
    make,
    outside,
    pinned,
    residuals,
    with_signs,
)

__all__ = [
    "XYZ_ROWS",
    "Z_ROW",
    "Problem",
    "box_limits",
    "clarabel_solve",
    "duplicated",
    "leto_limits",
    "make",
    "outside",
    "pinned",
    "residuals",
    "with_signs",
]
