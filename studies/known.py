"""Runs that another study has measured: a cell that stands in several tables is run once."""

from collections.abc import Callable, Mapping
from typing import Any

import yaml

from studies import record, worker
from studies.plan import Run, Study, read

Defaults = Mapping[str, Any]  # params.yaml as nested mappings
ABSENT = object()


def known(studies: list[Study], missing: list[Run], now: Defaults, at: Callable[[str], Defaults]) -> dict[str, Any]:
    """Records for missing runs, by the run's name, each with `of`, the run that was measured.

    Args:
        studies: others that start from the same preset.
        missing: runs of a study that have no record.
        now: params that they start from.
        at: params at a commit, where they are known; else nothing.
    """
    there = [r for study in studies for r in record.read(study.name).values() if "of" not in r]
    found = {}
    for run in missing:
        for r in (r for r in there if r["seed"] == run.seed):
            if same(r["set"], run.set, at(r["code"]) if run.set.keys() - r["set"].keys() else {}, now):
                found[run.name] = r | {"name": run.name, "cell": run.cell, "set": run.set, "of": r["name"]}
                break
    return found


def same(measured: dict[str, Any], wanted: dict[str, Any], then: Defaults, now: Defaults) -> bool:
    """Whether two sets of overrides mean the same, one over the defaults of `then`, one over those of `now`.

    Of what neither names nothing is said: as everywhere in studies, a result serves by its overrides.
    """
    return all(
        _equal(measured.get(key, value(then, key)), wanted.get(key, value(now, key)))
        for key in measured.keys() | wanted.keys()
    )


def value(defaults: Defaults, key: str) -> Any:
    """What stands under a dotted key; ABSENT where nothing does, which equals nothing."""
    here: Any = defaults
    for part in key.split("."):
        here = here.get(part, ABSENT) if isinstance(here, Mapping) else ABSENT
    return here


def _equal(a: Any, b: Any) -> bool:
    return a is not ABSENT and b is not ABSENT and a == b


def params_at(study: Study) -> Callable[[str], Defaults]:
    """The committed params.yaml by commit; of a preset nothing, since only the code of its time can render it."""

    def at(commit: str) -> Defaults:
        try:
            text = worker.git("show", f"{commit}:params.yaml") if study.preset is None else ""
        except worker.StudyError:  # a shallow clone
            return {}
        return yaml.safe_load(text) or {}

    return at


def others(study: Study, paths: Mapping[str, Any]) -> list[Study]:
    """Studies of the same preset, with the params as they start from; tuning's trials are of another seed."""
    return [s for name, path in paths.items() if name != study.name and (s := read(path)).preset == study.preset]
