"""Curves of a study whose cells lie along an axis: a curve per metric and series, with the spread over seeds."""

import math

from studies.plan import Study
from studies.svg import COLORS, Entries, mark, start, text

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 420, 60, 230, 20, 40

Curve = list[tuple[float, float, float]]  # x, mean, standard deviation


def lines(study: Study, entries: Entries) -> dict[str, Curve]:
    """Curves by label: the cells called alike up to their last `_`, by metric."""
    found: dict[str, Curve] = {}
    for name, x in (study.curve or {}).items():
        for metric in study.metrics:
            e = entries[name][metric]
            if e.mean is not None:
                label = f"{name.rpartition('_')[0]}, {metric.removeprefix('student.')}"
                found.setdefault(label, []).append((x, e.mean, e.sd or 0.0))
    return {label: sorted(curve) for label, curve in found.items()}


def svg(study: Study, entries: Entries) -> str:
    """The plot: x logarithmic, y from zero."""
    curves, parts = lines(study, entries), start(WIDTH, HEIGHT)
    xs = sorted({x for x in (study.curve or {}).values()})
    top = max((mean + sd for curve in curves.values() for _, mean, sd in curve), default=1.0) * 1.05
    span = math.log(xs[-1] / xs[0]) or 1.0

    def across(x: float) -> float:
        return round(LEFT + 15 + math.log(x / xs[0]) / span * (WIDTH - LEFT - RIGHT - 30), 1)

    def up(value: float) -> float:
        return round(HEIGHT - BOTTOM - value / top * (HEIGHT - TOP - BOTTOM), 1)

    parts.append(f'<path d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}" fill="none" stroke="#888"/>')
    parts += [text(LEFT - 6, up(top * i / 4) + 4, f"{top * i / 4:.2f}", "end") for i in range(5)]
    parts += [text(across(x), HEIGHT - BOTTOM + 18, f"{x:g}", "middle") for x in xs]
    for number, (label, curve) in enumerate(curves.items()):
        color = COLORS[number % len(COLORS)]
        points = "L".join(f"{across(x)} {up(mean)}" for x, mean, _ in curve)
        parts.append(f'<path d="M{points}" fill="none" stroke="{color}"/>')
        for x, mean, sd in curve:
            parts.append(f'<path d="M{across(x)} {up(mean - sd)}V{up(mean + sd)}" stroke="{color}"/>')
            parts.append(mark(number, across(x), up(mean)))
        y = TOP + 12 + 18 * number
        parts += [mark(number, WIDTH - RIGHT + 16, y - 4), text(WIDTH - RIGHT + 26, y, label, "start")]
    return "\n".join([*parts, "</svg>"]) + "\n"
