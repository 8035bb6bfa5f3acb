"""Horizontal bars as SVG, readable on white and on black: the picture itself asks which of the two it stands on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, LABELS, VALUES = 760, 230, 120
LINE, BAR, GAP = 22, 13, 18

STYLE = """
text { font: 12px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: #57606a }
.title { font-size: 15px; font-weight: 600; fill: #1f2328 }
.group { font-weight: 600; fill: #1f2328 }
.ours { fill: #1f2328; font-weight: 600 }
.end { text-anchor: end }
rect { fill: #afb8c1 }
rect.ours { fill: #0969da }
line { stroke: #57606a; stroke-width: 1.5 }
line.limit { stroke: #cf222e; stroke-dasharray: 3 3 }
@media (prefers-color-scheme: dark) {
  text { fill: #9198a1 }
  .title, .group, .ours { fill: #f0f6fc }
  rect { fill: #4d5560 }
  rect.ours { fill: #4493f8 }
  line { stroke: #9198a1 }
  line.limit { stroke: #f85149 }
}
"""


@dataclass(frozen=True)
class Bar:
    label: str
    value: float
    low: float
    high: float
    """The least and the most of the rounds: a thin line over the bar."""
    text: str
    ours: bool = False


@dataclass(frozen=True)
class Group:
    """Bars on a scale of their own, which begins at zero."""

    title: str
    bars: Sequence[Bar]
    limit: float | None = None
    """Where a dashed line stands."""


def chart(title: str, groups: Sequence[Group]) -> str:
    parts = [f'<text class="title" x="0" y="18">{escape(title)}</text>']
    y = 34
    for group in groups:
        y += GAP
        parts.append(f'<text class="group" x="0" y="{y}">{escape(group.title)}</text>')
        y += 8
        parts += _bars(group, y)
        y += LINE * len(group.bars)
    height = y + 8
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" aria-label="{escape(title)}">\n<style>{STYLE}</style>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _bars(group: Group, top: int) -> list[str]:
    most = max(*(bar.high for bar in group.bars), group.limit or 0.0)
    unit = (WIDTH - LABELS - VALUES) / most
    parts: list[str] = []
    for number, bar in enumerate(group.bars):
        y = top + number * LINE
        middle = y + LINE / 2
        kind = ' class="ours"' if bar.ours else ""
        end = LABELS + bar.value * unit
        low, high = (LABELS + value * unit for value in (bar.low, bar.high))
        parts += [
            f'<text class="{"ours end" if bar.ours else "end"}" x="{LABELS - 8}" y="{middle + 4}">'
            f"{escape(bar.label)}</text>",
            f'<rect{kind} x="{LABELS}" y="{middle - BAR / 2}" width="{max(1.0, end - LABELS):.1f}" height="{BAR}"/>',
            f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{middle}" y2="{middle}"/>',
            f'<text{kind} x="{max(end, high) + 8:.1f}" y="{middle + 4}">{escape(bar.text)}</text>',
        ]
    if group.limit is not None:
        x = f"{LABELS + group.limit * unit:.1f}"
        parts.append(f'<line class="limit" x1="{x}" x2="{x}" y1="{top}" y2="{top + LINE * len(group.bars)}"/>')
    return parts
