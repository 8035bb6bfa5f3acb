"""From figures to ratios and verdicts."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from .running import Series


@dataclass(frozen=True)
class Ratio:
    """One row: our figure next to a peer's. Without a peer, our figure is the ratio."""

    case: str
    title: str
    unit: str
    peer: str | None
    ours: float | None
    theirs: float | None
    ratio: float | None
    """The median of the rounds' own ratios, ours / theirs; None when no round has both figures."""
    limit: float | None
    note: str
    """What went wrong, if anything did."""

    @property
    def verdict(self) -> str:
        if self.ratio is None:
            return f"not run: {self.note}"
        verdict = "" if self.limit is None else ("met" if self.ratio <= self.limit else "MISSED")
        return f"{verdict} ({self.note})".lstrip() if self.note else verdict

    @property
    def failed(self) -> bool:
        return self.ratio is None or (self.limit is not None and self.ratio > self.limit)


def ratios(series: Sequence[Series]) -> list[Ratio]:
    """A row for each comparison of each case, in their order."""
    found = {(one.case.name, one.peer.name): one for one in series}
    rows: list[Ratio] = []
    for case in dict.fromkeys(one.case for one in series):
        ours = found[case.name, "ours"]
        mine = _median(ours)
        if case.limit is not None:
            own = None if mine is None else mine / case.scale
            rows.append(Ratio(case.name, case.title, case.unit, None, mine, None, own, case.limit, _note(ours)))
        for comparison in case.comparisons:
            peer = found[case.name, comparison.peer]
            both = [ours.figures[number] / peer.figures[number] for number in ours.figures.keys() & peer.figures.keys()]
            rows.append(
                Ratio(
                    case.name, case.title, case.unit, peer.peer.title, mine, _median(peer),
                    statistics.median(both) if both else None, comparison.limit, _note(ours, peer),
                )
            )  # fmt: skip
    return rows


def _median(series: Series) -> float | None:
    return statistics.median(series.figures.values()) * series.case.scale if series.figures else None


def _note(*series: Series) -> str:
    return "; ".join(f"{one.peer.name}: {one.failures[-1]}" for one in series if one.failures)
