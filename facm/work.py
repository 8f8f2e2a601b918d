"""`python -m facm.work`: what is unfinished here, how far it is, and whether it may go."""

import argparse
import shutil
import sys
from pathlib import Path

from facm.runtime.log import say, span
from facm.runtime.paths import repository_root
from facm.runtime.resume import locks
from facm.runtime.resume.unfinished import Unfinished, look

DAY_S = 86400.0


def main(arguments: list[str] | None = None) -> None:
    """List unfinished runs, or remove those that nobody uses."""
    parser = argparse.ArgumentParser(prog="python -m facm.work", description=main.__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="runs as they are listed, or how they begin; else all")
    parser.add_argument("--prune", action="store_true", help="remove them, except those in use or awaited")
    parser.add_argument("--older", type=float, default=0, metavar="DAYS", help="only those not written to for so long")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    asked = parser.parse_args(arguments)
    if not 0 <= asked.older < float("inf"):
        raise SystemExit(f"error: --older {asked.older:g}: give a number of days, 0 or more")
    work = repository_root() / ".work"
    runs = look(work)
    unknown = [name for name in asked.names if not any(run.folder.name.startswith(name) for run in runs)]
    if unknown:
        raise SystemExit(f"error: {work} has no unfinished run {', '.join(unknown)}")
    chosen = [run for run in runs if _is_chosen(run, asked.names, asked.older)]
    say(table(chosen) if chosen else f"{work}: no unfinished runs" + (" that were asked for" if runs else ""))
    if asked.prune and chosen:
        prune(work, chosen, yes=asked.yes)


def table(runs: list[Unfinished]) -> str:
    """A line per run: name, how far, size, age, who has it."""
    rows = [("run", "reached", "size", "last written", "in use by")]
    for run in runs:
        rows.append(
            (run.folder.name, run.reached, f"{run.size / 2**20:.1f} MiB", span(run.age_s) + " ago", run.used_by)
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def prune(work: Path, runs: list[Unfinished], *, yes: bool) -> None:
    """Remove runs that nobody uses, after a question on a terminal.

    Raises:
        SystemExit: there is no terminal to ask on, or the answer is not yes.
    """
    free, used = [run for run in runs if run.free], [run.folder.name for run in runs if not run.free]
    size = sum(run.size for run in free)
    what = f"{len(free)} of {len(runs)} runs, {size / 2**20:.1f} MiB"
    if free and not yes:
        if not sys.stdin.isatty():
            raise SystemExit(f"error: would remove {what}, and there is no terminal to ask on: add --yes")
        if input(f"remove {what}? [y/N] ").strip().lower() not in ("y", "yes"):
            raise SystemExit("nothing is removed")
    gone = [run.folder.name for run in free if locks.remove_unused(run.folder)]
    for left in work.glob(".*-*"):  # by a removal that was killed
        shutil.rmtree(left, ignore_errors=True)
    say(f"removed: {', '.join(gone) or 'nothing'}" + (f"; in use or awaited: {', '.join(used)}" if used else ""))


def _is_chosen(run: Unfinished, names: list[str], days: float) -> bool:
    named = not names or any(run.folder.name.startswith(name) for name in names)
    return named and run.age_s >= days * DAY_S


if __name__ == "__main__":
    main()
