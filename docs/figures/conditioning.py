"""How one network is evaluated for two velocities (Fig. 2): `c_cm` and `c_fm` of facm/flow/path.py over t."""

import torch

from facm.flow.path import c_cm, c_fm
from studies import figure

T = torch.linspace(0, 1, 11, dtype=torch.float64)
EXAMPLE = 3  # of T: t = 0.3
CONDITIONS = (
    (c_cm, "c_CM: average velocity to the data (the shortcut)"),
    (c_fm, "c_FM: velocity at this place (the anchor)"),
)


def make() -> str:
    """The figure."""
    drawing = figure.new(570, 290)
    expanded, auxiliary = figure.frame(drawing, 42, 86, 220, 172), figure.frame(drawing, 326, 86, 220, 172)
    expanded.set(title="expanded: what the network gets for t", ylim=(0, 2), yticks=(0, 0.3, 1, 1.7, 2))
    auxiliary.set(title="auxiliary: what it gets for r beside t", ylim=(0, 1), yticks=(0, 0.3, 1))
    for axes in (expanded, auxiliary):
        axes.set(xlabel="t, where x_t lies", xlim=(0, 1), xticks=(0, 0.3, 1))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_major_formatter("{x:g}")
    for k, (condition, label) in enumerate(CONDITIONS):
        style = figure.series(k) | {"markevery": [EXAMPLE], "markersize": 8, "clip_on": False, "label": label}
        expanded.plot(T, condition(T, "expanded").t, **style)
        pair = condition(T, "auxiliary")
        auxiliary.plot(pair.t, pair.r, **style)
    for axes, label, at, k in (
        (expanded, "c_CM = t", (0.35, 0.22), 0),
        (expanded, "c_FM = 2 − t", (0.35, 1.75), 1),
        (auxiliary, "c_CM = (t, 1)", (0.35, 0.91), 0),
        (auxiliary, "c_FM = (t, t)", (0.5, 0.4), 1),
    ):
        axes.annotate(label, at, color=figure.COLORS[k])
    drawing.legend(*expanded.get_legend_handles_labels(), loc="lower left", bbox_to_anchor=(0.05, 0))
    return figure.svg(
        drawing, "Left: expanded interval, c_CM = t and c_FM = 2 − t. Right: auxiliary, (t, 1) and (t, t)."
    )
