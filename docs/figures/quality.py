"""Distance over NFE on digits, means of three seeds, from the records of `python -m studies samplers`."""

import json
import statistics
from pathlib import Path
from typing import Any

from matplotlib.ticker import NullFormatter, NullLocator

from studies import figure

FILE = Path(__file__).parents[2] / "studies/results/samplers.json"
SERIES = {  # cells and their labels
    "consistency": "FACM, eq. 19",
    "anchored": "FACM, anchored",
    "meanflow_jumps": "MeanFlow, its jumps",
    "flow_euler": "FACM's own flow, Euler",
    "teacher_euler": "guided teacher, Euler",
}
NFES = (2, 4, 8, 16)
TICKS = (0.5, 1, 2, 4, 8)


def make() -> str:
    """The figure; both axes are logarithmic."""
    records = json.loads(FILE.read_text())
    drawing = figure.new(570, 300)
    axes = figure.frame(drawing, 38, 48, 360, 220)
    axes.set(xscale="log", yscale="log", xlim=(1.8, 18), ylim=(0.42, 9.5), xlabel="function evaluations (NFE)")
    axes.set_title("fd, mean and standard deviation of three seeds")
    for axis, ticks in ((axes.xaxis, NFES), (axes.yaxis, TICKS)):
        axis.set(minor_locator=NullLocator(), minor_formatter=NullFormatter())
        axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
    floor = records[0]["result"]["floor"]["fd"]
    axes.axhline(floor, color=figure.AXIS, linewidth=1)
    axes.annotate("held-out images", (1.9, floor), xytext=(0, 3), textcoords="offset points")
    ends = []
    for k, (cell, label) in enumerate(SERIES.items()):
        values = [
            [v for r in records if r["cell"] == cell and (v := _fd(r["result"], cell, n)) is not None] for n in NFES
        ]
        means = [statistics.fmean(of_nfe) for of_nfe in values]
        sds = [statistics.stdev(of_nfe) for of_nfe in values]
        axes.errorbar(NFES, means, yerr=sds, elinewidth=1, **figure.series(k))
        ends.append((means[-1], label, k))
    figure.label_ends(axes, ends)
    return figure.svg(
        drawing, "Distance over NFE on digits, two logarithmic axes: five samplers; held-out images below."
    )


def _fd(result: dict[str, Any], cell: str, nfe: int) -> float | None:
    """A run's distance at an NFE; a teacher's own is under `teacher`."""
    if cell.startswith("teacher"):
        return result["teacher"]["fd"] if result["teacher"]["nfe"] == nfe else None
    return result["student"].get(f"nfe{nfe}", {}).get("fd")
