"""DVC's queue: workers that need one teacher train it once; a killed run goes on when it is queued again."""

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from clone import DVC, Clone, SecondSave, copy, make

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A clone with latents, whose trainings take some seconds and save often. Not to be changed."""
    clone = make(tmp_path_factory.mktemp("prepared"))
    for key, value in {"teacher.steps": "400", "runtime.save_every": "20"}.items():
        clone.set(key, value)
    clone.dvc("repro", "latents")
    clone.commit()
    return clone


@pytest.fixture
def clone(prepared: Clone, tmp_path: Path) -> Iterator[Clone]:
    """A copy of it; whatever runs there in the end is killed."""
    copied = copy(prepared, tmp_path / "clone")
    yield copied
    kill(copied)


def processes(clone: Clone) -> list[int]:
    """Every process whose current folder is in the clone: workers of the queue, DVC, stages."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (folder / "cwd").readlink().is_relative_to(clone.root):
                found.append(int(folder.name))
    return found


def kill(clone: Clone) -> None:
    """As a power cut does."""
    while left := [pid for pid in processes(clone) if Path(f"/proc/{pid}/exe").exists()]:
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def wait(when: Callable[[], bool], timeout_s: float = 240) -> None:
    end = time.monotonic() + timeout_s
    while not when():
        assert time.monotonic() < end
        time.sleep(0.2)


def wait_for_success(clone: Clone, num: int, last: str, failed: int = 0) -> None:
    """Wait until so many tasks have printed their last line, and then until DVC says so."""
    wait(lambda: sum(last in text for text in logs(clone)) == num)
    while (status := clone.dvc("queue", "status")).count("Success") < num:  # a second of CPU each time
        assert status.count("Failed") == failed, status
        time.sleep(3)


def start(clone: Clone, workers: int = 1) -> None:
    with clone.running(DVC, "queue", "start", "-j", str(workers)) as started:
        assert started.end() == 0  # the workers that it leaves behind keep its output open: not to be waited for


def logs(clone: Clone) -> list[str]:
    """What each task of the queue has printed so far."""
    return [path.read_text() for path in sorted((clone.root / ".dvc/tmp/exps/run").glob("*/*.out"))]


def test_of_two_workers_that_need_one_teacher_one_trains_it_and_both_go_on(clone: Clone) -> None:
    clone.dvc("exp", "run", "--queue", "-S", "teacher.seed=5", "-S", "distill.alpha=one,cos", "distill")
    start(clone, workers=2)
    wait_for_success(clone, 2, "distill 30/30")
    told = logs(clone)
    assert len(told) == 2 and all("Running stage 'teacher'" in text for text in told)
    assert sum("teacher 400/400" in text for text in told) == 1, "trained once"
    assert sum("waiting to be given what it makes" in text for text in told) == 1
    assert sum("its outputs are taken, nothing is computed again" in text for text in told) == 1
    assert clone.unfinished() == []


def test_a_queued_run_that_was_killed_with_its_worker_goes_on_when_it_is_queued_again(clone: Clone) -> None:
    command = ("exp", "run", "--queue", "-S", "teacher.seed=6", "teacher")
    clone.dvc(*command)
    start(clone)
    wait(SecondSave(clone, "teacher"))
    kill(clone)
    saved = clone.saves("teacher")[-1]
    (task,) = re.findall(r"^(\w{7}) .*Running", clone.dvc("queue", "status"), re.MULTILINE)
    clone.dvc("queue", "kill", task)
    assert re.search(rf"{task} .*Failed", clone.dvc("queue", "status"))
    clone.dvc(*command)
    start(clone)
    wait_for_success(clone, 1, "teacher 400/400", failed=1)
    resumed = [step for text in logs(clone) for step in re.findall(r"teacher: resumed at step (\d+) ", text)]
    assert resumed == [str(saved)]
    assert clone.unfinished() == []
