"""A study as its YAML file states it, and the runs (cell, seed) that it consists of."""

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from facm.runtime import params

FOLDER = Path(__file__).parent
TUNED = FOLDER / "tuned"
ALWAYS = {"distill.if_diverged": "record"}
FROM_SCRATCH = {"report.pictures": "data/samples", "report.curves": "metrics/distill"}


@dataclass(frozen=True)
class Cell:
    """One row of the table.

    Attributes:
        name: unique in its study.
        label: as the table shows it.
        set: overrides by dotted key.
        of: student | teacher, whose scores count; a teacher's are under the NFE that the baseline stage took.
        variants: overrides of as many runs per seed; each fills the metrics that it has.
    """

    name: str
    label: str
    set: dict[str, Any]
    of: str = "student"
    variants: tuple[dict[str, Any], ...] = ({},)


@dataclass(frozen=True)
class Study:
    """A study file.

    Attributes:
        metrics: dotted paths in metrics/evaluate.json, smaller is better.
        preset: of params.yaml, `python -m facm.preset NAME`; None: params.yaml as it is committed.
        tuned: the tuning study whose choice each cell starts from; None: constants as shipped.
        ready: whether that tuning has run; else the cells have constants as shipped, and nothing may be run.
        grid: whether this is a tuning study: one seed, cells are the trials of a method.
        curve: x values by cell, for a chart of curves rather than rows; cells named alike up to the last `_` are one.
    """

    name: str
    title: str
    claim: str
    seeds: tuple[int, ...]
    metrics: tuple[str, ...]
    reference: str
    reading: str
    cells: tuple[Cell, ...]
    preset: str | None = None
    tuned: str | None = None
    ready: bool = True
    grid: bool = False
    curve: dict[str, float] | None = None


@dataclass(frozen=True)
class Run:
    """One cell with one seed, an experiment of the name `name`."""

    name: str
    cell: str
    seed: int
    set: dict[str, Any]


def read(path: Path) -> Study:
    """A study from its file.

    Raises:
        ValueError: a name that occurs twice, or a reference that is no cell.
    """
    loaded = params.raw(path)
    shared, chosen = loaded.get("set", {}), tuned(loaded.get("tuned"))
    cells = tuple(
        Cell(c["name"], c["label"], _overrides(c, shared, chosen), c.get("of", "student"), _variants(c))
        for c in loaded.get("cells") or trials(loaded["grids"])
    )
    names = [cell.name for cell in cells]
    if len(set(names)) < len(names):
        raise ValueError(f"{path.name}, cells: each name must occur once, got {names}")
    reference = loaded.get("reference", names[0])
    if reference not in names:
        raise ValueError(f"{path.name}, reference: '{reference}' is no cell; cells: {', '.join(names)}")
    return Study(
        name=path.stem,
        title=loaded["title"],
        claim=loaded.get("claim", ""),
        seeds=tuple(loaded["seeds"]),
        metrics=tuple(loaded["metrics"]),
        reference=reference,
        reading=loaded.get("reading", ""),
        cells=cells,
        preset=loaded.get("preset"),
        tuned=loaded.get("tuned"),
        ready=loaded.get("tuned") is None or all(cell.set.get("distill.objective") in chosen for cell in cells),
        grid="grids" in loaded,
        curve={c["name"]: float(c["x"]) for c in loaded.get("cells", []) if "x" in c} or None,
    )


def trials(grids: dict[str, dict[str, list[Any]]]) -> list[dict[str, Any]]:
    """Cells of a tuning study: per method every combination of its lists, the first of each being the shipped value."""
    cells = []
    for method, grid in grids.items():
        for number, values in enumerate(product(*grid.values())):
            chosen = dict(zip(grid, values, strict=True))
            constants = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in chosen.items())
            sets = {"distill.objective": method} | chosen
            cells.append({"name": f"{method}_{number}", "label": f"{method}, {constants}", "set": sets})
    return cells


def tuned(study: str | None) -> dict[str, dict[str, Any]]:
    """Overrides by method that a tuning study has chosen; none without a study, or where it has not run."""
    if study is None or not tuned_path(study).exists():
        return {}
    return {method: entry["set"] for method, entry in params.raw(tuned_path(study)).items()}


def tuned_path(study: str) -> Path:
    """Where a tuning study's choice is written."""
    return TUNED / f"{study}.yaml"


def _overrides(cell: dict[str, Any], shared: dict[str, Any], chosen: dict[str, dict[str, Any]]) -> dict[str, Any]:
    own = shared | cell.get("set", {})
    return chosen.get(own.get("distill.objective", ""), {}) | own


def _variants(cell: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    return tuple(cell.get("variants", [{}]))


def runs(study: Study) -> list[Run]:
    """All runs, by seed first."""
    return [
        Run(_name(study, cell, number, seed), cell.name, seed, {**cell.set, **variant, **seeded(seed)})
        for seed in study.seeds
        for cell in study.cells
        for number, variant in enumerate(cell.variants)
    ]


def _name(study: Study, cell: Cell, number: int, seed: int) -> str:
    variant = f"-v{number}" if len(cell.variants) > 1 else ""
    return f"{study.name}-{cell.name}{variant}-s{seed}".replace("_", "-")


def seeded(seed: int) -> dict[str, Any]:
    """The overrides of a seed: teacher and student share it, the samples' noise has the next one."""
    own = {"teacher.seed": seed, "distill.seed": seed, "baseline.seed": seed + 1, "sample.seed": seed + 1}
    return own | ALWAYS


def complete(sets: dict[str, Any]) -> dict[str, Any]:
    """Overrides with those that the check needs from scratch.

    No study runs the stage `report`: no result depends on them, and no record has them.
    """
    return (FROM_SCRATCH if sets.get("distill.mode") == "scratch" else {}) | sets


def override(mapping: dict[str, Any], sets: dict[str, Any]) -> dict[str, Any]:
    """Set dotted keys in nested mappings, in place; returns them.

    Raises:
        KeyError: a key that is not there.
    """
    for key, value in sets.items():
        *path, last = key.split(".")
        block = mapping
        for part in path:
            block = block[part]
        if last not in block:
            raise KeyError(key)
        block[last] = value
    return mapping
