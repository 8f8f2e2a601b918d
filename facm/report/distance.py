"""The distance over NFE, with the teacher's and the held-out data's as lines."""

from collections.abc import Sequence

from facm.report.chart import FAR, Line, chart, legend
from facm.report.run import Group, teachers
from facm.report.scores import ENDS, distance_key
from facm.report.spread import Spread, number
from facm.report.tags import Html, figure, join, tag
from facm.report.view import View


def section(groups: Sequence[Group], view: View) -> Html:
    """The chart and its legend."""
    key = distance_key(groups[0].runs[0])
    lines, told, known = list[Line](), list[str](), dict[float, str]()
    for i, group in enumerate(groups):
        points = []
        for nfe in group.runs[0].nfes:
            spread = Spread.of(group.values("student", f"nfe{nfe}", key))
            if spread is not None:
                points.append((float(nfe), spread.mean, spread.sd or 0.0))
        lines.append(Line("student" if len(groups) == 1 else view.legend(i, group), tuple(points), i))
    for alike in teachers(groups):
        group = groups[alike[0]]
        spread = Spread.of(group.values("teacher", key))
        if spread is not None:
            known[spread.mean] = view.together(alike, f"teacher, NFE {group.values('teacher', 'nfe')[0]}")
    beyond = {}
    highest = max((y for y in [*known, *(p[1] for line in lines for p in line.points)]), default=0.0)
    for name, title in ENDS.items():
        end = Spread.of(groups[0].values(name, key))
        if end is not None and highest / FAR < end.mean <= highest:
            known.setdefault(end.mean, title)
        elif end is not None:
            beyond[title] = end.mean
    lines += [Line(label, ((0.0, mean, 0.0),), len(groups) + j, True) for j, (mean, label) in enumerate(known.items())]
    at = sorted({point[0] for line in lines if not line.level for point in line.points})
    told.append(f"{key}, lower is better")
    if any(bar for line in lines for _, _, bar in line.points):
        told.append("bars are the standard deviation over seeds")
    if beyond:
        told.append("beyond the plot: " + ", ".join(f"{title} {number(value)}" for title, value in beyond.items()))
    drawn = chart(f"{key} over NFE", lines, x_label="function evaluations (NFE)", at=at, size=(430, 270), zero=True)
    return figure(join(drawn, legend(lines)), "; ".join(told) + ".", class_="wide") if at else tag("p", "No distance.")
