"""The candidates for alpha(t) and beta(t) (Fig. 3a) and the laws of t, from facm/flow/time.py."""

import math

import torch

from docs.figures.canvas import Canvas, Frame
from facm.flow.time import TIME_SAMPLERS, weighting

NAMES = {"one": "1", "power": "1 − √t", "cos": "cos(πt/2)"}
LAWS = {
    "arctan_lognormal": ("eq. 20, −0.8, 1.6 (distillation)", -0.8, 1.6),
    "logit_normal": ("logit normal, −1.1, 2 (ECT)", -1.1, 2.0),
    "uniform": ("uniform (teacher)", 0.0, 1.0),
}


def draw() -> str:
    """The picture."""
    canvas = Canvas(760, 330, "Left: the weightings 1, 1 − √t and cos(πt/2) over t. Right: the densities of t.")
    weights = Frame(50, 40, 300, 230)
    weights.draw(canvas, (0, 0.25, 0.5, 0.75, 1), (0, 0.5, 1), "t (0 noise, 1 data)", "weight α(t) or β(t)")
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    labels = {"one": (0.45, 0.94), "power": (0.3, 0.49), "cos": (0.62, 0.66)}
    for series, name in enumerate(NAMES):
        values = weighting(name, 0.5)(t)
        canvas.line(weights.all(list(zip(t.tolist(), values.tolist(), strict=True))), series)
        canvas.text(*weights.at(*labels[name]), NAMES[name], series=series)
    density = Frame(430, 40, 300, 230, y=(0, 4))
    density.draw(canvas, (0, 0.25, 0.5, 0.75, 1), (0, 1, 2, 3, 4), "t (0 noise, 1 data)", "density of t in training")
    places = ((0.05, 3.3), (0.05, 2.8), (0.05, 2.3))
    for series, (name, (label, mean, std)) in enumerate(LAWS.items()):
        normal = torch.linspace(-4, 4, 4001, dtype=torch.float64)
        time = TIME_SAMPLERS[name](normal, mean, std)
        phi = torch.exp(-(normal**2) / 2) / math.sqrt(2 * math.pi)
        slope = torch.gradient(time, spacing=(normal,))[0].abs()
        kept = [(a, b) for a, b in zip(time.tolist()[::20], (phi / slope).tolist()[::20], strict=True) if b <= 4]
        canvas.line(density.all(sorted(kept)), series)
        x, y = places[series]
        canvas.line(density.all([(x, y + 0.1), (x + 0.09, y + 0.1)]), series)
        canvas.text(*density.at(x + 0.11, y), label, size=12, series=series)
    return canvas.svg()
