"""The params: what differs between runs, or, of a single one, from the preset that is nearest to it.

The page of the stage `report` compares with no preset: if it did, an edit of presets/base.yaml, such as a new method's
block, would make every finished run stale.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from facm.report.run import Group, Run
from facm.report.spread import differing, flat
from facm.report.tags import Html, join, table, tag
from facm.report.view import View
from facm.runtime.params import mapping_of, read_text

BASE = "base"
FOLDER = "presets"


def section(groups: Sequence[Group], view: View) -> Html:
    """The table of what differs, and all params of the first run, folded away."""
    run = groups[0].runs[0]
    rows = [[name, value] for name, value in sorted(run.used.items())]
    every = table(["param", "value"], rows, f"All params of {run.name}", words=frozenset({1}))
    several = sum(len(group.runs) for group in groups) > 1
    return join(
        _between(groups, view) if several else _from_preset(run),
        tag("details", tag("summary", f"All {len(rows)} params that the result depends on"), every),
    )


def presets(run: Run) -> dict[str, dict[str, Any]]:
    """The presets as they are where the run is, by name."""
    found = {}
    for name in run.origin.names(FOLDER):
        path = run.origin.path(f"{FOLDER}/{name}")
        if name.endswith(".yaml") and path is not None:
            found[name.removesuffix(".yaml")] = mapping_of(read_text(path), str(name))
    return found


def nearest_preset(used: dict[str, str], known: dict[str, dict[str, Any]]) -> tuple[list[str], dict[str, str]]:
    """The preset and the overlays on it with which the fewest of the params differ.

    Args:
        used: params by dotted names.
        known: presets by name, `base` among them.

    Returns:
        Names, none where base alone is nearest, and their params by dotted names.
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


def _from_preset(run: Run) -> Html:
    known = presets(run)
    if BASE not in known:
        command = tag("code", "python -m facm.report")
        return tag("p", "What differs from the nearest preset is told by ", command, ".")
    names, values = nearest_preset(run.used, known)
    preset = " ".join(names) or BASE
    rows = [
        [name, value, values.get(name, "–")] for name, value in sorted(run.used.items()) if values.get(name) != value
    ]
    if not rows:
        return tag("p", "These are the params of the preset ", tag("code", preset), ", unchanged.")
    words = tag("p", "Nearest is the preset ", tag("code", preset), "; what differs from it:")
    return join(words, table(["param", "here", preset], rows, "Differences from the preset", words=frozenset({1, 2})))


def _between(groups: Sequence[Group], view: View) -> Html:
    runs = [run.used for group in groups for run in group.runs]
    names = differing(runs)
    if not names:
        return tag("p", "All runs have the same params.")
    heads = [view.label(i, group.name) for i, group in enumerate(groups)]
    rows = [[name, *(", ".join(_values(name, group.runs)) for group in groups)] for name in names]
    words = frozenset(range(1, len(groups) + 1))
    return table(["param", *heads], rows, "Params that differ", words=words)


def _values(name: str, runs: Iterable[Run]) -> list[str]:
    """A param's values in the runs of a group: one where they agree."""
    values = [run.used.get(name, "–") for run in runs]
    return values[:1] if len(set(values)) == 1 else values
