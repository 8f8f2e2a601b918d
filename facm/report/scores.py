"""The table of scores: the ends of the scale, the teacher, the student at each NFE; means and spread over seeds."""

from collections.abc import Sequence
from typing import Any

from facm.report.run import Group, Run, teachers
from facm.report.spread import Spread, number
from facm.report.tags import Html, join, table, tag
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
SENSES = {-1: "; lower is better", 0: "; the held-out data's is to be expected", 1: "; higher is better"}
DESCRIBED = {  # name or beginning of it: direction (-1: lower is better), words
    "fid": (-1, "Fréchet distance from the train split under Inception"),
    "fd": (-1, "Fréchet distance from the train split, in features of the network that the run names"),
    "sfid": (-1, "the same in Inception's spatial features"),
    "is": (1, "Inception Score"),
    "kid": (-1, "kernel distance; unbiased, so it may fall below 0"),
    "precision": (1, "share of the samples that lie among the data"),
    "recall": (1, "share of the data that lies among the samples"),
    "accuracy": (1, "share of the samples that a classifier finds in the class that was asked for"),
    "copies": (0, "share of the samples as near to a training picture as few training pictures are to each other"),
    "map_rmse": (-1, "root mean square distance from where the exact flow takes the same noise"),
    "map_median": (-1, "median of that distance"),
}


def section(groups: Sequence[Group], view: View) -> Html:
    """The table, what its columns mean, and each seed's distance where there are several."""
    columns = [name for name in ordered(groups)]
    rows = [*_ends(groups[0], columns), *_parts(groups, view, columns)]
    words = [f"{_numbers(groups)}; features of {groups[0].runs[0].result.get('features')}."]
    if any(name == "fd" for name in columns):
        words.append("fd compares runs with one data/reference, and nothing else.")
    if len(groups) > 1:
        words.append("Bold: the best of its NFE; ≈: no farther from it than their pooled standard deviation.")
    if any(len(group.runs) > 1 for group in groups):
        words.append("± is the standard deviation over runs that differ by their seeds only.")
    words += [told for group in groups for run in group.runs if (told := run.apart) and told not in words]
    floors = {str(run.result.get("floor")) for group in groups for run in group.runs}
    if len(floors) > 1:
        words.append("The yardsticks of these runs differ: their distances do not compare.")
    return join(
        table(["", *columns], rows, "The ends of the scale, the teacher, the student"),
        tag("p", " ".join(words)),
        _meaning(columns),
        *([_seeds(groups, view)] if any(len(group.runs) > 1 for group in groups) else []),
    )


def headline(groups: Sequence[Group]) -> Html:
    """The distance of each part of a single group, large; nothing for several."""
    if len(groups) > 1:
        return Html("")
    (group,), key = groups, distance_key(groups[0].runs[0])
    parts: list[tuple[str, tuple[str, ...]]] = [
        (f"NFE {nfe}", ("student", f"nfe{nfe}")) for nfe in group.runs[0].nfes[:HEADED]
    ]
    teacher = group.runs[0].result.get("teacher")
    if teacher:
        parts.append((f"teacher, NFE {teacher.get('nfe')}", ("teacher",)))
    parts.append(("held-out data", ("floor",)))
    cards = []
    for title, path in parts:
        spread = Spread.of(group.values(*path, key))
        if spread is None:
            continue
        accuracy = Spread.of(group.values(*path, "accuracy"))
        more = "" if accuracy is None else f"accuracy {accuracy}"
        cards.append(tag("div", tag("dt", title), tag("dd", tag("b", f"{key} {spread}"), tag("span", more))))
    return tag("dl", *cards, class_="cards")


def distance_key(run: Run) -> str:
    """Name of a run's first distance: fid, fid_10k or the like, or fd."""
    scores = next(iter(run.result["student"].values()))
    return next((name for name in scores if name == "fd" or name.startswith("fid")), "fd")


def ordered(groups: Sequence[Group]) -> list[str]:
    """Names of all scores: those described, in that order, then others."""
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
    """How many samples the rows are of: those of student, teacher and the ends of the scale are params of their own."""
    runs = [run for group in groups for run in group.runs]
    found = {
        "student": {run.result.get("num") for run in runs},
        "teacher": {run.result["teacher"].get("num") for run in runs if run.result.get("teacher")},
    }
    ends = [title for name, title in ENDS.items() if name != "floor" and name in groups[0].runs[0].result]
    if ends:  # of the first run, as their rows are
        found[" and ".join(ends)] = {groups[0].runs[0].params["reference"].get("num")}
    told = [f"{who} {' or '.join(sorted(map(str, numbers)))}" for who, numbers in found.items() if numbers]
    held_out = ", held-out data all that there is" if "floor" in groups[0].runs[0].result else ""
    return f"Samples: {', '.join(told)}{held_out}"


def _rows(groups: Sequence[Group], part: tuple[str, ...], columns: list[str]) -> list[list[str]]:
    """A row per group; its name is the NFE that the scores tell, if any."""
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
        return tag("strong", words)
    return f"{words} ≈" if own.ties(best) else words


def _meaning(columns: list[str]) -> Html:
    """What the columns mean, folded away."""
    told = []
    for known, (better, words) in DESCRIBED.items():
        names = [name for name in columns if _described(name) == known]
        if names:
            told.append(join(tag("dt", ", ".join(names)), tag("dd", words + SENSES[better])))
    if any(map(_second, columns)):
        told.append(join(tag("dt", "_second"), tag("dd", "the same under a second network, seeded otherwise: a check")))
    return tag("details", tag("summary", "What the columns mean"), tag("dl", *told, class_="terms"))


def _seeds(groups: Sequence[Group], view: View) -> Html:
    """The distances run by run."""
    key = distance_key(groups[0].runs[0])
    found = sorted({nfe for group in groups for run in group.runs for nfe in run.nfes})
    rows = []
    for i, group in enumerate(groups):
        for run in group.runs:
            values = [run.result.get("teacher", {}).get(key)]
            values += [run.result["student"].get(f"nfe{nfe}", {}).get(key) for nfe in found]
            rows.append([view.label(i, run.name), *("–" if v is None else number(v) for v in values)])
    inside = table(["", "teacher", *(f"NFE {nfe}" for nfe in found)], rows, f"{key}, run by run")
    return tag("details", tag("summary", "Run by run"), inside)
