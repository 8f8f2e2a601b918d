"""metrics/evaluate.json as a table for people; `python -m facm.table REV ...` compares runs and takes the median.

python -m facm.table seed0 seed1 seed2
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

from facm.runtime.files import load_json
from facm.runtime.names import printable

COLUMNS: tuple[str, ...] = ("nfe", "fid", "fd", "is", "sfid", "kid", "precision", "recall", "accuracy", "copies")
COLUMNS += ("fd_second", "accuracy_second")
ENDS = (("floor", "held-out"), ("class_mean", "class means"), ("pixel_mean", "pixel mean"), ("noise", "noise"))
HELDOUT = ("accuracy", "accuracy_second", "copies")
FILE = "metrics/evaluate.json"

Rows = list[tuple[str, dict[str, Any]]]


def render(result: dict[str, Any]) -> str:
    """One row each for the dataset's ends of the scale, the teacher, and the student at each NFE."""
    rows: Rows = [(title, dict(result[name])) for name, title in ENDS if name in result]
    for title, scores in rows:
        if title == "held-out":
            scores |= {name: result[f"heldout_{name}"] for name in HELDOUT if f"heldout_{name}" in result}
    if "teacher" in result:
        rows.append(("teacher", result["teacher"]))
    rows += [("student", {"nfe": int(name.removeprefix("nfe"))} | scores) for name, scores in result["student"].items()]
    used = [column for column in COLUMNS if any(column in scores for _, scores in rows)]
    more = {key for _, scores in rows for key in scores if key.startswith(("fid_", "is_", "sfid_", "fd_", "map_"))}
    used += sorted(more - set(COLUMNS))
    return _align(rows, used)


def compare(results: dict[str, dict[str, Any]]) -> str:
    """Distances as fractions of the class means' (the pixel mean's without classes) for several runs, and their median.

    Args:
        results: evaluate.json by the run's name.

    Raises:
        ValueError: runs without a common distance.
    """
    rows: Rows = []
    for name, result in results.items():
        end = result.get("class_mean") or result["pixel_mean"]
        key = next((k for k in end if k == "fd" or k.startswith("fid")), None)
        if key is None:
            raise ValueError(f"{name}: {FILE} holds no distance")
        parts = {"teacher": result["teacher"]} if "teacher" in result else {}
        parts |= result["student"]
        own = {part: next(v for k, v in s.items() if k == "fd" or k.startswith("fid")) for part, s in parts.items()}
        rows.append((name, {part: value / end[key] for part, value in own.items()}))
        rows[-1][1].update({f"acc {part}": s["accuracy"] for part, s in parts.items() if "accuracy" in s})
    columns = list(rows[0][1])
    if len(rows) > 2:
        rows.append(("median", {c: statistics.median(scores[c] for _, scores in rows if c in scores) for c in columns}))
    return _align(rows, columns)


def _align(rows: Rows, columns: list[str]) -> str:
    cells = [["", *columns]] + [[title, *(_cell(scores.get(column)) for column in columns)] for title, scores in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)


def _cell(value: float | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.4f}"


def _read(revision: str) -> dict[str, Any]:
    """evaluate.json of a revision or experiment; "." is the workspace.

    Raises:
        OSError, ValueError: there is no such revision, or no such file in it.
    """
    if revision == ".":
        return load_json(Path(FILE), "`dvc pull` or `dvc repro` brings it")
    from dvc.api import metrics_show
    from dvc.exceptions import DvcException

    try:
        return metrics_show(FILE, rev=revision)
    except (DvcException, OSError) as error:
        raise ValueError(f"'{revision}' is no revision or experiment with {FILE} ({error})") from None


def main() -> None:
    """Print evaluate.json of the workspace, or compare experiments."""
    parser = argparse.ArgumentParser(prog="python -m facm.table", description=main.__doc__)
    parser.add_argument("revisions", nargs="*", help="experiments or revisions; none: the workspace")
    arguments = parser.parse_args()
    try:
        if not arguments.revisions:
            print(render(_read(".")))
            return
        print(printable(compare({revision: _read(revision) for revision in arguments.revisions})))
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    print("distances as fractions of that of the class means (without classes: of the pixel mean)")


if __name__ == "__main__":
    main()
