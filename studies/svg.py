"""What the plots of studies share: SVG written by hand, readable without colour, since no two curves share a mark."""

from html import escape

from studies.results import Entry

Entries = dict[str, dict[str, Entry]]  # by cell, by metric
COLORS = ("#1b6ca8", "#c8553d", "#5b8c5a", "#7d5ba6", "#8a6d1f", "#3b3b3b", "#b0447f", "#2f8f8f")


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
