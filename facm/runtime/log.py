"""What a long run reports: a progress bar on a terminal, one line per interval in a log, curves for `dvc plots`."""

import shutil
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from facm.runtime import dist
from facm.runtime.names import printable

QUIET_S = 10  # until the first row, a log hears of a training so often
SILENT_S = 60  # of other long work it hears at least so often, once an item is done


def say(message: str) -> None:
    """One plain line, at once; what the terminal's encoding lacks is escaped."""
    print(printable(message), flush=True)


def span(seconds: float) -> str:
    """A time in the unit that suits it: 40 s, 12 min, 3.5 h, 2.1 days."""
    for unit, length_s, digits in (("s", 1, 0), ("min", 60, 0), ("h", 3600, 1)):
        if seconds < 100 * length_s:
            return f"{max(0.0, seconds) / length_s:.{digits}f} {unit}"
    return f"{seconds / 86400:.1f} days"


def progress(items: Iterable[Any], total: int, what: str) -> Iterable[Any]:
    """A bar on a terminal; in a log a line at each tenth and after each SILENT_S; nothing on ranks other than 0."""
    if not dist.is_main():
        yield from items
        return
    if sys.stderr.isatty():
        yield from tqdm(items, total=total, desc=what, dynamic_ncols=True)
        return
    start, tenths, spoken_s = time.perf_counter(), 0, 0.0
    for done, item in enumerate(items, start=1):
        yield item
        passed_s = time.perf_counter() - start
        if done * 10 // total > tenths or passed_s - spoken_s >= SILENT_S:
            tenths, spoken_s = done * 10 // total, passed_s
            say(f"{what}: {done}/{total}, {passed_s:.1f} s")


class TrainingLog:
    """Rows of one training run. `rows` is plain data, saved with the unfinished state and replayed on resume."""

    def __init__(self, folder: str | Path, what: str, steps: int, rows: list[dict[str, float]], step: int = 0):
        """Start a log at step `step` of `steps`; curves go to `<folder>/plots/metrics/<name>.tsv`.

        `what` begins each line; `rows` are those of an earlier, interrupted part of the run.
        """
        self.folder, self.what, self.steps, self.rows = Path(folder), what, steps, rows
        self._start, self._first = time.perf_counter(), step
        self._bar = (
            tqdm(total=steps, initial=self._first, desc=what, dynamic_ncols=True) if sys.stderr.isatty() else None
        )
        self._quiet_since: float | None = self._start  # None: rows are coming
        if self._bar is None:
            say(f"{what}: from step {self._first} to {steps}")
        shutil.rmtree(self.folder, ignore_errors=True)
        self._live = _live(self.folder)
        self._replay()

    def advance(self, step: int) -> None:
        """A step is done; a log says so while the first row is still to come."""
        if self._bar is not None:
            self._bar.update(step - self._bar.n)
            return
        if self._quiet_since is not None and (now := time.perf_counter()) - self._quiet_since >= QUIET_S:
            say(f"{self.what} {step}/{self.steps} {self._speed(step, now)}")
            self._quiet_since = now

    def compiled(self, step: int) -> None:
        """The first step is done, in which code was compiled: report its time apart and count from here."""
        now = time.perf_counter()
        say(f"{self.what}: first step with compilation {now - self._start:.1f} s")
        self._start, self._first, self._quiet_since = now, step, now

    def row(self, values: dict[str, float]) -> None:
        """One interval: `step`, losses, `grad_norm`, `lr` and the like; shown with ms/step, ETA and memory."""
        self.rows.append(values)
        self._curve(values)
        step = int(values["step"])
        now = time.perf_counter()
        shown = " ".join(f"{name} {value:.4g}" for name, value in values.items() if name != "step")
        if self._bar is not None:
            self._bar.set_postfix_str(f"{shown} {self._ms(step, now):.1f} ms/step")
        else:
            say(f"{self.what} {step}/{self.steps} {shown} {self._speed(step, now)} {dist.peak_memory_mib():.0f} MiB")
        self._quiet_since = None

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._live.end()
        (self.folder / "metrics.json").unlink(missing_ok=True)

    def _ms(self, step: int, now: float) -> float:
        """Milliseconds per step since this process began."""
        return 1e3 * (now - self._start) / max(step - self._first, 1)

    def _speed(self, step: int, now: float) -> str:
        ms = self._ms(step, now)
        return f"{ms:.1f} ms/step ETA {ms * (self.steps - step) / 1e3:.0f} s"

    def _curve(self, values: dict[str, float]) -> None:
        self._live.step = int(values["step"])
        for name, value in values.items():
            if name != "step":
                self._live.log_metric(name, value)

    def _replay(self) -> None:
        """Curves of the rows before, file by file: DVCLive would open every file for every row."""
        curves: dict[str, list[str]] = {}
        for row in self.rows:
            for name in row.keys() - {"step"}:
                curves.setdefault(name, [f"step\t{name}"]).append(f"{int(row['step'])}\t{row[name]}")
        for name, lines in curves.items():
            path = self.folder / "plots" / "metrics" / f"{name}.tsv"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(lines) + "\n")


def _live(folder: Path) -> Any:
    """DVCLive that only writes files: no experiment, no dvc.yaml, no report."""
    import logging

    from dvclive import Live
    from scmrepo.exceptions import SCMError

    logging.getLogger("dvclive").setLevel(logging.ERROR)
    try:
        return Live(str(folder), save_dvc_exp=False, dvcyaml=None, report=None)
    except SCMError as error:
        raise RuntimeError(f"DVCLive on the git repository: {error}; it needs a commit: `git commit` first") from None
