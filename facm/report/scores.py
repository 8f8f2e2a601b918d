"""The scores: a table (ends of the scale, teacher, student at each NFE) and a chart of the distance over NFE."""

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from facm.report.html import paragraph, render
from facm.report.run import Group, Run, Spread, number, teachers
from facm.report.svg import FAR, Line, chart, legend
from facm.report.view import View

ENDS = {
    "floor": "held-out data",
    "class_mean": "class means",
    "pixel_mean": "mean of the data",
    "noise": "noise",
}
HELDOUT = ("accuracy", "accuracy_second", "copies")
NOT_SCORES = ("nfe", "w", "num")
HEADED = 4  # NFEs in the headline, at most
SENSES = {-1: "; lower is better", 0: "; expect the held-out data's", 1: "; higher is better"}
DESCRIBED = {  # name or beginning of it: direction (-1: lower is better), words
    "fid": (-1, "Fréchet distance from the train split under Inception"),
    "fd": (-1, "Fréchet distance from the train split, in features of the network that the run names"),
    "sfid": (-1, "the same in Inception's spatial features"),
    "is": (1, "Inception Score"),
    "kid": (-1, "kernel distance; unbiased, so it may fall below 0"),
    "precision": (1, "share of the samples that lie among the data"),
    "recall": (1, "share of the data that lies among the samples"),
    "accuracy": (1, "share of the samples that a classifier finds in the requested class"),
    "copies": (0, "share of the samples as near to a training image as few training images are to each other"),
    "map_rmse": (-1, "root mean square distance from where the exact flow takes the same noise"),
    "map_median": (-1, "median of that distance"),
}


def section(groups: Sequence[Group], view: View) -> Markup:
    """The table, what its columns mean, and each run's distance where there are several."""
    columns, runs = ordered(groups), [run for group in groups for run in group.runs]
    nfes = sorted({nfe for run in runs for nfe in run.nfes})
    seeds = any(len(group.runs) > 1 for group in groups)
    return render(
        "scores.html",
        columns=columns,
        rows=[*_ends(groups[0], columns), *_parts(groups, view, columns)],
        samples=_numbers(groups),
        features=runs[0].result.get("features"),
        several=len(groups) > 1,
        apart=list(dict.fromkeys(run.apart for run in runs if run.apart)),
        other_references=len({str(run.result.get("floor")) for run in runs}) > 1,
        meanings=_meanings(columns),
        key=distance_key(runs[0]),
        nfes=["teacher", *(f"NFE {nfe}" for nfe in nfes)],
        seeds=_by_run(groups, view, nfes) if seeds else [],
    )


def headline(groups: Sequence[Group]) -> list[tuple[str, str, str]]:
    """Name, distance and accuracy of each part of a single group; nothing of several."""
    if len(groups) > 1:
        return []
    (group,), key = groups, distance_key(groups[0].runs[0])
    parts: list[tuple[str, tuple[str, ...]]] = [
        (f"NFE {nfe}", ("student", f"nfe{nfe}")) for nfe in group.runs[0].nfes[:HEADED]
    ]
    teacher = group.runs[0].result.get("teacher")
    if teacher:
        parts.append((f"teacher, NFE {teacher.get('nfe')}", ("teacher",)))
    cards = []
    for title, path in [*parts, ("held-out data", ("floor",))]:
        spread, accuracy = (Spread.of(group.values(*path, name)) for name in (key, "accuracy"))
        if spread is not None:
            cards.append((title, f"{key} {spread}", "" if accuracy is None else f"accuracy {accuracy}"))
    return cards


def distance(groups: Sequence[Group], view: View) -> Markup:
    """The distance over NFE, with the teacher's and the held-out data's as horizontal lines."""
    key = distance_key(groups[0].runs[0])
    lines = [_curve(i, group, view, key, alone=len(groups) == 1) for i, group in enumerate(groups)]
    at = sorted({x for line in lines for x, *_ in line.points})
    if not at:
        return paragraph("No distance.")
    levels, beyond = _levels(groups, view, key, max(y for line in lines for _, y, _ in line.points))
    bars = any(bar for line in lines for *_, bar in line.points)
    lines += [Line(label, ((0.0, y, 0.0),), len(groups) + j, True) for j, (y, label) in enumerate(levels.items())]
    title, x_label = f"{key} over NFE", "function evaluations (NFE)"
    drawing = chart(title, lines, x_label=x_label, at=at, size=(430, 270), zero=True)
    return render("distance.html", chart=drawing, legend=legend(lines), key=key, bars=bars, beyond=beyond)


def _curve(number: int, group: Group, view: View, key: str, *, alone: bool) -> Line:
    """The student's distance over NFE, mean and standard deviation of a group's runs."""
    spreads = [(float(nfe), Spread.of(group.values("student", f"nfe{nfe}", key))) for nfe in group.runs[0].nfes]
    points = tuple((nfe, spread.mean, spread.sd or 0.0) for nfe, spread in spreads if spread is not None)
    return Line("student" if alone else view.legend(number, group), points, number)


def _levels(groups: Sequence[Group], view: View, key: str, highest: float) -> tuple[dict[float, str], list[str]]:
    """Teachers and ends of the scale by distance, and those of the ends that would flatten the curves."""
    levels, beyond = dict[float, str](), list[str]()
    for alike in teachers(groups):
        group = groups[alike[0]]
        spread = Spread.of(group.values("teacher", key))
        if spread is not None:
            levels[spread.mean] = view.together(alike, f"teacher, NFE {group.values('teacher', 'nfe')[0]}")
    highest = max([highest, *levels])
    for name, title in ENDS.items():
        end = Spread.of(groups[0].values(name, key))
        if end is not None and highest / FAR < end.mean <= highest:
            levels.setdefault(end.mean, title)
        elif end is not None:
            beyond.append(f"{title} {number(end.mean)}")
    return levels, beyond


