"""Scores of a study's runs -> mean and spread per cell, ties with the reference cell."""

import math
import statistics
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Entry:
    """One metric of one cell over its seeds.

    Attributes:
        mean: of stable runs.
        sd: standard deviation; None with one run.
        n: stable runs.
        unstable: runs that diverged, or whose score is not finite.
        lower: seeds in which it is below the reference cell, which had the same teachers, and seeds that both have.
        complete: whether all runs of the cell are there, so that a metric without a score was not to be measured.
    """

    mean: float | None
    sd: float | None
    n: int
    unstable: int
    lower: tuple[int, int] | None = None
    complete: bool = False


def value_at(result: dict[str, Any], path: str) -> float | None:
    """The value at a dotted path in evaluate.json, finite or not; None where it was not measured."""
    value: Any = result
    for part in path.split("."):
        if not isinstance(value, dict) or part not in value:
            return None
        value = value[part]
    return float(value) if isinstance(value, (int, float)) else None


def look_up(result: dict[str, Any], path: str) -> float | None:
    """The value at a dotted path in evaluate.json; None where it is missing or not finite."""
    value = value_at(result, path)
    return value if value is not None and math.isfinite(value) else None


def of_teacher(result: dict[str, Any]) -> dict[str, Any]:
    """A result with the teacher's scores in place of a student's, under the NFE that they took."""
    return {"student": {f"nfe{result['teacher']['nfe']}": result["teacher"]}}


def entry(results: list[dict[str, Any]], path: str) -> Entry:
    """Over the seeds of one cell. Unstable runs and scores that are not finite are counted and not averaged."""
    stable = [result for result in results if result.get("stable", True)]
    scores = [score for score in (value_at(result, path) for result in stable) if score is not None]
    values = [score for score in scores if math.isfinite(score)]
    mean = statistics.fmean(values) if values else None
    sd = statistics.stdev(values) if len(values) > 1 else None
    return Entry(mean, sd, len(values), len(results) - len(stable) + len(scores) - len(values))


def lower(own: list[dict[str, Any]], reference: list[dict[str, Any]], path: str) -> tuple[int, int]:
    """In how many seeds a cell is below the reference, and how many both have; a result has its `seed`."""
    a, b = (_by_seed(results, path) for results in (own, reference))
    both = a.keys() & b.keys()
    return sum(a[seed] < b[seed] for seed in both), len(both)


def _by_seed(results: list[dict[str, Any]], path: str) -> dict[int, float]:
    """The metric of stable runs by seed; of several runs of a seed, the one that has it."""
    stable = [r for r in results if r.get("stable", True)]
    return {r["seed"]: value for r in stable if (value := look_up(r, path)) is not None}


def tie(a: Entry, b: Entry) -> bool:
    """Whether the means differ by no more than the pooled standard deviation; never so with a single run."""
    if a.mean is None or b.mean is None or a.sd is None or b.sd is None:
        return False
    pooled = math.sqrt(((a.n - 1) * a.sd**2 + (b.n - 1) * b.sd**2) / (a.n + b.n - 2))
    return abs(a.mean - b.mean) <= pooled


def as_text(e: Entry, *, best: bool = False, tied: bool = False) -> str:
    """A cell of the table, such as `**0.86 +- 0.03** (3)`."""
    marks = ("; tie" if tied else "") + (f"; lower in {e.lower[0]} of {e.lower[1]}" if e.lower and e.lower[1] else "")
    marks += f"; {e.unstable} unstable" if e.unstable else ""
    if e.mean is None:
        if e.n + e.unstable:
            return f"no score{marks}"
        return "–" if e.complete else "not run"
    text = f"{e.mean:.3f}" + (f" +- {e.sd:.3f}" if e.sd is not None else "")
    return f"{f'**{text}**' if best else text} ({e.n}{marks})"
