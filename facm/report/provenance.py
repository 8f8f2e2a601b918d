"""Where the runs come from: commit, weights, data, versions, and the code that differs between them."""

from collections.abc import Sequence
from typing import Any

from facm.report.run import Group, Run
from facm.report.tags import Html, join, table, tag
from facm.report.view import View

DIGITS = 12  # of a hash


def section(groups: Sequence[Group], view: View) -> Html:
    """A table with a column per run, one of what all have in common, and what is not known."""
    runs = [(view.label(i, run.name), facts(run)) for i, group in enumerate(groups) for run in group.runs]
    names = list(dict.fromkeys(name for _, known in runs for name in known))
    parts = list[Html]()
    alike = [name for name in names if len({known.get(name) for _, known in runs}) == 1]
    other = [name for name in names if name not in alike]
    if other:
        rows = [[name, *(known.get(name, "–") for _, known in runs)] for name in other]
        words = frozenset(range(1, len(runs) + 1))
        parts.append(table(["", *(name for name, _ in runs)], rows, "What is of one run", words=words))
    if alike:
        head = "all runs" if len(runs) > 1 else runs[0][0]
        rows = [[name, runs[0][1][name]] for name in alike]
        parts.append(table(["", head], rows, "What the runs' files say of themselves", words=frozenset({1})))
    if not any("commit" in known for _, known in runs):
        parts.append(
            tag("p", "This page is part of the run's own results, so it cannot tell the commit that will hold it.")
        )
    parts.append(
        tag("p", "Seconds are in no file of a run: the same inputs give the same bytes on a fast and a slow day.")
    )
    code = _code(groups)
    if code:
        parts.append(tag("details", tag("summary", f"Code that differs: {len(code)} files"), tag("p", ", ".join(code))))
    return join(*parts)


def facts(run: Run) -> dict[str, str]:
    """What is known of a run, by name."""
    known = dict(run.origin.facts)
    folders = {"student": "data/student"} | ({} if run.scratch else {"teacher": run.teacher})
    for who, folder in folders.items():
        config = run.json(f"{folder}/config.json")
        if config is not None:
            known |= _of_checkpoint(who, config)
    meta = run.json("data/latents/meta.json")
    if meta is not None:
        known["data"] = f"{meta.get('dataset')}, {meta.get('num')} to train on, codec {meta.get('codec')}"
        known["data's fingerprint"] = str(meta.get("fingerprint"))[:DIGITS]
    known["scored by"] = f"{run.result.get('features')}, {run.result.get('num')} samples"
    return known


def _of_checkpoint(who: str, config: dict[str, Any]) -> dict[str, str]:
    versions = config.get("versions") or {}
    made = ", ".join(f"{name} {value}" for name, value in sorted(versions.items()))
    return {
        f"{who}": f"{config.get('backbone')}, {config.get('objective')}, {config.get('step')} steps, "
        f"EMA {config.get('sigma_rel')}",
        f"{who}'s weights": f"sha256 {str(config.get('sha256'))[:DIGITS]}",
        f"{who} made with": f"{made}, threads {config.get('threads')}",
    }


def _code(groups: Sequence[Group]) -> list[str]:
    """Files of code with more than one content among the runs that have them."""
    known = [run.origin.code for group in groups for run in group.runs if run.origin.code]
    names = {name for code in known for name in code}
    return sorted(name for name in names if len({code[name] for code in known if name in code}) > 1)
