"""Line charts as inline SVG, readable without colour: each line has its own dash and its own mark.

Colours are Okabe and Ito's, set by the page's style (classes `line0` ...), which has others for dark screens.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from facm.report.tags import Html, join, tag

COLORS = 6  # classes of the style
DASHES = ("", "7 3", "2 3", "9 3 2 3", "12 4", "4 4")
LEVELS = ("8 4", "2 4", "8 4 2 4", "5 7")
MARKED = 10  # marks on a line, about
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 10, 36
FAR = 20.0  # largest / smallest value from which on the axis is logarithmic


@dataclass(frozen=True)
class Line:
    """One line.

    Attributes:
        label: its words in the legend.
        points: x, y and half the length of the bar (0: none).
        style: number of its colour, dash and mark.
        level: drawn from side to side, at the y of its only point, without a mark.
    """

    label: str
    points: tuple[tuple[float, float, float], ...]
    style: int
    level: bool = False


@dataclass(frozen=True)
class Axis:
    """From values to pixels.

    Attributes:
        low, high: the values at the ends.
        log: logarithmic.
        start, end: the pixels at the ends.
        inset: pixels between them and the frame.
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
        """Round values between the ends; of a logarithmic axis powers of ten, and 2 and 5 times them where few."""
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
    """The next of 1, 2, 5 times a power of ten that is not below."""
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
) -> Html:
    """A chart; lines of which nothing is finite are left out.

    Args:
        title: what it shows, for those who do not see it.
        lines: at least one.
        x_label: what goes to the right.
        size: width and height, in pixels of a phone.
        at: ticks of x, which is then logarithmic; else x is linear.
        zero: the y axis starts at 0 unless it is logarithmic.
        linear: the y axis is linear, however far the values reach.
    """
    width, height = size
    shown = [line for line in map(finite, lines) if line.points]
    if not shown:
        return tag("p", f"{title}: no finite value.")
    x, y = _axes(shown, size, at, zero, linear)
    return tag(
        "svg",
        tag("title", title),
        *(_grid(y, tick, width) for tick in y.ticks()),
        tag("path", class_="axis", d=f"M{LEFT} {TOP}V{height - BOTTOM}H{width - RIGHT}"),
        *(
            tag("text", short(tick), class_="tick", x=x(tick), y=height - BOTTOM + 15, text_anchor="middle")
            for tick in (at or x.ticks(4))
        ),
        tag("text", x_label, class_="tick", x=(LEFT + width - RIGHT) / 2, y=height - 4, text_anchor="middle"),
        *(_draw(line, x, y) for line in shown),
        viewBox=f"0 0 {width} {height}",
        role="img",
        aria_label=title,
    )


def finite(line: Line) -> Line:
    """The line without its points that are not finite."""
    return Line(line.label, tuple(p for p in line.points if all(map(math.isfinite, p))), line.style, line.level)


def legend(lines: Sequence[Line]) -> Html:
    """A list of the lines' marks and labels, one entry per style and label; it wraps on a narrow screen."""
    entries = {(line.style, line.label, line.level): line for line in lines}
    return tag("ul", *(tag("li", swatch(line), line.label) for line in entries.values()), class_="legend")


def swatch(line: Line) -> Html:
    """A short piece of the line."""
    drawn = tag("path", class_=f"line{line.style % COLORS}", d="M1 7H33", stroke_dasharray=dash(line))
    marked = "" if line.level else mark(line.style, 17, 7)
    return tag("svg", drawn, marked, viewBox="0 0 34 14", class_="swatch", aria_hidden="true")


def dash(line: Line) -> str | None:
    """The line's dashes; None: it is solid. Levels are dotted, each in its own way."""
    if line.level:
        return LEVELS[line.style % len(LEVELS)]
    return DASHES[line.style % len(DASHES)] or None


def mark(style: int, x: float, y: float) -> Html:
    """Disc, square, triangle, diamond, ring or cross."""
    paths = (
        f"M{x - 3.2:g} {y:g}a3.2 3.2 0 1 0 6.4 0a3.2 3.2 0 1 0 -6.4 0z",
        f"M{x - 3:g} {y - 3:g}h6v6h-6z",
        f"M{x:g} {y - 4:g}l4 7h-8z",
        f"M{x:g} {y - 4.4:g}l4.4 4.4l-4.4 4.4l-4.4 -4.4z",
        f"M{x - 3.2:g} {y:g}a3.2 3.2 0 1 0 6.4 0a3.2 3.2 0 1 0 -6.4 0z",
        f"M{x - 3.5:g} {y - 3.5:g}l7 7m0 -7l-7 7",
    )
    kind = "mark hollow" if style % len(paths) >= 4 else "mark"
    return tag("path", class_=f"{kind} line{style % COLORS}", d=paths[style % len(paths)])


def short(value: float) -> str:
    """A tick's number."""
    return (
        f"{value:.10g}"
        if 1e-3 <= abs(value) < 1e5 or not value
        else f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    )


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


def _grid(y: Axis, tick: float, width: int) -> Html:
    line = tag("path", class_="grid", d=f"M{LEFT} {y(tick)}H{width - RIGHT}")
    return join(line, tag("text", short(tick), class_="tick", x=LEFT - 6, y=y(tick) + 4, text_anchor="end"))


def _draw(line: Line, x: Axis, y: Axis) -> Html:
    color = f"line{line.style % COLORS}"
    if line.level:
        return tag(
            "path", class_=color, d=f"M{LEFT} {y(line.points[0][1])}H{x.end + x.inset:g}", stroke_dasharray=dash(line)
        )
    places = [(x(px), y(py)) for px, py, _ in line.points]
    steps = "L".join(f"{px:g} {py:g}" for px, py in places)
    drawn = [tag("path", class_=color, d=f"M{steps}", stroke_dasharray=dash(line))]
    for (px, _), (_, py, bar) in zip(places, line.points, strict=True):
        if bar:
            low = max(py - bar, y.low) if y.log else py - bar
            drawn.append(tag("path", class_=color, d=f"M{px:g} {y(low):g}V{y(py + bar):g}"))
    every = max(1, len(places) // MARKED)
    drawn += [mark(line.style, *place) for place in places[::every]]
    return join(*drawn)


def spans(values: Sequence[float]) -> bool:
    """Whether values differ at all."""
    return any(a != b for a, b in pairwise(values))
