"""A study's chart: a row per cell, or curves where its cells lie along an axis; means with their spread over seeds."""

import math

from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from studies import figure
from studies.plan import Study
from studies.results import Entry

Entries = dict[str, dict[str, Entry]]  # by cell, by metric
Curve = list[tuple[float, float, float]]  # x, mean, standard deviation
FAR = 5.0  # the axis is logarithmic where the largest mean exceeds this many times the smallest
ACROSS, LETTER = 340, 5.2  # width of the axes, of a letter
NUMBER = FuncFormatter(lambda value, _: f"{value:g}")


def svg(study: Study, entries: Entries) -> str:
    """The chart as a file."""
    return _curves(study, entries) if study.curve else _rows(study, entries)


def limits(entries: Entries) -> tuple[float, float, bool]:
    """The ends of the axis of the metrics, and whether it is logarithmic; else it begins at zero."""
    known = [(e.mean, e.sd or 0.0) for cell in entries.values() for e in cell.values() if e.mean is not None]
    means = [mean for mean, _ in known]
    high = max((mean + sd for mean, sd in known), default=1.0) * 1.05 or 1.0
    log = bool(means) and 0 < min(means) * FAR < max(means)
    return (min(means) / 1.5 if log else 0.0), high, log


def lines(study: Study, entries: Entries) -> dict[str, Curve]:
    """Curves by label: the cells that are named alike up to their last `_`, by metric."""
    found: dict[str, Curve] = {}
    for name, x in (study.curve or {}).items():
        for metric in study.metrics:
            e = entries[name][metric]
            if e.mean is not None:
                label = f"{name.rpartition('_')[0]}, {metric.removeprefix('student.')}"
                found.setdefault(label, []).append((x, e.mean, e.sd or 0.0))
    return {label: sorted(curve) for label, curve in found.items()}


def _rows(study: Study, entries: Entries) -> str:
    left = 14 + LETTER * max(len(cell.label) for cell in study.cells)
    num = len(study.metrics)
    height, above = len(study.cells) * (14 + 3 * num), 14 + 14 * math.ceil(num / 3)
    drawing = figure.new(left + ACROSS + 20, height + above + 30)
    axes = figure.frame(drawing, left, 30, ACROSS, height)
    low, high, log = limits(entries)
    axes.set(ylim=(len(study.cells) - 0.5, -0.5), yticks=range(len(study.cells)))
    axes.set_yticklabels([cell.label for cell in study.cells])
    axes.set(xlim=(low, high), **({"xscale": "log"} if log else {}))
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(color=figure.FAINT)
    axes.set_axisbelow(True)
    if log:
        axes.xaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter=NUMBER)
        axes.xaxis.set(minor_locator=NullLocator(), minor_formatter=NullFormatter())
    for k, metric in enumerate(study.metrics):
        shift = (k - (num - 1) / 2) * 0.7 / (num + 1)
        points = [(row + shift, entries[cell.name][metric]) for row, cell in enumerate(study.cells)]
        known = [(y, e.mean, e.sd or 0.0) for y, e in points if e.mean is not None]
        ys, means, sds = zip(*known, strict=True) if known else ((), (), ())
        style = figure.series(k) | {"linestyle": "none"}
        axes.errorbar(means, ys, xerr=sds, label=metric.removeprefix("student."), elinewidth=1.2, **style)
    drawing.legend(loc="upper left", bbox_to_anchor=(left / (left + ACROSS + 20), 1), ncols=3, handlelength=1)
    return figure.svg(drawing, f"{study.title}: mean and standard deviation over seeds, lower is better")


def _curves(study: Study, entries: Entries) -> str:
    curves, xs = lines(study, entries), sorted(set((study.curve or {}).values()))
    drawing = figure.new(570, 310)
    axes = figure.frame(drawing, 45, 40, 360, 240)
    top = max((mean + sd for curve in curves.values() for _, mean, sd in curve), default=1.0) * 1.05
    axes.set(xscale="log", xlim=(xs[0] / 1.1, xs[-1] * 1.1), ylim=(0, top), xlabel="steps")
    axes.xaxis.set(minor_locator=NullLocator(), minor_formatter=NullFormatter())
    axes.set_xticks(xs, [f"{x:g}" for x in xs])
    axes.set_title("mean and standard deviation over seeds")
    for k, curve in enumerate(curves.values()):
        at, means, sds = zip(*curve, strict=True)
        axes.errorbar(at, means, yerr=sds, elinewidth=1, **figure.series(k))
    figure.label_ends(axes, [(curve[-1][1], label, k) for k, (label, curve) in enumerate(curves.items())])
    return figure.svg(drawing, f"{study.title}: mean and standard deviation over seeds")