def distance_key(run: Run) -> str:
    """Name of a run's first distance: fid, fid_10k or the like, or fd."""
    scores = next(iter(run.result["student"].values()))
    return next((name for name in scores if name == "fd" or name.startswith("fid")), "fd")


def ordered(groups: Sequence[Group]) -> list[str]:
    """Names of all scores: those of DESCRIBED, in its order, then others."""
    found = {
        name
        for group in groups
        for run in group.runs
        for scores in (*_blocks(run), *run.result["student"].values())
        for name in scores
    } - set(NOT_SCORES)
    order = list(DESCRIBED)
    return sorted(found, key=lambda name: (_second(name), order.index(d) if (d := _described(name)) else 99, name))


def direction(name: str) -> int:
    """-1 where lower is better, 1 where higher is, 0 where neither is."""
    described = _described(name)
    return 0 if described is None else DESCRIBED[described][0]


def _second(name: str) -> bool:
    return name.endswith("_second")


def _described(name: str) -> str | None:
    return next((known for known in DESCRIBED if name == known or name.startswith(f"{known}_")), None)


def _blocks(run: Run) -> list[dict[str, Any]]:
    return [run.result[name] for name in (*ENDS, "teacher") if name in run.result]


def _ends(group: Group, columns: list[str]) -> list[list[str]]:
    rows = []
    for name, title in ENDS.items():
        if name in group.runs[0].result:
            scores = dict(group.runs[0].result[name])
            if name == "floor":
                known = group.runs[0].result
                scores |= {key: known[f"heldout_{key}"] for key in HELDOUT if f"heldout_{key}" in known}
            rows.append([title, *(number(scores[column]) if column in scores else "–" for column in columns)])
    return rows


def _parts(groups: Sequence[Group], view: View, columns: list[str]) -> list[list[str]]:
    """Rows of teachers, those that groups have in common once, then of students by NFE."""
    alike = teachers(groups)
    rows = _rows([groups[some[0]] for some in alike], ("teacher",), columns)
    for some, row in zip(alike, rows, strict=True):
        row[0] = view.together(some, f"teacher, NFE {row[0]}")
    for nfe in sorted({nfe for group in groups for run in group.runs for nfe in run.nfes}):
        having = [i for i, group in enumerate(groups) if any(nfe in run.nfes for run in group.runs)]
        for i, row in zip(having, _rows([groups[i] for i in having], ("student", f"nfe{nfe}"), columns), strict=True):
            rows.append([view.label(i, f"student, NFE {nfe}"), *row[1:]])
    return rows


def _numbers(groups: Sequence[Group]) -> str:
    """How many samples the rows are of: student, teacher and the ends of the scale have params of their own."""
    runs = [run for group in groups for run in group.runs]
    found = {
        "student": {run.result.get("num") for run in runs},
        "teacher": {run.result["teacher"].get("num") for run in runs if run.result.get("teacher")},
    }
    ends = [title for name, title in ENDS.items() if name != "floor" and name in groups[0].runs[0].result]
    if ends:  # of the first run, as their rows are
        found[" and ".join(ends)] = {groups[0].runs[0].params["reference"].get("num")}
    parts = [f"{who} {' or '.join(sorted(map(str, numbers)))}" for who, numbers in found.items() if numbers]
    held_out = ", held-out data all that there is" if "floor" in groups[0].runs[0].result else ""
    return ", ".join(parts) + held_out


def _rows(groups: Sequence[Group], part: tuple[str, ...], columns: list[str]) -> list[list[str]]:
    """A row per group; its name is the NFE that the scores give, if any."""
    spreads = [{column: Spread.of(group.values(*part, column)) for column in columns} for group in groups]
    return [
        [str(group.values(*part, "nfe")[0]), *(_cell(spreads, i, c, len(group.values(*part))) for c in columns)]
        for i, group in enumerate(groups)
    ]


def _cell(spreads: list[dict[str, Spread | None]], i: int, column: str, runs: int) -> str:
    """A cell; the best of several groups is bold, a tie marked."""
    own = spreads[i][column]
    if own is None:
        return "–"
    words = str(own) + (f" ({own.n} of {runs})" if own.n != runs else "")
    others = [found for spread in spreads if (found := spread[column]) is not None]
    better = direction(column)
    if len(others) < 2 or not better:
        return words
    best = max(others, key=lambda spread: better * spread.mean)
    if own.mean == best.mean:
        return Markup("<strong>{}</strong>").format(words)
    return f"{words} ≈" if own.ties(best) else words


def _meanings(columns: list[str]) -> list[tuple[str, str]]:
    """What the columns mean."""
    found = [
        (", ".join(names), meaning + SENSES[better])
        for known, (better, meaning) in DESCRIBED.items()
        if (names := [name for name in columns if _described(name) == known])
    ]
    second = [("_second", "the same under a second network with another seed: a check")]
    return found + (second if any(map(_second, columns)) else [])


def _by_run(groups: Sequence[Group], view: View, nfes: Sequence[int]) -> list[list[str]]:
    """A row per run: the distance of its teacher and of its student at each NFE."""
    key, rows = distance_key(groups[0].runs[0]), []
    for i, group in enumerate(groups):
        for run in group.runs:
            parts = [run.result.get("teacher", {}), *(run.result["student"].get(f"nfe{nfe}", {}) for nfe in nfes)]
            values = [part.get(key) for part in parts]
            rows.append([view.label(i, run.name), *("–" if v is None else number(v) for v in values)])
    return rows
