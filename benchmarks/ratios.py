"""From figures to ratios and verdicts."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from .running import Series

MUST_BE_NONE = "lost", "twice"
"""What of ours misses the target, however good the figure is."""


@dataclass(frozen=True)
class Ratio:
    """One row: our figure next to a peer's. Without a peer, our figure stands for itself."""

    case: str
    title: str
    unit: str
    peer: str | None
    ours: float | None
    theirs: float | None
    ratio: float | None
    """The median of the rounds' own ratios, ours / theirs; None when no round has both figures, or without a peer."""
    limit: float | None
    """What the ratio, or without a peer our figure, may be at most, or has to be at least."""
    floor: bool
    """At least."""
    note: str
    """What went wrong, if anything did."""
    beside: dict[str, list[int | None]]
    """What has to be seen beside the figures, ours and the peer's: the most in any round, None where there is none."""

    @property
    def judged(self) -> float | None:
        """What is compared with the limit."""
        return self.ours if self.peer is None else self.ratio

    @property
    def verdict(self) -> str:
        if self.judged is None:
            return f"not run: {self.note}"
        parts = ["MISSED" if self.failed else ("" if self.limit is None else "met")]
        for name, figures in self.beside.items():
            parts.append(f"{name} {' and '.join('-' if figure is None else str(figure) for figure in figures)}")
        verdict = ", ".join(part for part in parts if part)
        return f"{verdict} ({self.note})".lstrip() if self.note else verdict

    @property
    def failed(self) -> bool:
        if any(self.beside.get(name, [0])[0] for name in MUST_BE_NONE):
            return True
        if self.judged is None or self.limit is None:
            return self.judged is None
        return self.judged < self.limit if self.floor else self.judged > self.limit


def ratios(series: Sequence[Series]) -> list[Ratio]:
    """A row for each comparison of each case, in their order."""
    found = {(one.case.name, one.peer.name): one for one in series}
    rows: list[Ratio] = []
    for case in dict.fromkeys(one.case for one in series):
        ours = found[case.name, "ours"]
        mine = _median(ours)
        if case.limit is not None or not case.comparisons:
            rows.append(
                Ratio(
                    case.name, case.title, case.unit, None, mine, None, None, case.limit, case.rate, _note(ours),
                    _beside(ours),
                )
            )  # fmt: skip
        for comparison in case.comparisons:
            peer = found[case.name, comparison.peer]
            both = [ours.figures[number] / peer.figures[number] for number in ours.figures.keys() & peer.figures.keys()]
            rows.append(
                Ratio(
                    case.name, case.title, case.unit, peer.peer.title, mine, _median(peer),
                    statistics.median(both) if both else None, comparison.limit, case.rate, _note(ours, peer),
                    _beside(ours, peer),
                )
            )  # fmt: skip
    return rows


def _median(series: Series) -> float | None:
    return statistics.median(series.figures.values()) * series.case.scale if series.figures else None


def _beside(*series: Series) -> dict[str, list[int | None]]:
    names = dict.fromkeys(name for one in series for beside in one.beside.values() for name in beside)
    return {
        name: [max((b[name] for b in one.beside.values() if name in b), default=None) for one in series]
        for name in names
    }


def _note(*series: Series) -> str:
    return "; ".join(f"{one.peer.name}: {one.failures[-1]}" for one in series if one.failures)
