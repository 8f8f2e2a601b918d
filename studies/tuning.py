"""What a tuning study chooses: per method the trial with the least geometric mean of the study's metrics.

Written to studies/tuned/NAME.yaml, from which other studies' cells start.
"""

import math
from typing import Any

from facm.runtime.params import written
from studies import plan
from studies.results import look_up

Results = dict[str, list[dict[str, Any]]]  # by cell


def score(result: dict[str, Any], metrics: tuple[str, ...]) -> float:
    """Geometric mean of the metrics; infinite where the run was unstable or has no score."""
    values = [look_up(result, metric) for metric in metrics]
    if not result.get("stable", True) or any(value is None or value <= 0 for value in values):
        return math.inf
    return math.exp(sum(math.log(value) for value in values if value is not None) / len(values))


def choose(study: plan.Study, results: Results) -> dict[str, dict[str, Any]]:
    """The choice by method, of methods all of whose trials have run.

    Returns:
        `set`: the overrides beside the method's name and what all trials of the study share; `score`; `first`: the
        first trial's; `trials`: how many.
    """
    shared = [
        key for key, v in study.cells[0].set.items() if all(key in c.set and c.set[key] == v for c in study.cells)
    ]
    methods: dict[str, list[plan.Cell]] = {}
    for cell in study.cells:
        methods.setdefault(cell.set["distill.objective"], []).append(cell)
    chosen = {}
    for method, cells in methods.items():
        if not all(results[cell.name] for cell in cells):
            continue
        scores = [score(results[cell.name][0], study.metrics) for cell in cells]
        best = min(range(len(cells)), key=scores.__getitem__)
        sets = {k: v for k, v in cells[best].set.items() if k not in ("distill.objective", *shared)}
        found = {"score": _round(scores[best]), "first": _round(scores[0]), "trials": len(cells)}
        chosen[method] = {"set": sets} | found
    return chosen


def write(study: plan.Study, results: Results) -> None:
    """Write studies/tuned/NAME.yaml."""
    plan.TUNED.mkdir(exist_ok=True)
    head = f"# Written by `python -m studies {study.name}`: the best of each method's trials.\n"
    (plan.TUNED / f"{study.name}.yaml").write_text(head + written(choose(study, results)))


def _round(value: float) -> float:
    return float(f"{value:.4g}")
