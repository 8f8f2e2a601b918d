"""Two that need one training: a second `dvc repro`, a trainer that has outlived its DVC, queue workers.

One trains, the other waits; where the first one dies, the other goes on from its last save.
"""

import os
import re
import signal
import time
from collections.abc import Callable

import pytest
from clone import DVC, Clone, Running, SecondSave, hooked

pytestmark = pytest.mark.slow
WEIGHTS = "data/teacher/model.safetensors"
WAITS, TAKEN = "waiting to be given what it makes", "its outputs are taken, nothing is computed again"
# A queue worker starts whenever it likes: its trainer stands still by itself after its second save.
HALT = """\
import os, signal
saves, replace = 0, os.replace
def halting(old, new):
    global saves
    replace(old, new)
    if os.path.basename(os.fsdecode(new)).startswith("state-"):
        saves += 1
        if saves == 2:
            os.kill(os.getpid(), signal.SIGSTOP)
os.replace = halting
"""


def wait(when: Callable[[], bool], timeout_s: float = 120) -> None:
    end = time.monotonic() + timeout_s
    while not when():
        assert time.monotonic() < end
        time.sleep(0.05)


def stopped(clone: Clone) -> int:
    """The trainer, made to stand still: it is alive and holds its lock for as long as a test needs."""
    (trainer,) = clone.trainers()
    os.kill(trainer, signal.SIGSTOP)
    return trainer


def assert_undisturbed(clone: Clone, undisturbed: Clone) -> None:
    made = clone.made()
    assert made == {path: undisturbed.made()[path] for path in made}
    assert WEIGHTS in made
    assert clone.damaged_in_cache() == []


def test_a_second_repro_is_refused_and_the_first_goes_on(clone: Clone, undisturbed: Clone) -> None:
    with clone.running(DVC, "repro", "teacher") as run:
        run.until(SecondSave(clone, "teacher"))
        trainer = stopped(clone)
        output = clone.dvc("repro", "teacher", fails=True)
        assert re.search("is busy|Unable to acquire lock", output), output
        os.kill(trainer, signal.SIGCONT)
        assert run.end() == 0, run.told()
    assert_undisturbed(clone, undisturbed)
    assert clone.unfinished() == []


def orphaned(clone: Clone, run: Running) -> int:
    """Kill DVC alone; its trainer lives on, stopped."""
    run.until(SecondSave(clone, "teacher"))
    trainer = stopped(clone)
    run.process.kill()
    run.process.wait()
    assert clone.trainers() == [trainer]
    return trainer


@pytest.mark.parametrize("shell", ["/bin/bash", "/bin/sh"])  # bash makes way for the command it runs, dash need not
def test_who_comes_after_a_trainer_that_has_outlived_its_dvc_waits_for_its_save_and_goes_on(
    shell: str, clone: Clone, undisturbed: Clone
) -> None:
    with clone.running(DVC, "repro", "teacher", variables={"SHELL": shell}) as run:
        trainer = orphaned(clone, run)
        with clone.running(DVC, "repro", "teacher") as second:
            second.until(lambda: WAITS in second.told())
            os.kill(trainer, signal.SIGCONT)
            assert second.end() == 0
    saved = re.search(r"stopped because DVC, which started it, is gone at step (\d+), saved", run.told())
    assert saved and f"pid {trainer} on " in second.told(), run.told()
    assert "has ended without finishing; this process takes over" in second.told()
    assert f"teacher: resumed at step {saved[1]} " in second.told()
    assert_undisturbed(clone, undisturbed)
    assert clone.unfinished() == []


def queue_teacher(clone: Clone) -> None:
    """Let a queue worker train the teacher until its second save."""
    clone.dvc("exp", "run", "--queue", "teacher")
    with clone.running(DVC, "queue", "start", variables=hooked(clone.root, HALT)) as start:
        assert start.end() == 0  # the worker it leaves behind keeps its output open: not to be waited for
    wait(SecondSave(clone, "teacher"))


def test_a_workspace_run_waits_for_a_queue_run_and_is_given_its_teacher(clone: Clone, undisturbed: Clone) -> None:
    try:
        queue_teacher(clone)
        trainer = stopped(clone)
        with clone.running(DVC, "repro", "teacher") as second:
            second.until(lambda: WAITS in second.told())
            os.kill(trainer, signal.SIGCONT)
            assert second.end() == 0, second.told()
        wait(lambda: "Success" in clone.dvc("queue", "status"))
    finally:
        clone.dvc("queue", "stop", "--kill")
    assert TAKEN in second.told() and "resumed" not in second.told() and "teacher 120/120" not in second.told()
    assert_undisturbed(clone, undisturbed)
    assert clone.unfinished() == []


def test_the_work_of_a_queue_worker_that_dies_is_taken_up_by_the_next_run(clone: Clone, undisturbed: Clone) -> None:
    try:
        queue_teacher(clone)
        (trainer,) = clone.trainers()
        os.kill(trainer, signal.SIGKILL)
        wait(lambda: "Failed" in clone.dvc("queue", "status"))
    finally:
        clone.dvc("queue", "stop", "--kill")
    saved = clone.saves("teacher")[-1]
    assert f"teacher: resumed at step {saved}" in clone.dvc("repro", "teacher")
    assert_undisturbed(clone, undisturbed)
    assert clone.unfinished() == []
