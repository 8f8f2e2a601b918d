"""metrics/evaluate.json as a table for people."""

from typing import Any

COLUMNS = ("nfe", "fid", "fd", "kid", "precision", "recall", "accuracy", "copies", "fd_second", "accuracy_second")
ENDS = (("floor", "held-out"), ("class_mean", "class means"), ("pixel_mean", "pixel mean"), ("noise", "noise"))


def render(result: dict[str, Any]) -> str:
    """One row each for the dataset's ends of the scale, the teacher, and the student at each NFE."""
    rows = [(title, dict(result[name])) for name, title in ENDS if name in result]
    for name, title in (
        ("heldout_accuracy", "accuracy"),
        ("heldout_accuracy_second", "accuracy_second"),
        ("heldout_copies", "copies"),
    ):
        if name in result and rows and rows[0][0] == "held-out":
            rows[0][1][title] = result[name]
    if "teacher" in result:
        rows.append(("teacher", result["teacher"]))
    rows += [
        (f"student {name.removeprefix('nfe')}", {"nfe": int(name.removeprefix("nfe"))} | scores)
        for name, scores in result["student"].items()
    ]
    used = [c for c in COLUMNS if any(c in scores for _, scores in rows)]
    used += sorted({key for _, scores in rows for key in scores if key.startswith("fid_")})
    cells = [["", *used]] + [[title, *(_cell(scores.get(column)) for column in used)] for title, scores in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)


def _cell(value: float | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.4f}"
