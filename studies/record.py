"""What a study has measured, in git: studies/results/NAME.json, a run per line, complete enough to make the table."""

import json
from pathlib import Path
from typing import Any

from facm.runtime.files import atomic_write
from studies.plan import FOLDER, Run

OUT = FOLDER / "results"
KEPT = ("stable", "diverged_at", "not_finite", "teacher", "student", "num", "features", "floor", "class_mean")


def read(study: str, folder: Path = OUT) -> dict[str, dict[str, Any]]:
    """Records by the run's name; none where nothing was measured."""
    path = folder / f"{study}.json"
    return {record["name"]: record for record in json.loads(path.read_text())} if path.exists() else {}


def write(study: str, records: dict[str, dict[str, Any]], folder: Path = OUT) -> None:
    """Write them, a line each, by name."""
    folder.mkdir(exist_ok=True)
    lines = ",\n".join(json.dumps(records[name], sort_keys=True) for name in sorted(records))
    with atomic_write(folder / f"{study}.json") as file:
        file.write(f"[\n{lines}\n]\n".encode())


def of(run: Run, done: dict[str, Any]) -> dict[str, Any]:
    """A record: the run, what of metrics/evaluate.json is kept, and where from.

    Args:
        run: what ran.
        done: `result`, and `code` (the commit), `machine`, `cpu_s` of the whole run.
    """
    kept = {key: done["result"][key] for key in KEPT if key in done["result"]}
    return {"name": run.name, "cell": run.cell, "seed": run.seed, "set": run.set} | done | {"result": kept}


def serves(record: dict[str, Any] | None, run: Run) -> bool:
    """Whether a record is of this very run: the same overrides, whatever code."""
    return record is not None and record["set"] == json.loads(json.dumps(run.set))
