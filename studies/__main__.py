"""`python -m studies NAME ...`: the plan, the runs that are missing, the tables, the charts."""

import argparse
import copy
import functools
import subprocess
import sys
from dataclasses import dataclass, field, replace
from typing import Any

from facm.runtime import params
from studies import charts, cost, known, page, plan, pool, record, results, tuning, worker

Records = dict[str, dict[str, Any]]  # by the run's name


@dataclass
class Progress:
    """Runs that have ended, recorded one by one."""

    studies: dict[str, plan.Study]  # by the run's name
    total: int
    ended: int = 0
    failed: list[str] = field(default_factory=list)

    def __call__(self, task: pool.Task, done: dict[str, Any] | str) -> None:
        """Record a task that has ended, and print its scores."""
        name = task.run.name
        if isinstance(done, str):
            self.failed.append(name)
            print(f"{name}: {done}", flush=True)
        elif name not in self.studies:
            print(f"{name}: made", flush=True)
        else:
            self.ended += 1
            study = self.studies[name]
            records = collected(study)
            records[name] = record.of(task.run, done)
            write(study, records)
            cell = next(cell for cell in study.cells if cell.name == task.run.cell)
            values = [results.look_up(seen(cell, done["result"]), metric) for metric in study.metrics]
            scores = " ".join("-" if value is None else f"{value:.3f}" for value in values)
            print(f"[{self.ended} of {self.total}] {name}: {scores}, {done['cpu_s']:.0f} s of CPU", flush=True)


def collected(study: plan.Study) -> Records:
    """Records that serve the study's runs as it states them now."""
    records = record.read(study.name)
    return {run.name: records[run.name] for run in plan.runs(study) if record.serves(records.get(run.name), run)}


def write(study: plan.Study, records: Records) -> None:
    """Write results/NAME.json, .md and .svg, and of a tuning study what it chooses."""
    found = {
        cell.name: [seen(cell, r["result"]) | {"seed": r["seed"]} for r in records.values() if r["cell"] == cell.name]
        for cell in study.cells
    }
    missing = {run.cell for run in plan.runs(study) if run.name not in records}
    entries = {
        name: {m: replace(results.entry(scores, m), complete=name not in missing) for m in study.metrics}
        for name, scores in found.items()
    }
    if not study.grid:
        for name in set(found) - {study.reference}:
            for m, e in entries[name].items():
                entries[name][m] = replace(e, lower=results.lower(found[name], found[study.reference], m))
    record.write(study.name, record.read(study.name) | records)  # others stay: their overrides may come back
    (record.OUT / f"{study.name}.md").write_text(page.page(study, entries, page.provenance(records)))
    (record.OUT / f"{study.name}.svg").write_text(charts.svg(study, entries))
    if study.grid:
        tuning.write(study, found)


def seen(cell: plan.Cell, result: dict[str, Any]) -> dict[str, Any]:
    """A result as the cell counts it."""
    return results.of_teacher(result) if cell.of == "teacher" else result


def chosen(study: plan.Study, cells: str | None, seeds: str | None) -> list[plan.Run]:
    """The study's runs, or some of them.

    Raises:
        ValueError: a cell or a seed that the study has not.
    """
    names = [cell.name for cell in study.cells]
    wanted = cells.split(",") if cells else names
    unknown = [name for name in wanted if name not in names]
    if unknown:
        raise ValueError(f"{study.name} has no cell '{unknown[0]}'; cells: {', '.join(names)}")
    known_seeds = list(map(str, study.seeds))
    wanted_seeds = [seed.strip() for seed in seeds.split(",")] if seeds else known_seeds
    unknown = [seed for seed in wanted_seeds if seed not in known_seeds]
    if unknown:
        raise ValueError(
            f"{study.name} has no seed '{unknown[0]}'; seeds: {', '.join(known_seeds)}; `seeds` in "
            f"studies/{study.name}.yaml sets them"
        )
    return [run for run in plan.runs(study) if run.cell in wanted and str(run.seed) in wanted_seeds]


def main() -> None:
    """State the plan and its CPU-hours, run what is missing, write tables and charts."""
    parser = argparse.ArgumentParser(prog="python -m studies", description=main.__doc__)
    parser.add_argument("names", nargs="*", help="files of studies/ without .yaml")
    parser.add_argument("--list", action="store_true", help="the studies")
    parser.add_argument("--plan", action="store_true", help="state the plan only")
    parser.add_argument("--collect", action="store_true", help="write tables and charts from the records")
    parser.add_argument("--cells", help="run these cells only, a,b")
    parser.add_argument("--seeds", help="run these seeds only, 0,1")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one CPU thread each")
    parser.add_argument("--minutes", type=float, help="start no run after so many minutes")
    a = parser.parse_args()
    if a.jobs < 1 or (a.minutes is not None and not a.minutes >= 0):
        raise ValueError(f"--jobs {a.jobs} must be at least 1, --minutes {a.minutes} at least 0")
    paths = {path.stem: path for path in sorted(plan.FOLDER.glob("*.yaml"))}
    if a.list or not a.names:
        for name, path in paths.items():
            print(f"{name:24s}{params.raw(path)['title']}")
        sys.exit(0 if a.list else "studies: name a study")
    unknown = [name for name in a.names if name not in paths]
    if unknown:
        raise ValueError(f"unknown study '{unknown[0]}'; `python -m studies --list` has them")
    studies = [plan.read(paths[name]) for name in a.names]
    if a.collect:
        for study in studies:
            write(study, collected(study))
            print((record.OUT / f"{study.name}.md").read_text())
        return
    unready = [study for study in studies if not study.ready]
    if unready:
        raise ValueError(
            f"{unready[0].name} starts from what `python -m studies {unready[0].tuned}` chooses: run it first"
        )
    progress = Progress({}, 0)
    queue: list[tuple[plan.Run, str, dict[str, Any]]] = []
    for study in studies:
        done, start = collected(study), worker.baseline(study.preset)
        raw = params.mapping_of(worker.git("show", f"{start}:./params.yaml"), f"{start}:params.yaml")
        wanted = chosen(study, a.cells, a.seeds)
        missing = [run for run in wanted if run.name not in done]
        elsewhere = known.known(known.others(study, paths), missing, raw, functools.cache(known.params_at(study)))
        if elsewhere and not a.plan:
            write(study, done | elsewhere)
        missing = [run for run in missing if run.name not in elsewhere]
        hours = cost.hours([(run, raw) for run in missing]) if missing else 0.0
        print(f"{study.title}: {len(wanted)} runs, {len(missing)} missing, about {hours:.1f} CPU-hours")
        if elsewhere:
            print(f"  {len(elsewhere)} are known from other studies")
        progress.studies |= {run.name: study for run in missing}
        queue += [(run, start, copy.deepcopy(raw)) for run in missing]
    progress.total = len(queue)
    print("".join(f"  {run.name}\n" for run, _, _ in queue), end="", flush=True)
    if a.plan or not queue:
        return
    worker.require_clean()
    pool.run_all(pool.tasks(queue), a.jobs, progress, a.minutes)
    for study in studies:
        if (record.OUT / f"{study.name}.md").exists():
            print(f"\n{(record.OUT / f'{study.name}.md').read_text()}")
    if progress.failed:
        sys.exit(f"studies: {', '.join(progress.failed)} failed; the same command goes on from their last saves")


if __name__ == "__main__":
    try:
        main()
    except (worker.StudyError, ValueError, subprocess.CalledProcessError) as error:
        sys.exit(f"studies: {error}")
