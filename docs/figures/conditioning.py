"""How one network is asked for two velocities (Fig. 2): `c_cm` and `c_fm` of facm/flow/path.py over t."""

from collections.abc import Callable

import torch
from torch import Tensor

from docs.figures.canvas import Canvas, Frame
from facm.flow.path import Condition, c_cm, c_fm

T = torch.linspace(0, 1, 11, dtype=torch.float64)
SHORTCUT = "average velocity to the data (the shortcut)"
ANCHOR = "velocity at this place (the anchor)"
EXAMPLE = torch.tensor([0.3], dtype=torch.float64)


def draw() -> str:
    """The picture."""
    canvas = Canvas(
        760, 390, "Left: expanded interval, c_CM = t and c_FM = 2 − t. Right: auxiliary, (t, 1) and (t, t)."
    )
    expanded = Frame(60, 50, 290, 230, y=(0, 2))
    expanded.draw(
        canvas, (0, 0.3, 1), (0, 0.3, 1, 1.7, 2), "t, where x_t lies", "expanded: what the network gets for t"
    )
    auxiliary = Frame(440, 50, 290, 230)
    auxiliary.draw(canvas, (0, 0.3, 1), (0, 0.3, 1), "t, where x_t lies", "auxiliary: what it gets for r beside t")
    for series, (condition, label, words) in enumerate(((c_cm, "c_CM", SHORTCUT), (c_fm, "c_FM", ANCHOR))):
        canvas.line(expanded.all(list(zip(T.tolist(), condition(T, "expanded").t.tolist(), strict=True))), series)
        canvas.line(auxiliary.all(_with_r(condition, T)), series)
        canvas.mark(*expanded.at(0.3, float(condition(EXAMPLE, "expanded").t)), series, 5)
        canvas.mark(*auxiliary.all(_with_r(condition, EXAMPLE))[0], series, 5)
        y = 346 + 22 * series
        canvas.line([(60, y), (90, y)], series)
        canvas.mark(75, y, series)
        canvas.text(98, y + 5, f"{label}: {words}", series=series)
    canvas.text(*expanded.at(0.35, 0.22), "c_CM = t", series=0)
    canvas.text(*expanded.at(0.35, 1.75), "c_FM = 2 − t", series=1)
    canvas.text(*auxiliary.at(0.35, 0.93), "c_CM = (t, 1)", series=0)
    canvas.text(*auxiliary.at(0.5, 0.4), "c_FM = (t, t)", series=1)
    return canvas.svg()


def _with_r(condition: Callable[[Tensor, str], Condition], t: Tensor) -> list[tuple[float, float]]:
    c = condition(t, "auxiliary")
    return [] if c.r is None else list(zip(c.t.tolist(), c.r.tolist(), strict=True))
