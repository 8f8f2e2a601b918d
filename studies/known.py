"""Runs that another study has measured: a cell that stands in several tables is run once."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from facm.runtime.params import mapping_of
from studies import record, worker
from studies.plan import Run, Study, read

Defaults = Mapping[str, Any]  # params.yaml as nested mappings
ABSENT = object()
UNREAD = ("runtime", "report")  # blocks that change no figure


def known(studies: list[Study], missing: list[Run], now: Defaults, at: Callable[[str], Defaults]) -> dict[str, Any]:
    """Records for missing runs, by the run's name, each with `of`, the run that was measured.

    Args:
        studies: others that start from the same preset.
        missing: runs of a study that have no record.
        now: params that they start from.
        at: params at a commit; nothing where they are not known, and then its runs are not taken.
    """
    there = [r for study in studies for r in record.read(study.name).values() if "of" not in r]
    found = {}
    for run in missing:
        for r in (r for r in there if r["seed"] == run.seed):
            if (then := at(r["code"])) and same(r["set"], run.set, then, now):
                found[run.name] = r | {"name": run.name, "cell": run.cell, "set": run.set, "of": r["name"]}
                break
    return found


def same(measured: dict[str, Any], wanted: dict[str, Any], then: Defaults, now: Defaults) -> bool:
    """Whether two sets of overrides mean the same run, one over the params of `then`, one over those of `now`.

    Keys that came or went between the two are passed over where no override names them; so is what only training from
    scratch reads, where the wanted run has a teacher.
    """
    scratch = wanted.get("distill.mode", value(now, "distill.mode")) == "scratch"
    block = {"backbones": "backbone.name", "preconds": "backbone.precond", "objectives": "distill.objective"}

    def counts(key: str) -> bool:
        first, _, rest = key.partition(".")
        if first in block and rest.partition(".")[0] != wanted.get(block[first], value(now, block[first])):
            return False
        if first in UNREAD or (key.startswith("distill.scratch") and not scratch):
            return False
        return value(then, key) is not ABSENT

    keys = measured.keys() | wanted.keys() | set(filter(counts, leaves(now)))
    return all(_equal(measured.get(key, value(then, key)), wanted.get(key, value(now, key))) for key in keys)


def leaves(mapping: Mapping[str, Any], where: str = "") -> Iterator[str]:
    """Dotted keys of all values in nested mappings."""
    for key, inner in mapping.items():
        if isinstance(inner, Mapping):
            yield from leaves(inner, f"{where}{key}.")
        else:
            yield f"{where}{key}"


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
            text = worker.git("show", f"{commit}:./params.yaml") if study.preset is None else ""
        except worker.StudyError:  # a shallow clone
            return {}
        return mapping_of(text, f"{commit}:params.yaml") if text else {}

    return at


def others(study: Study, paths: Mapping[str, Any]) -> list[Study]:
    """Studies of the same preset, with the params as they start from; tuning's trials are of another seed."""
    return [s for name, path in paths.items() if name != study.name and (s := read(path)).preset == study.preset]
