"""What the plots of studies share: SVG written by hand, readable without colour, since no two curves share a mark."""

import math
from dataclasses import dataclass
from html import escape

from studies.results import Entry

Entries = dict[str, dict[str, Entry]]  # by cell, by metric
COLORS = ("#1b6ca8", "#c8553d", "#5b8c5a", "#7d5ba6", "#8a6d1f", "#3b3b3b", "#b0447f", "#2f8f8f")


FAR = 5.0  # means further apart than this factor stand on a logarithmic axis


@dataclass(frozen=True)
class Axis:
    """An axis of the values `low` to `high`: from zero, or logarithmic.

    Attributes:
        low: value at its start.
        high: value at its end.
        log: whether it is logarithmic.
    """

    low: float
    high: float
    log: bool

    @classmethod
    def of(cls, entries: Entries) -> "Axis":
        """For all means with their spread; logarithmic where means are more than FAR times apart, all above zero."""
        known = [e for cell in entries.values() for e in cell.values() if e.mean is not None]
        means = [e.mean for e in known if e.mean is not None]
        high = max((e.mean + (e.sd or 0) for e in known if e.mean is not None), default=1.0) * 1.05 or 1.0
        if means and 0 < min(means) * FAR < max(means):
            return cls(min(means) / 1.5, high, log=True)
        return cls(0.0, high, log=False)

    def share(self, value: float) -> float:
        """Where a value stands: 0 at the start (and below it), 1 at the end."""
        if self.log:
            return math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        return (max(value, self.low) - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Values to write beside it."""
        if not self.log:
            return [self.high * i / 4 for i in range(5)]
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        return [v for power in powers for v in (10.0**power, 3 * 10.0**power) if self.low <= v <= self.high]

    def told(self, value: float) -> str:
        """A tick in words."""
        return f"{value:g}" if self.log else f"{value:.2f}"


def start(width: int, height: int) -> list[str]:
    """The opening tag and a white ground."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif">'
    return [head, '<rect width="100%" height="100%" fill="white"/>']


def text(x: float, y: float, words: str, anchor: str) -> str:
    """A label."""
    return f'<text x="{x}" y="{y}" font-size="12" text-anchor="{anchor}">{escape(words)}</text>'


def mark(number: int, x: float, y: float) -> str:
    """A point: disc, square, diamond or ring, by number."""
    color = COLORS[number % len(COLORS)]
    shapes = (
        f'<circle cx="{x}" cy="{y}" r="3.5" fill="{color}"/>',
        f'<rect x="{x - 3}" y="{y - 3}" width="6" height="6" fill="{color}"/>',
        f'<path d="M{x} {y - 4.5}l4.5 4.5l-4.5 4.5l-4.5 -4.5z" fill="{color}"/>',
        f'<circle cx="{x}" cy="{y}" r="3.5" fill="white" stroke="{color}" stroke-width="1.5"/>',
    )
    return shapes[number % len(shapes)]
