"""SVG by hand, the same bytes whenever it is drawn: on its own ground, light or dark as the reader's system is set.

No two series are told apart by colour alone: each has its dashes or its mark, and its name beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

LIGHT = ("#0b5e9e", "#b3410e", "#1f7a4d", "#7a3e9d", "#6b6b00")
DARK = ("#7cc4f5", "#f5a97c", "#84d9a8", "#d3a8f0", "#d8d878")
DASHES = ("", "7 4", "2 3", "10 3 2 3", "4 2")
STYLE = """\
.ground {{ fill: #ffffff }} .ink {{ fill: #1c1c1c }} .axis {{ stroke: #767676 }} .faint {{ fill: #dfe3e6 }}
{light}
@media (prefers-color-scheme: dark) {{
.ground {{ fill: #1b1e24 }} .ink {{ fill: #ececec }} .axis {{ stroke: #9a9a9a }} .faint {{ fill: #343a44 }}
{dark}
}}"""

Points = Sequence[tuple[float, float]]


def style() -> str:
    """The sheet: series s0, s1, ... as strokes, f0, f1, ... as fills."""

    def sheet(colors: Sequence[str]) -> str:
        return "\n".join(f".s{i} {{ stroke: {c} }} .f{i} {{ fill: {c} }}" for i, c in enumerate(colors))

    return STYLE.format(light=sheet(LIGHT), dark=sheet(DARK))


@dataclass
class Canvas:
    """What is drawn, in pixels from the upper left corner; `title` is read out where the picture is not seen."""

    width: int
    height: int
    title: str
    parts: list[str] = field(default_factory=list)

    def text(
        self, x: float, y: float, words: str, anchor: str = "start", size: int = 13, series: int | None = None
    ) -> None:
        """A label whose baseline begins, ends or has its middle at (x, y)."""
        color = "ink" if series is None else f"f{series}"
        place = f'x="{n(x)}" y="{n(y)}" font-size="{size}" text-anchor="{anchor}"'
        self.parts.append(f'<text class="{color}" {place}>{escape(words, quote=False)}</text>')

    def line(self, points: Points, series: int, width: float = 2, dashed: bool = True) -> None:
        """A curve."""
        dash = f' stroke-dasharray="{DASHES[series]}"' if dashed and DASHES[series] else ""
        self.parts.append(f'<path class="s{series}" d="{path(points)}" fill="none" stroke-width="{width:g}"{dash}/>')

    def axis(self, points: Points) -> None:
        """A thin grey line."""
        self.parts.append(f'<path class="axis" d="{path(points)}" fill="none"/>')

    def ellipse(self, x: float, y: float, rx: float, ry: float) -> None:
        """A faint disc."""
        self.parts.append(f'<ellipse class="faint" cx="{n(x)}" cy="{n(y)}" rx="{n(rx)}" ry="{n(ry)}"/>')

    def mark(self, x: float, y: float, series: int, size: float = 4) -> None:
        """A point: disc, square, diamond, ring or cross, by series."""
        s, d = size, 1.4 * size
        diamond = [(x, y - d), (x + d, y), (x, y + d), (x - d, y), (x, y - d)]
        ways = ([(x - s, y - s), (x + s, y + s)], [(x - s, y + s), (x + s, y - s)])
        shapes = (
            f'<circle class="f{series}" cx="{n(x)}" cy="{n(y)}" r="{s:g}"/>',
            f'<rect class="f{series}" x="{n(x - s)}" y="{n(y - s)}" width="{2 * s:g}" height="{2 * s:g}"/>',
            f'<path class="f{series}" d="{path(diamond)}"/>',
            f'<circle class="s{series}" cx="{n(x)}" cy="{n(y)}" r="{s:g}" fill="none" stroke-width="2"/>',
            f'<path class="s{series}" d="{path(ways[0])}{path(ways[1])}" stroke-width="2"/>',
        )
        self.parts.append(shapes[series % len(shapes)])

    def svg(self) -> str:
        """The file."""
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" width="{self.width}" '
        head += f'height="{self.height}" font-family="system-ui, sans-serif" role="img">'
        ground = '<rect class="ground" width="100%" height="100%" rx="6"/>'
        title = f"<title>{escape(self.title, quote=False)}</title>"
        return "\n".join([head, title, f"<style>{style()}</style>", ground, *self.parts, "</svg>"]) + "\n"


@dataclass(frozen=True)
class Frame:
    """A pair of axes: where data coordinates lie on a canvas."""

    left: float
    top: float
    width: float
    height: float
    x: tuple[float, float] = (0.0, 1.0)
    y: tuple[float, float] = (0.0, 1.0)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Pixels of a point."""
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return self.left + across * self.width, self.top + (1 - up) * self.height

    def all(self, points: Points) -> Points:
        """Pixels of points."""
        return [self.at(x, y) for x, y in points]

    def draw(self, canvas: Canvas, xs: Sequence[float], ys: Sequence[float], x: str, y: str) -> None:
        """Axes with ticks and what they show."""
        bottom, right = self.top + self.height, self.left + self.width
        canvas.axis([(self.left, self.top), (self.left, bottom), (right, bottom)])
        for value in xs:
            at = self.at(value, self.y[0])[0]
            canvas.axis([(at, bottom), (at, bottom + 4)])
            canvas.text(at, bottom + 18, f"{value:g}", "middle", 12)
        for value in ys:
            at = self.at(self.x[0], value)[1]
            canvas.axis([(self.left - 4, at), (self.left, at)])
            canvas.text(self.left - 8, at + 4, f"{value:g}", "end", 12)
        canvas.text(self.left + self.width / 2, bottom + 36, x, "middle")
        canvas.text(self.left, self.top - 10, y, "start")


def n(value: float) -> str:
    """A coordinate, to a tenth of a pixel."""
    return f"{round(float(value), 1) + 0.0:g}"


def path(points: Points) -> str:
    """A line through points."""
    return "M" + "L".join(f"{n(x)} {n(y)}" for x, y in points)
