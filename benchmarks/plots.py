"""The pictures for the README, one for each question that somebody may have."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from .cases import Case
from .running import Series
from .svg import Bar, Group, chart

PICTURES = {
    "checkout": ("Check-out and check-in: shorter is better", ("idle-", "contended-")),
    "query": ("Queries through the pool: shorter is better", ("query-", "rows-", "sleeps-")),
    "requests": ("1,000 requests that hold one of 30 connections for 0.1 to 0.5 s", ("requests-",)),
    "import": ("Import time: shorter is better", ("import",)),
    "fleet": ("Several processes and one budget", ("fleet-queries", "fleet-takeover", "fleet-kill")),
}


def write(directory: Path, series: Sequence[Series]) -> list[Path]:
    """Draw what was measured, without cases of which nothing was. Returns the files."""
    files: list[Path] = []
    for name, (title, prefixes) in PICTURES.items():
        cases = dict.fromkeys(one.case for one in series if one.case.name.startswith(prefixes) and one.figures)
        groups = [
            Group(
                _title(case),
                [_bar(one) for one in series if one.case is case and one.figures],
                case.limit,
            )
            for case in cases
        ]
        if groups:
            directory.mkdir(parents=True, exist_ok=True)
            files.append(directory / f"{name}.svg")
            files[-1].write_text(chart(title, groups))
    return files


def _title(case: Case) -> str:
    notes = ["µs" if case.unit == "us" else case.unit]
    if case.rate:
        notes.append("longer is better")
    if case.limit is not None:
        notes.append(f"dashed: {case.limit:g}")
    return f"{case.title} ({', '.join(notes)})"


def _bar(series: Series) -> Bar:
    figures = [figure * series.case.scale for figure in series.figures.values()]
    middle = statistics.median(figures)
    text = f"{middle:,.0f}" if middle >= 100 else f"{middle:.3g}"
    return Bar(series.peer.title, middle, min(figures), max(figures), text, ours=series.peer.name == "ours")
