"""Points of the plane as inline SVG."""

import math

import numpy as np

from facm.report.tags import Html, tag

POINTS = 1000  # drawn at most
PAIRS = 150  # of which the way from the teacher's point is drawn, at most
SIDE, EDGE = 300, 22
FAR = 1e9


def reach(sets: list[np.ndarray]) -> float:
    """Whole number to which all plots reach, so that they compare: beyond the 99th percentile of the coordinates."""
    values = [np.abs(points[np.isfinite(points).all(1)]) for points in sets]
    quantiles = [float(np.quantile(value, 0.99)) for value in values if value.size]
    return float(max(1, math.ceil(max(quantiles, default=1.0))))


def scatter(title: str, points: np.ndarray, limit: float, start: np.ndarray | None = None) -> Html:
    """A plot of the first points (N, D), first and last coordinate, in a square around 0.

    Args:
        title: what it shows, for those who do not see it.
        points: float32.
        limit: largest coordinate shown.
        start: (M, D): lines lead from its first points to those of `points`; None: no lines.
    """
    dots = "".join(f"M{x} {y}h0" for x, y in places(points[:POINTS], limit) if inside(x, y))
    ways = []
    if start is not None:
        num = min(PAIRS, len(points), len(start))
        both = zip(places(start[:num], limit), places(points[:num], limit), strict=True)
        ways = [f"M{a} {b}L{c} {d}" for (a, b), (c, d) in both if inside(a, b) and inside(c, d)]
    ticks = [limit * share for share in (-1, -0.5, 0, 0.5, 1)]
    across = [float(place(tick, limit)) for tick in ticks]
    labels = [
        tag("text", f"{tick:g}", class_="tick", x=x, y=SIDE - 6, text_anchor="middle")
        for tick, x in zip(ticks, across, strict=True)
    ]
    labels += [
        tag("text", f"{tick:g}", class_="tick", x=EDGE - 4, y=SIDE - x + 4, text_anchor="end")
        for tick, x in zip(ticks[1:], across[1:], strict=True)
    ]
    return tag(
        "svg",
        tag("title", title),
        tag("rect", class_="frame", x=EDGE, y=EDGE, width=SIDE - 2 * EDGE, height=SIDE - 2 * EDGE),
        tag("path", class_="dots", d=dots),
        *([tag("path", class_="ways", d="".join(ways))] if ways else []),
        *labels,
        viewBox=f"0 0 {SIDE} {SIDE}",
        role="img",
        aria_label=title,
        class_="square",
    )


def places(points: np.ndarray, limit: float) -> list[tuple[float, float]]:
    """Pixels of points; those that are not finite lie outside."""
    shown = points[:, [0, -1]].astype(np.float64)
    shown[~np.isfinite(shown)] = FAR
    return [(place(x, limit), round(SIDE - place(y, limit), 1)) for x, y in shown.tolist()]


def place(value: float, limit: float) -> float:
    """Pixel of a coordinate, from the left."""
    return round(EDGE + (value / limit + 1) / 2 * (SIDE - 2 * EDGE), 1)


def inside(x: float, y: float) -> bool:
    """Whether a pixel is in the frame."""
    return EDGE <= x <= SIDE - EDGE and EDGE <= y <= SIDE - EDGE
