"""Parts of Markdown files that are made from results, each between `<!-- made: NAME -->` and `<!-- end -->`.

python docs/hooks/tables.py    write them; tests/docs/test_docs.py and the site fail where one is stale
"""

import json
import posixpath
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # for the package, when this runs as a script

from docs.hooks import links  # noqa: E402
from facm import table  # noqa: E402

PART = re.compile(r"^<!-- made: (\w+) -->\n(.*?)^<!-- end -->$", re.MULTILINE | re.DOTALL)
STUDIES = "studies/results"
METHODS = {  # cell of studies/table1.yaml and cost.yaml: label; a cell NAME_jumps has the method's own sampler
    "facm": "FACM",
    "ict": "iCT",
    "ect": "ECT",
    "meanflow": "MeanFlow",
    "scm": "sCM",
    "cd": "CD",
    "imm": "IMM",
    "tract": "TRACT",
    "shortcut": "Shortcut",
    "imeanflow": "improved MeanFlow",
}


def methods(page: str) -> str:
    """Every method at NFE 1 and 2, at equal steps and at equal CPU time, and what its step costs."""
    steps, time = _records("table1"), _records("cost")
    lines = [
        "| method | NFE 1 | NFE 2 | NFE 2, own sampler | time of a step | equal time: NFE 1 | NFE 2 |",
        "|---|---|---|---|---|---|---|",
    ]
    length = time["facm"][0]["set"]["distill.steps"]
    for cell, label in METHODS.items():
        cost = length / time[cell][0]["set"]["distill.steps"]
        own = _spread(steps[f"{cell}_jumps"], 2) if f"{cell}_jumps" in steps else "–"
        cells = [_spread(steps[cell], 1), _spread(steps[cell], 2), own, f"{cost:.2f}"]
        lines.append(f"| {label} | {' | '.join([*cells, _spread(time[cell], 1), _spread(time[cell], 2)])} |")
    return "\n".join(lines)


def scale(page: str) -> str:
    """The scale of the distance on digits, from metrics/evaluate.json and the records of table 1."""
    result, runs = _evaluated(), _records("table1")["facm"]
    teachers = [run["result"]["teacher"]["fd"] for run in runs]
    mean, sd = statistics.fmean(teachers), statistics.stdev(teachers)
    return (
        f"On this scale held-out images have {result['floor']['fd']:.2f}, the teacher at NFE "
        f"{result['teacher']['nfe']} has {mean:.2f} ± {sd:.2f}, the mean image of each class "
        f"{result['class_mean']['fd']:.1f}, and noise {result['noise']['fd']:.0f}."
    )


def seeds(page: str) -> str:
    """The shipped pipeline with three seeds, from the records of table 1."""
    lines = [
        "| | teacher, NFE 29 | NFE 1 | NFE 2 | accuracy at NFE 1 / 2 | copies at NFE 1 / 2 |",
        "|---|---|---|---|---|---|",
    ]
    for run in _records("table1")["facm"]:
        one, two = (run["result"]["student"][f"nfe{nfe}"] for nfe in (1, 2))
        ends = run["result"]["class_mean"]["fd"]
        distances = [f"{of['fd'] / ends:.3f}" for of in (run["result"]["teacher"], one, two)]
        both = [f"{one[name]:.4f} / {two[name]:.4f}" for name in ("accuracy", "copies")]
        shipped = " (shipped)" if run["seed"] == 0 else ""
        lines.append(f"| seed {run['seed']}{shipped} | {' | '.join([*distances, *both])} |")
    return "\n".join(lines)


def scores(page: str) -> str:
    """What `python -m facm.table` prints of the committed run."""
    return f"```text\n{table.render(_evaluated())}\n```"


def claims(page: str) -> str:
    """Claim, reading and gaps of each study of the paper's that has a page."""
    rows = ["| study | claim of the paper | what was found |", "|---|---|---|"]
    for path in sorted((ROOT / STUDIES).glob("*.md")):
        text = path.read_text()
        title, claim, reading = (
            re.search(p, text, re.MULTILINE) for p in (r"^# (.+)$", r"^Claim of the paper: (.+)$", r"^Reading: (.+)$")
        )
        if title is None or claim is None:
            continue
        target = posixpath.relpath(f"{STUDIES}/{path.name}", posixpath.dirname(page) or ".")
        missing = len(re.findall(r"\| not run(?= \|)", text))
        found = (reading[1] if reading else "No reading yet.") + (f" Cells not run: {missing}." if missing else "")
        rows.append(f"| [{title[1]}]({target}) | {claim[1]} | {found} |")
    return "\n".join(rows)


MAKERS: dict[str, Callable[[str], str]] = {
    "methods": methods,
    "scale": scale,
    "seeds": seeds,
    "scores": scores,
    "claims": claims,
}


def renewed(page: str, text: str) -> str:
    """The text of a page with its made parts as the results have them now."""
    return PART.sub(lambda part: f"<!-- made: {part[1]} -->\n{MAKERS[part[1]](page)}\n<!-- end -->", text)


def stale() -> list[str]:
    """Pages whose made parts are not what the committed results give."""
    texts = {page: (ROOT / page).read_text() for page in links.tracked(ROOT)}
    return [page for page, text in texts.items() if renewed(page, text) != text]


def _evaluated() -> dict[str, Any]:
    read: dict[str, Any] = json.loads((ROOT / "metrics/evaluate.json").read_text())
    return read


def _records(study: str) -> dict[str, list[dict[str, Any]]]:
    """Runs of a study by cell, in the order of their seeds."""
    by: dict[str, list[dict[str, Any]]] = {}
    for run in json.loads((ROOT / f"{STUDIES}/{study}.json").read_text()):
        by.setdefault(run["cell"], []).append(run)
    return {cell: sorted(runs, key=lambda run: int(run["seed"])) for cell, runs in by.items()}


def _spread(runs: list[dict[str, Any]], nfe: int) -> str:
    """Mean and standard deviation of the distance at an NFE."""
    values = [run["result"]["student"][f"nfe{nfe}"]["fd"] for run in runs]
    return f"{statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f}"


def main() -> None:
    """Write every stale page."""
    for page in stale():
        (ROOT / page).write_text(renewed(page, (ROOT / page).read_text()))
        print(page)


if __name__ == "__main__":
    main()
