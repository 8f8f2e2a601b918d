"""The candidates for alpha(t) and beta(t) (Fig. 3a) and the laws of t, from facm/flow/time.py."""

import math

import torch

from facm.flow.time import TIME_SAMPLERS, weighting
from studies import figure

NAMES = {"one": "1", "power": "1 − √t", "cos": "cos(πt/2)"}
LABELS = ((0.45, 0.93), (0.32, 0.49), (0.62, 0.66))
LAWS = {
    "arctan_lognormal": ("eq. 20, −0.8, 1.6 (distillation)", -0.8, 1.6),
    "logit_normal": ("logit normal, −1.1, 2 (ECT)", -1.1, 2.0),
    "uniform": ("uniform (teacher)", 0.0, 1.0),
}


def make() -> str:
    """The figure."""
    drawing = figure.new(570, 248)
    weights, density = figure.frame(drawing, 38, 46, 225, 172), figure.frame(drawing, 322, 46, 225, 172)
    for axes in (weights, density):
        axes.set(xlabel="t (0 noise, 1 data)", xlim=(0, 1), xticks=(0, 0.25, 0.5, 0.75, 1))
        axes.xaxis.set_major_formatter("{x:g}")
    weights.set(title="weight α(t) or β(t)", ylim=(0, 1))
    weights.set_yticks((0, 0.5, 1), ("0", "0.5", "1"))
    density.set(title="density of t in training", ylim=(0, 4), yticks=(0, 1, 2, 3, 4))
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    for k, (name, label) in enumerate(NAMES.items()):
        weights.plot(t, weighting(name, 0.5)(t), clip_on=False, **figure.series(k, mark=False))
        weights.annotate(label, LABELS[k], color=figure.COLORS[k])
    normal = torch.linspace(-4, 4, 4001, dtype=torch.float64)
    phi = torch.exp(-(normal**2) / 2) / math.sqrt(2 * math.pi)
    for k, (name, (label, mean, std)) in enumerate(LAWS.items()):
        time = TIME_SAMPLERS[name](normal, mean, std)
        slope = torch.gradient(time, spacing=(normal,))[0].abs()
        density.plot(time[::20], (phi / slope)[::20], label=label, **figure.series(k, mark=False))
    density.legend(loc="upper left")
    return figure.svg(
        drawing, "Left: the weightings 1, 1 − √t and cos(πt/2) over t. Right: the densities of t in training."
    )
