"""Charts as inline SVG: lines over an axis, readable without colour (each has its dash and its mark), and points.

templates/style.css sets the colours (classes `line0` ...), with others for dark screens.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from markupsafe import Markup

from facm.report.html import paragraph

COLORS = 6  # classes of style.css
DASHES = ("", "7 3", "2 3", "9 3 2 3", "12 4", "4 4")
LEVELS = ("8 4", "2 4", "8 4 2 4", "5 7")
MARKS = 10  # of a line, about
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 10, 36
FAR = 20.0  # the axis is logarithmic where the largest value exceeds this many times the smallest
SIDE, EDGE = 300, 22  # of a scatter plot and its margin, in pixels
POINTS = 1000  # shown at most
PAIRS = 150  # lines from the teacher's points to the student's, at most
OUTSIDE = 1e9
PATH = Markup('<path class="{}" d="{}"{}/>')
TICK = Markup('<text class="tick" x="{}" y="{}" text-anchor="{}">{}</text>')


@dataclass(frozen=True)
class Line:
    """One line.

    Attributes:
        label: its name in the legend.
        points: x, y and half the length of the error bar (0: none).
        style: number of its colour, dash and mark.
        level: a horizontal line at the y of its only point, without a mark.
    """

    label: str
    points: tuple[tuple[float, float, float], ...]
    style: int
    level: bool = False


@dataclass(frozen=True)
class Axis:
    """Maps values to pixels.

    Attributes:
        low, high: values at the ends.
        start, end: pixels at the ends.
        inset: pixels between the ends and the frame.
    """

    low: float
    high: float
    log: bool
    start: float
    end: float
    inset: int = 0

    def __call__(self, value: float) -> float:
        """Pixel of a value, with one decimal."""
        along: Callable[[float], float] = math.log if self.log else float
        share = (along(value) - along(self.low)) / ((along(self.high) - along(self.low)) or 1.0)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self, most: int = 5) -> list[float]:
        """Round values between the ends; on a logarithmic axis 1, 2, 5 or 1, 3 times powers of ten."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for factors in ((1, 2, 5), (1, 3), (1,)):
                found = [f * 10.0**p for p in powers for f in factors if self.low <= f * 10.0**p <= self.high]
                if len(found) <= most + 1:
                    break
            every = max(1, math.ceil(len(found) / (most + 1)))
            return found[::every]
        step = nice((self.high - self.low) / most or 1.0)
        return [step * i for i in range(math.ceil(self.low / step), math.floor(self.high / step + 1e-9) + 1)]


