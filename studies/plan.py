"""A study as its YAML file states it, and the runs (cell, seed) that it consists of."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent
ALWAYS = {"distill.if_diverged": "record"}


@dataclass(frozen=True)
class Cell:
    """One row of the table; `set` holds overrides by dotted key."""

    name: str
    label: str
    set: dict[str, Any]


@dataclass(frozen=True)
class Study:
    """A study file. `metrics` are dotted paths in metrics/evaluate.json, smaller is better."""

    name: str
    title: str
    claim: str
    seeds: tuple[int, ...]
    metrics: tuple[str, ...]
    reference: str
    tuned: bool
    reading: str
    cells: tuple[Cell, ...]


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
        ValueError: a name that stands twice, or a reference that is no cell.
    """
    loaded = yaml.safe_load(path.read_text())
    cells = tuple(Cell(c["name"], c["label"], {**loaded.get("set", {}), **c.get("set", {})}) for c in loaded["cells"])
    names = [cell.name for cell in cells]
    if len(set(names)) < len(names):
        raise ValueError(f"{path.name}, cells: each name must stand once, got {names}")
    if loaded["reference"] not in names:
        raise ValueError(f"{path.name}, reference: '{loaded['reference']}' is no cell; cells: {', '.join(names)}")
    return Study(
        name=path.stem,
        title=loaded["title"],
        claim=loaded["claim"],
        seeds=tuple(loaded["seeds"]),
        metrics=tuple(loaded["metrics"]),
        reference=loaded["reference"],
        tuned=loaded["tuned"],
        reading=loaded.get("reading", ""),
        cells=cells,
    )


def runs(study: Study) -> list[Run]:
    """All runs, by seed first: a seed's teacher is trained once and then comes from the run cache."""
    return [
        Run(f"{study.name}-{cell.name}-s{seed}".replace("_", "-"), cell.name, seed, {**cell.set, **seeded(seed)})
        for seed in study.seeds
        for cell in study.cells
    ]


def seeded(seed: int) -> dict[str, Any]:
    """The overrides that a seed stands for; teacher and student share it, pictures are drawn with the next one."""
    own = {"teacher.seed": seed, "distill.seed": seed, "baseline.seed": seed + 1, "sample.seed": seed + 1}
    return own | ALWAYS


def override(mapping: dict[str, Any], sets: dict[str, Any]) -> None:
    """Set dotted keys in nested mappings, in place.

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
