"""The params of the runs and where the runs come from: commit, weights, data, versions, code.

Params are compared between runs or, of a single one, with the nearest preset. The page of the stage `report` compares
with no preset: else an edit of presets/base.yaml, such as a new method's block, would make every finished run stale.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict

from markupsafe import Markup

from facm.report.html import render
from facm.report.run import Group, Run, differing, flat
from facm.report.view import View
from facm.runtime.params import mapping_of, read_text

BASE = "base"
PRESETS = "presets"
DIGITS = 12  # of a hash
ABSENT = "–"


def params(groups: Sequence[Group], view: View) -> Markup:
    """A table of the params that differ, and all params of the first run, folded away."""
    run, runs = groups[0].runs[0], [run for group in groups for run in group.runs]
    several = len(runs) > 1
    preset, rows = ("", _between(groups)) if several else _from_preset(run)
    return render(
        "params.html",
        several=several,
        heads=[view.label(i, group.name) for i, group in enumerate(groups)],
        preset=preset,
        rows=rows,
        name=run.name,
        every=sorted(run.used.items()),
    )


def presets(run: Run) -> dict[str, dict[str, Any]]:
    """The presets of the run's revision, by name."""
    found = {}
    for name in run.origin.names(PRESETS):
        path = run.origin.path(f"{PRESETS}/{name}")
        if name.endswith(".yaml") and path is not None:
            found[name.removesuffix(".yaml")] = mapping_of(read_text(path), str(name))
    return found


def nearest_preset(used: dict[str, str], known: dict[str, dict[str, Any]]) -> tuple[list[str], dict[str, str]]:
    """The preset and its overlays from which the fewest params differ.

    Args:
        used: params by dotted names.
        known: presets by name, `base` among them.

    Returns:
        Their names, none where base alone is nearest, and their params by dotted names.
    """
    names, merged = list[str](), known[BASE]

    def differ(mapping: dict[str, Any]) -> int:
        values = flat(mapping)
        return sum(values.get(name) != value for name, value in used.items())

    while True:
        others = [(name, overlaid(merged, known[name])) for name in sorted(known) if name not in (BASE, *names)]
        least = min(others, key=lambda other: differ(other[1]), default=None)
        if least is None or differ(least[1]) >= differ(merged):
            return names, flat(merged)
        names, merged = [*names, least[0]], least[1]


def overlaid(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """A preset with an overlay on it; blocks are merged, other values replaced."""
    merged = dict(below)
    for key, value in above.items():
        under = below.get(key)
        merged[key] = overlaid(under, value) if isinstance(value, dict) and isinstance(under, dict) else value
    return merged


def _from_preset(run: Run) -> tuple[str | None, list[list[str]]]:
    """The nearest preset and a row per param that differs from it; None: the presets are not available."""
    known = presets(run)
    if BASE not in known:
        return None, []
    names, values = nearest_preset(run.used, known)
    used = sorted(run.used.items())
    rows = [[name, value, values.get(name, ABSENT)] for name, value in used if values.get(name) != value]
    return " ".join(names) or BASE, rows


def _between(groups: Sequence[Group]) -> list[list[str]]:
    """A row per param that differs, with its values by group: one where its runs agree."""

    def values(name: str, group: Group) -> str:
        found = [run.used.get(name, ABSENT) for run in group.runs]
        return found[0] if len(set(found)) == 1 else ", ".join(found)

    names = differing([run.used for group in groups for run in group.runs])
    return [[name, *(values(name, group) for group in groups)] for name in names]


def section(groups: Sequence[Group], view: View) -> Markup:
    """What the runs have in common, what differs, and the code that differs."""
    runs = [(view.label(i, run.name), facts(run)) for i, group in enumerate(groups) for run in group.runs]
    alike, different = list[list[str]](), list[list[str]]()
    for name in dict.fromkeys(name for _, known in runs for name in known):
        values = [known.get(name, ABSENT) for _, known in runs]
        if len(set(values)) == 1:
            alike.append([name, values[0]])
        else:
            different.append([name, *values])
    return render(
        "provenance.html",
        names=[name for name, _ in runs],
        alike=alike,
        different=different,
        committed=any("commit" in known for _, known in runs),
        code=_code(groups),
    )


class Described(TypedDict):
    """What a checkpoint's config.json says that the report takes apart."""

    versions: NotRequired[dict[str, Any] | None]


def facts(run: Run) -> dict[str, str]:
    """What is known of a run, by name."""
    known = dict(run.origin.facts)
    folders = {"student": "data/student"} | ({} if run.scratch else {"teacher": run.teacher})
    for who, folder in folders.items():
        config = run.json(f"{folder}/config.json", Described)
        if config is not None:
            known |= _of_checkpoint(who, config)
    meta = run.json("data/latents/meta.json")
    if meta is not None:
        known["data"] = f"{meta.get('dataset')}, {meta.get('num')} to train on, codec {meta.get('codec')}"
        known["data's fingerprint"] = str(meta.get("fingerprint"))[:DIGITS]
    known["scored by"] = f"{run.result.get('features')}, {run.result.get('num')} samples"
    return known


def _of_checkpoint(who: str, config: Mapping[str, Any]) -> dict[str, str]:
    versions = config.get("versions") or {}
    made = ", ".join(f"{name} {value}" for name, value in sorted(versions.items()))
    return {
        who: f"{config.get('backbone')}, {config.get('objective')}, {config.get('step')} steps, "
        f"EMA {config.get('sigma_rel')}",
        f"{who}'s weights": f"sha256 {str(config.get('sha256'))[:DIGITS]}",
        f"{who} made with": f"{made}, threads {config.get('threads')}",
    }


def _code(groups: Sequence[Group]) -> list[str]:
    """Files of code with more than one content among the runs that have them."""
    known = [run.origin.code for group in groups for run in group.runs if run.origin.code]
    names = {name for code in known for name in code}
    return sorted(name for name in names if len({code[name] for code in known if name in code}) > 1)
