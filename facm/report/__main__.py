"""`python -m facm.report REV ...`: one page about runs, read out of git and DVC's cache.

    python -m facm.report HEAD seed1 seed2
    python -m facm.report HEAD my-experiment --out comparison.html
    python -m facm.report

REV is a branch, tag, hash or an experiment's name; "." or none is the workspace. Runs that differ by their seeds only
are one column, with mean and standard deviation. The workspace is not touched and nothing is fetched: what the cache
lacks of a revision is told, and left out.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from facm.report.page import page
from facm.report.revision import Revision, workspace
from facm.report.run import Run, grouped
from facm.runtime.files import atomic_write, refuse_no_target
from facm.runtime.log import say
from facm.runtime.params import ParamsError

WORKSPACE = "."


def compare(names: Sequence[str], blobs: Path) -> tuple[str, list[str]]:
    """The page about revisions, and a line per revision that lacks something.

    Args:
        names: revisions, experiments, or "." for the workspace; each once.
        blobs: an empty folder for files out of git.

    Raises:
        ValueError: one that there is not, or that holds no scores.
    """
    runs = []
    for number, name in enumerate(dict.fromkeys(names)):
        here = name == WORKSPACE
        origin = workspace(Path()) if here else Revision.open(name, blobs / str(number))
        runs.append(Run.of("workspace" if here else name, origin))
    text = page(grouped(runs))
    lacking = [(run.name, run.origin.missing()) for run in runs]
    return text, [f"{name}: not in the cache, left out: {', '.join(what)}" for name, what in lacking if what]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m facm.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("revisions", nargs="*", metavar="REV", help="revisions or experiments; none: the workspace")
    parser.add_argument("--out", type=Path, default=Path("report.html"), help="the page (report.html)")
    arguments = parser.parse_args()
    try:
        refuse_no_target(arguments.out)
        with tempfile.TemporaryDirectory() as blobs:
            text, told = compare(arguments.revisions or [WORKSPACE], Path(blobs))
        with atomic_write(arguments.out) as file:
            file.write(text.encode())
    except (ParamsError, ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    for line in told:
        say(line)
    say(f"{arguments.out}: {len(text.encode()) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
