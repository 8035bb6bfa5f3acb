"""The table that is printed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from .ratios import Ratio

EXPLANATION = "ratio = ours / peer, the median of the rounds' own ratios: below 1 ours takes less, of a rate it is less"
FIRST = 56
CELLS = "{:>9}{:>9}{:>8}{:>10}  {}"


def table(rows: Sequence[Ratio]) -> str:
    lines = [EXPLANATION]
    for (title, unit), group in groupby(rows, lambda row: (row.title, row.unit)):
        lines += ["", f"{title}, {unit}".ljust(FIRST) + CELLS.format("ours", "peer", "ratio", "target", "")]
        lines += [_line(row) for row in group]
    return "\n".join(line.rstrip() for line in lines)


def _line(row: Ratio) -> str:
    cells = CELLS.format(
        _figure(row.ours),
        _figure(row.theirs),
        "-" if row.ratio is None else f"{row.ratio:.3f}",
        "" if row.limit is None else f"{'>=' if row.floor else '<='} {row.limit:g}",
        row.verdict,
    )
    return f"    {row.peer or ''}".ljust(FIRST) + cells


def _figure(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.4g}"
