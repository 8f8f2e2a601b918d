"""Figures as SVG, by matplotlib: the same bytes whenever they are made, light or dark as the reader's system is set.

No two series differ by colour alone: each has its dashes and its mark. One unit of a figure is a point of 1/72 inch.
"""

import io
import re
from collections.abc import Iterable
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLORS = ("#0b5e9e", "#b3410e", "#1f7a4d", "#7a3e9d", "#6b6b00", "#595959")
DARK = ("#7cc4f5", "#f5a97c", "#84d9a8", "#d3a8f0", "#d8d878", "#b3b3b3")
DASHES: tuple[Any, ...] = ("-", (0, (4, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)), (0, (2, 1)), (0, (5, 1, 1, 1, 1, 1)))
MARKS = ("o", "s", "D", "^", "X", "v")
GROUND, INK, AXIS, FAINT = "#ffffff", "#1c1c1c", "#767676", "#dfe3e6"
ON_DARK = dict(zip(COLORS, DARK, strict=True))
ON_DARK |= {GROUND: "#1b1e24", INK: "#ececec", AXIS: "#9a9a9a", FAINT: "#343a44"}
LABEL_HEIGHT = 13

matplotlib.rcParams |= {
    "svg.hashsalt": "facm",  # ids that are the same in every run
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": AXIS,
    "axes.labelcolor": INK,
    "axes.facecolor": GROUND,
    "figure.facecolor": GROUND,
    "text.color": INK,
    "xtick.color": AXIS,
    "ytick.color": AXIS,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.labelcolor": "linecolor",
    "legend.handlelength": 3,
    "lines.linewidth": 1.5,
    "lines.markersize": 5,
}


def new(width: float, height: float) -> Figure:
    """An empty figure of a size in points."""
    return Figure(figsize=(width / 72, height / 72), dpi=72)


def frame(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes in a frame at a place in points, from the lower left corner."""
    across, up = figure.get_size_inches() * 72
    return figure.add_axes((left / across, bottom / up, width / across, height / up))


def series(number: int, *, mark: bool = True) -> dict[str, Any]:
    """Colour, dashes and mark of a series."""
    k = number % len(COLORS)
    return {"color": COLORS[k], "linestyle": DASHES[k], "marker": MARKS[k] if mark else None}


def label_ends(axes: Axes, ends: Iterable[tuple[float, str, int]]) -> None:
    """Names and marks right of the axes, pushed apart where they would overlap; each is (y, name, series)."""
    right, above = axes.bbox.x1, float("inf")
    for y, name, number in sorted(ends, reverse=True):
        above = min(axes.transData.transform((axes.get_xlim()[0], y))[1], above - LABEL_HEIGHT)
        style = series(number)
        axes.plot([right + 8], [above], transform=None, clip_on=False, **style | {"linestyle": "none"})
        axes.annotate(name, (right + 16, above), xycoords="figure points", va="center", color=style["color"])


def svg(figure: Figure, title: str) -> str:
    """The file; `title` is read out where the figure is not seen."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Title": title, "Date": None, "Creator": None})
    rules = "".join(
        f'[style*="{kind}: {light}"]{{{kind}:{dark}!important}}\n'
        for light, dark in ON_DARK.items()
        for kind in ("fill", "stroke")
    )
    style = f"<style>@media (prefers-color-scheme: dark) {{\n{rules}}}</style>\n"
    text = file.getvalue()
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'\b(d|x|y)="[^"]*"', lambda places: re.sub(r"(\.\d\d)\d+", r"\1", places[0]), text)
    return text.replace("</title>\n", f"</title>\n {style}", 1)
