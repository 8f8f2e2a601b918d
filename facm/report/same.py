"""The same noise through the teacher and through the student at each NFE: pictures in columns, points as plots."""

from collections.abc import Sequence

import numpy as np

from facm.data.images.images import kind
from facm.inference.samples import Stored
from facm.report.images import strip
from facm.report.run import Group, Run
from facm.report.scatter import reach, scatter
from facm.report.tags import Html, figure, join, tag
from facm.report.view import COLUMNS, PICTURED, View, nfes

Drawn = list[tuple[str, Stored, np.ndarray | None]]  # whose, samples, labels


def section(groups: Sequence[Group], view: View) -> Html:
    """A block per group."""
    parts = [view.pictured(groups, lambda run: _group(run, view))]
    if len(groups) > PICTURED:
        parts.append(tag("p", f"Pictures are shown of the first {PICTURED} groups only."))
    return join(*parts)


def drawn(run: Run) -> Drawn:
    """Whatever is at hand: the teacher's samples, where they are of the noise of the student's, and the student's."""
    found: Drawn = []
    teacher = run.samples(None)
    if teacher is not None and shares(run):
        nfe = run.result.get("teacher", {}).get("nfe", "unknown")
        found.append((f"teacher, NFE {nfe}", *teacher))
    for nfe in nfes(run):
        samples = run.samples(nfe)
        if samples is not None:
            found.append((f"student, NFE {nfe}", *samples))
    return found


def shares(run: Run) -> bool:
    """Whether sample i of the teacher and of the student come from one noise: it depends on seed and i only."""
    return bool(run.params["baseline"]["seed"] == run.params["sample"]["seed"])


def _group(run: Run, view: View) -> Html:
    found = drawn(run)
    if not found:
        return tag("p", "The samples are not at hand.")
    _, first, labels = found[0]
    points = kind(first.dtype, first.shape) == "points"
    shown = _points(found) if points else _pictures(found, labels, view)
    words = []
    if run.scratch:
        words.append("Trained from scratch: there is no teacher to compare with.")
    elif run.apart:
        words.append(run.apart)
    elif run.samples(None) is None:
        words.append("The teacher's samples are not at hand.")
    elif not shares(run):
        seeds = run.params["baseline"]["seed"], run.params["sample"]["seed"]
        words.append(
            f"The teacher's noise is other noise (baseline.seed {seeds[0]}, sample.seed {seeds[1]}): it is left out."
        )
    if not points:
        words.append(f"Every column is one noise{_classes(labels)}.")
    elif len(found) > 1 and found[0][0].startswith("teacher"):
        words.append("Lines lead from where the teacher takes a noise to where the student takes it.")
    return join(shown, tag("p", " ".join(words)) if words else "")


def _pictures(found: Drawn, labels: np.ndarray | None, view: View) -> Html:
    num = min(len(images) for _, images, _ in found)
    rows = []
    for block in range(view.blocks):
        first, end = block * COLUMNS, min((block + 1) * COLUMNS, num)
        if first >= end:
            break
        classes = "" if labels is None else ", of the classes " + ", ".join(map(str, labels[first:end].tolist()))
        strips = []
        for whose, images, _ in found:
            alt = f"{whose}: samples {first} to {end - 1}{classes}"
            strips.append(
                tag("div", tag("span", whose), strip(images[first:end].numpy(), alt, view.side), class_="row")
            )
        rows.append(tag("div", *strips, class_="rows"))
    return join(*rows)


def _classes(labels: np.ndarray | None) -> str:
    """What is said of the columns' classes."""
    if labels is None:
        return "; there are no classes"
    return f" and one class, from the left {', '.join(map(str, labels[:COLUMNS].tolist()))}"


def _points(found: Drawn) -> Html:
    sets = [np.asarray(points) for _, points, _ in found]
    limit = reach(sets)
    start = sets[0] if found[0][0].startswith("teacher") and len(found) > 1 else None
    plots = []
    for i, (whose, _, _) in enumerate(found):
        ways = start if i else None
        plots.append(figure(scatter(f"{whose}: points of the plane", sets[i], limit, ways), whose))
    return tag("div", *plots, class_="panels")
