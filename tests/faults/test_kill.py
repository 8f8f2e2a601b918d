"""kill -9 of DVC and its stage together, at 20 random moments of one run."""

import random
import re
import time
from pathlib import Path

import pytest
import yaml
from clone import DVC, Clone, Running, copy, in_part, ran

pytestmark = pytest.mark.slow

SEED = 20250703
ORDER = ("reference", "latents", "teacher", "baseline", "distill", "sample", "evaluate", "report")
KILLS = {"reference": 2, "latents": 2, "teacher": 5, "baseline": 2, "distill": 5, "sample": 2, "evaluate": 2}
LATEST = {"teacher": 110, "distill": 50, "evaluate": 1.5}  # steps, or seconds; else 4 s


def moments() -> list[tuple[str, float]]:
    """20 times (stage, moment): of a training the step that was saved last, else seconds from the stage's start."""
    generator, drawn = random.Random(SEED), []
    for stage, num in KILLS.items():
        drawn += [(stage, time_s) for time_s in sorted(generator.uniform(0, LATEST.get(stage, 4)) for _ in range(num))]
    return drawn


class Moment:
    """Holds at one of the moments, or once a later stage runs."""

    def __init__(self, clone: Clone, run: Running, stage: str, moment: float):
        self.clone, self.run, self.stage, self.moment = clone, run, stage, moment
        self.start: float | None = None

    def __call__(self) -> bool:
        running = [ORDER.index(stage) for stage in ran(self.run.told())]
        place = ORDER.index(self.stage)
        if not running or running[-1] != place:
            return bool(running) and running[-1] > place
        self.start = self.start or time.monotonic()
        if self.stage in ("teacher", "distill"):
            return max(self.clone.saves(self.stage), default=0) >= self.moment
        return time.monotonic() - self.start >= self.moment


def killed(clone: Clone, stage: str, moment: float) -> str:
    """`dvc repro` until then; returns what it told. A kill while DVC wrote its own files is repaired first."""
    with clone.running(DVC, "repro") as run:
        at = Moment(clone, run, stage, moment)
        run.until(lambda: at() or in_part(run.told()), 120)
    if not in_part(run.told()):
        return run.told()
    print(f"before {stage} {moment}: {run.told()}")
    clone.repair()
    return killed(clone, stage, moment)


def test_a_run_that_is_killed_twenty_times_ends_bit_identical(fresh: Clone, undisturbed: Clone, tmp_path: Path) -> None:
    clone, told = copy(fresh, tmp_path / "clone"), []
    print(f"seed {SEED}: {moments()}")
    for stage, moment in moments():
        told.append(killed(clone, stage, moment))
    told.append(clone.repro())
    for stage in ("teacher", "distill"):
        steps = [int(step) for step in re.findall(rf"{stage}: resumed at step (\d+)", "\n".join(told))]
        print(stage, steps)
        assert steps and steps == sorted(steps)
    assert clone.made() == undisturbed.made()
    assert yaml.safe_load(clone.read("dvc.lock")) == yaml.safe_load(undisturbed.read("dvc.lock"))
    assert clone.damaged_in_cache() == clone.unfinished() == []
