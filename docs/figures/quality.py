"""Distance over NFE on digits, means of three seeds, from the records of `python -m studies samplers`."""

import json
import math
import statistics
from pathlib import Path
from typing import Any

from docs.figures.canvas import Canvas, Frame

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


def draw() -> str:
    """The picture; both axes are logarithmic."""
    records = json.loads(FILE.read_text())
    canvas = Canvas(
        760, 400, "Distance over NFE on digits, two logarithmic axes: five samplers; held-out pictures below."
    )
    frame = Frame(50, 40, 480, 290, (math.log(1.8), math.log(18)), (math.log(0.42), math.log(9.5)))
    frame.draw(canvas, (), (), "function evaluations (NFE)", "fd, mean and standard deviation of three seeds")
    for nfe in NFES:
        canvas.text(frame.at(math.log(nfe), 0)[0], 348, str(nfe), "middle", 12)
    for tick in TICKS:
        canvas.text(42, frame.at(0, math.log(tick))[1] + 4, f"{tick:g}", "end", 12)
    floor = records[0]["result"]["floor"]["fd"]
    canvas.axis(frame.all([(frame.x[0], math.log(floor)), (frame.x[1], math.log(floor))]))
    labels: list[tuple[float, str, int | None]] = [(frame.at(0, math.log(floor))[1], "held-out pictures", None)]
    for series, (cell, label) in enumerate(SERIES.items()):
        curve = []
        for nfe in NFES:
            values = [v for r in records if r["cell"] == cell and (v := _fd(r["result"], cell, nfe)) is not None]
            mean, sd = statistics.fmean(values), statistics.stdev(values)
            curve.append((math.log(nfe), math.log(mean)))
            canvas.line(
                frame.all([(math.log(nfe), math.log(mean - sd)), (math.log(nfe), math.log(mean + sd))]),
                series,
                1.2,
                False,
            )
            canvas.mark(*frame.at(*curve[-1]), series)
        canvas.line(frame.all(curve), series)
        labels.append((frame.at(*curve[-1])[1], label, series))
    below = float("inf")
    for y, label, of in sorted(labels, reverse=True, key=lambda entry: entry[0]):
        below = min(y, below - 17)
        canvas.text(554, below + 4, label, series=of)
        if of is not None:
            canvas.mark(544, below, of)
    return canvas.svg()


def _fd(result: dict[str, Any], cell: str, nfe: int) -> float | None:
    """A run's distance at an NFE; a teacher's own is under `teacher`."""
    if cell.startswith("teacher"):
        return result["teacher"]["fd"] if result["teacher"]["nfe"] == nfe else None
    return result["student"].get(f"nfe{nfe}", {}).get("fd")
