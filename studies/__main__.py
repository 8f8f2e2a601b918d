"""`python -m studies NAME`: the plan, the runs that are missing, the table, the plot."""

import argparse
import sys
from dataclasses import replace
from typing import Any

from facm import params
from studies import cost, page, plan, record, results, runs


def collected(study: plan.Study) -> dict[str, dict[str, Any]]:
    """Records of the study's runs: experiments of this clone first, then what was committed."""
    known, records = runs.experiments(), record.read(study.name)
    for run in plan.runs(study):
        found = runs.finished(run, known)
        if found is not None:
            records[run.name] = record.of(run, found.baseline, found.result)
    return {run.name: records[run.name] for run in plan.runs(study) if record.serves(records.get(run.name), run)}


def write(study: plan.Study, records: dict[str, dict[str, Any]]) -> None:
    """Write results/NAME.json, .md and .svg, and show the table."""
    found = {cell.name: [r["result"] for r in records.values() if r["cell"] == cell.name] for cell in study.cells}
    entries = {name: {m: results.entry(scores, m) for m in study.metrics} for name, scores in found.items()}
    record.write(study.name, records)
    codes = sorted({str(r["code"])[:7] for r in records.values()})
    (record.OUT / f"{study.name}.md").write_text(page.page(study, entries, codes))
    (record.OUT / f"{study.name}.svg").write_text(page.svg(study, entries))
    print(page.table(study, entries), end="")


def chosen(study: plan.Study, cells: str | None, seeds: str | None) -> list[plan.Run]:
    """The study's runs, or some of them.

    Raises:
        ValueError: a cell that the study has not.
    """
    names = [cell.name for cell in study.cells]
    wanted = cells.split(",") if cells else names
    unknown = [name for name in wanted if name not in names]
    if unknown:
        raise ValueError(f"{study.name} has no cell '{unknown[0]}'; cells: {', '.join(names)}")
    some = replace(study, seeds=tuple(map(int, seeds.split(",")))) if seeds else study
    return [run for run in plan.runs(some) if run.cell in wanted]


def main() -> None:
    """State the plan and its CPU-hours, run what is missing, write table and plot."""
    parser = argparse.ArgumentParser(prog="python -m studies", description=main.__doc__)
    parser.add_argument("name", nargs="?", help="a file of studies/ without .yaml")
    parser.add_argument("--list", action="store_true", help="the studies")
    parser.add_argument("--plan", action="store_true", help="state the plan only")
    parser.add_argument("--collect", action="store_true", help="write the table from what is there")
    parser.add_argument("--cells", help="run these cells only, a,b")
    parser.add_argument("--seeds", help="run these seeds only, 0,1")
    a = parser.parse_args()
    paths = {path.stem: path for path in sorted(plan.FOLDER.glob("*.yaml"))}
    if a.list or a.name not in paths:
        print("\n".join(f"{name:16s}{plan.read(path).title}" for name, path in paths.items()))
        sys.exit(0 if a.list else f"studies: unknown study '{a.name}'")
    study = plan.read(paths[a.name])
    records = collected(study)
    if not a.collect:
        wanted = chosen(study, a.cells, a.seeds)
        missing = [run for run in wanted if run.name not in records]
        raw = params.raw()
        hours = cost.hours(missing, raw, cost.seconds_per_picture(raw)) if missing else 0.0
        print(f"{study.title}: {len(wanted)} runs, {len(missing)} missing, about {hours:.1f} CPU-hours")
        print("".join(f"  {run.name}\n" for run in missing), end="", flush=True)
        if a.plan:
            return
        failed = run_all(study, missing)
        if failed:
            sys.exit(f"studies: {', '.join(failed)} failed; the same command goes on from their last saves")
    else:
        write(study, records)


def run_all(study: plan.Study, missing: list[plan.Run]) -> list[str]:
    """Run them one after another, writing what there is after each; returns the names of those that failed."""
    if missing:
        runs.require_clean()
    failed = []
    for number, run in enumerate(missing):
        print(f"== {run.name} ({number + 1} of {len(missing)})", flush=True)
        if not runs.start(run):
            failed.append(run.name)
        write(study, collected(study))
    return failed


if __name__ == "__main__":
    try:
        main()
    except (runs.StudyError, ValueError) as error:
        sys.exit(f"studies: {error}")