def nice(step: float) -> float:
    """The least of 1, 2, 5 times a power of ten that is not below `step`."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-9))


def chart(
    title: str,
    lines: Sequence[Line],
    *,
    x_label: str,
    size: tuple[int, int] = (330, 210),
    at: Sequence[float] = (),
    zero: bool = False,
    linear: bool = False,
) -> Markup:
    """A chart of lines; their points that are not finite are left out.

    Args:
        title: what it shows, for those who do not see it.
        lines: at least one.
        x_label: what goes to the right.
        size: width and height, in pixels on a phone.
        at: ticks of x, which is then logarithmic; else x is linear.
        zero: the y axis starts at 0 unless it is logarithmic.
        linear: the y axis is linear, however far the values reach.
    """
    width, height = size
    shown = [line for line in map(finite, lines) if line.points]
    if not shown:
        return paragraph(f"{title}: no finite value.")
    x, y = _axes(shown, size, at, zero, linear)
    bottom, right = height - BOTTOM, width - RIGHT
    parts = [
        path("grid", f"M{LEFT} {y(tick)}H{right}") + TICK.format(LEFT - 6, y(tick) + 4, "end", short(tick))
        for tick in y.ticks()
    ]
    parts.append(path("axis", f"M{LEFT} {TOP}V{bottom}H{right}"))
    parts += [TICK.format(x(tick), bottom + 15, "middle", short(tick)) for tick in at or x.ticks(4)]
    parts.append(TICK.format((LEFT + right) / 2, height - 4, "middle", x_label))
    return svg(title, size, [*parts, *(_line(line, x, y) for line in shown)])


def svg(title: str, size: tuple[int, int], parts: Sequence[Markup], kind: str = "chart") -> Markup:
    """A drawing that names itself to those who do not see it."""
    head = Markup('<svg class="{}" viewBox="0 0 {} {}" role="img" aria-label="{}"><title>{}</title>')
    return head.format(kind, *size, title, title) + Markup("").join(parts) + Markup("</svg>")


def path(kind: str, steps: str, dashes: str = "") -> Markup:
    """A stroke of a class of style.css."""
    return PATH.format(kind, steps, Markup(' stroke-dasharray="{}"').format(dashes) if dashes else "")


def finite(line: Line) -> Line:
    """The line without its points that are not finite."""
    return replace(line, points=tuple(p for p in line.points if all(map(math.isfinite, p))))


def legend(lines: Sequence[Line]) -> Markup:
    """A list of the lines' swatches and labels, each look once; it wraps on a narrow screen."""
    entries = {(line.style, line.label, line.level): line for line in lines}
    items = (Markup("<li>{}{}</li>").format(swatch(line), line.label) for line in entries.values())
    return Markup('<ul class="legend">{}</ul>').format(Markup("").join(items))


def swatch(line: Line) -> Markup:
    """A short piece of the line."""
    piece = path(color(line), "M1 7H33", dash(line)) + (Markup() if line.level else mark(line.style, 17, 7))
    return Markup('<svg class="swatch" viewBox="0 0 34 14" aria-hidden="true">{}</svg>').format(piece)


def color(line: Line) -> str:
    """The line's class of style.css."""
    return f"line{line.style % COLORS}"


def dash(line: Line) -> str:
    """The line's dashes; empty: it is solid."""
    kinds = LEVELS if line.level else DASHES
    return kinds[line.style % len(kinds)]


def mark(style: int, x: float, y: float) -> Markup:
    """Disc, square, triangle, diamond, ring or cross."""
    disc = f"M{x - 3.2:g} {y:g}a3.2 3.2 0 1 0 6.4 0a3.2 3.2 0 1 0 -6.4 0z"
    shapes = (
        disc,
        f"M{x - 3:g} {y - 3:g}h6v6h-6z",
        f"M{x:g} {y - 4:g}l4 7h-8z",
        f"M{x:g} {y - 4.4:g}l4.4 4.4l-4.4 4.4l-4.4 -4.4z",
        disc,
        f"M{x - 3.5:g} {y - 3.5:g}l7 7m0 -7l-7 7",
    )
    hollow = " hollow" if style % len(shapes) >= 4 else ""
    return path(f"mark{hollow} line{style % COLORS}", shapes[style % len(shapes)])


def short(value: float) -> str:
    """A tick's number."""
    if 1e-3 <= abs(value) < 1e5 or not value:
        return f"{value:.10g}"
    return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")


def spans(values: Sequence[float]) -> bool:
    """Whether values differ at all."""
    return any(a != b for a, b in pairwise(values))


def _axes(lines: list[Line], size: tuple[int, int], at: Sequence[float], zero: bool, linear: bool) -> tuple[Axis, Axis]:
    width, height = size
    xs = [*at, *(p[0] for line in lines if not line.level for p in line.points)] or [0.0, 1.0]
    lows = [y - bar for line in lines for _, y, bar in line.points]
    highs = [y + bar for line in lines for _, y, bar in line.points]
    ys = [y for line in lines for _, y, _ in line.points]
    log = not linear and min(ys) > 0 and max(ys) / min(ys) > FAR
    if log:
        low, high = min([*ys, *(v for v in lows if v > 0)]) / 1.1, max(highs) * 1.1
    else:
        low, high = min([*lows, *([0.0] if zero else [])]), max([*highs, *([0.0] if zero else [])])
        pad = (high - low or abs(high) or 1.0) * 0.05
        low, high = (low if zero and low == 0 else low - pad), high + pad
    inset = 12 if at else 4
    x = Axis(min(xs), max(xs), bool(at), LEFT + inset, width - RIGHT - inset, inset)
    return x, Axis(low, high, log, height - BOTTOM, TOP)


def _line(line: Line, x: Axis, y: Axis) -> Markup:
    """The stroke, error bars and marks of a line."""
    if line.level:
        return path(color(line), f"M{LEFT} {y(line.points[0][1])}H{x.end + x.inset:g}", dash(line))
    places = [(x(px), y(py)) for px, py, _ in line.points]
    parts = [path(color(line), "M" + "L".join(f"{px:g} {py:g}" for px, py in places), dash(line))]
    for (px, _), (_, py, bar) in zip(places, line.points, strict=True):
        if bar:
            low = max(py - bar, y.low) if y.log else py - bar
            parts.append(path(color(line), f"M{px:g} {y(low):g}V{y(py + bar):g}"))
    every = max(1, len(places) // MARKS)
    return Markup("").join([*parts, *(mark(line.style, *place) for place in places[::every])])


# Points of the plane


def scatter(title: str, points: np.ndarray, limit: float, start: np.ndarray | None = None) -> Markup:
    """A plot of the first points (N, D), first and last coordinate, in a square around 0.

    Args:
        title: what it shows, for those who do not see it.
        points: float32.
        limit: largest coordinate shown.
        start: (M, D): lines lead from its first points to those of `points`; None: no lines.
    """
    inner = SIDE - 2 * EDGE
    frame = Markup('<rect class="frame" x="{}" y="{}" width="{}" height="{}"/>').format(EDGE, EDGE, inner, inner)
    dots = "".join(f"M{x} {y}h0" for x, y in places(points[:POINTS], limit) if inside(x, y))
    parts = [frame, path("dots", dots)]
    if start is not None:
        num = min(PAIRS, len(points), len(start))
        both = zip(places(start[:num], limit), places(points[:num], limit), strict=True)
        ways = [f"M{a} {b}L{c} {d}" for (a, b), (c, d) in both if inside(a, b) and inside(c, d)]
        parts += [path("ways", "".join(ways))] if ways else []
    for share in (-1, -0.5, 0, 0.5, 1):
        tick, x = f"{limit * share:g}", place(limit * share, limit)
        parts.append(TICK.format(x, SIDE - 6, "middle", tick))
        if share > -1:
            parts.append(TICK.format(EDGE - 4, SIDE - x + 4, "end", tick))
    return svg(title, (SIDE, SIDE), parts, "square")


def reach(sets: list[np.ndarray]) -> float:
    """Limit that all plots share, so that they compare: beyond the 99th percentile of the coordinates."""
    values = [np.abs(points[np.isfinite(points).all(1)]) for points in sets]
    quantiles = [float(np.quantile(value, 0.99)) for value in values if value.size]
    return float(max(1, math.ceil(max(quantiles, default=1.0))))


def places(points: np.ndarray, limit: float) -> list[tuple[float, float]]:
    """Pixels of points; those that are not finite lie outside."""
    shown = points[:, [0, -1]].astype(np.float64)
    shown[~np.isfinite(shown)] = OUTSIDE
    return [(place(x, limit), round(SIDE - place(y, limit), 1)) for x, y in shown.tolist()]


def place(value: float, limit: float) -> float:
    """Pixel of a coordinate, from the left."""
    return round(EDGE + (value / limit + 1) / 2 * (SIDE - 2 * EDGE), 1)


def inside(x: float, y: float) -> bool:
    """Whether a pixel is in the frame."""
    return EDGE <= x <= SIDE - EDGE and EDGE <= y <= SIDE - EDGE
