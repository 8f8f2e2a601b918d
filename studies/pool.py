"""Runs of studies, several at a time: what runs share (features, latents, teachers) is made once, before them."""

import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from studies.plan import Run, override
from studies.worker import StudyError, Worker

SHARED = "reference latents"
UPSTREAM = (
    "data",
    "reference",
    "latents",
    "backbone",
    "teacher",
    "train",
)  # blocks of params that a teacher depends on


@dataclass(eq=False)
class Task:
    """One experiment.

    Attributes:
        run: what runs.
        baseline: commit that it starts from.
        target: last stage.
        needs: tasks that must have ended before.
    """

    run: Run
    baseline: str
    target: str = "evaluate"
    needs: list["Task"] = field(default_factory=list)
    state: str = "waiting"  # waiting | running | done | failed


def tasks(runs: list[tuple[Run, str, dict[str, Any]]]) -> list[Task]:
    """Tasks of runs, and before them of what several share: features and latents, a teacher, a student.

    Args:
        runs: each with its baseline and the params of that, as plain mappings, for this call to change.
    """
    shared: dict[str, Task] = {}
    teachers: dict[str, Task] = {}
    students: dict[str, list[Task]] = {}
    own = []
    for run, baseline, raw in runs:
        mapping = override(raw, run.set)
        first = shared.setdefault(baseline, Task(Run(f"shared-{baseline[:7]}", "", 0, {}), baseline, SHARED))
        task = Task(run, baseline, needs=[first])
        key = repr((baseline, [mapping[name] for name in UPSTREAM], mapping["backbones"][mapping["backbone"]["name"]]))
        if mapping["distill"]["mode"] == "distill":
            name = f"teacher-{len(teachers)}-{baseline[:7]}"
            teachers.setdefault(
                key, Task(_upstream(run, name, ("distill.", "objectives.", "sample.")), baseline, "baseline", [first])
            )
            task.needs = [teachers[key]]
        distill = mapping["distill"]
        students.setdefault(repr((key, distill, mapping["objectives"][distill["objective"]])), []).append(task)
        own.append(task)
    trained: list[Task] = []
    for alike in (group for group in students.values() if len(group) > 1):
        name = f"student-{len(trained)}-{alike[0].baseline[:7]}"
        student = Task(_upstream(alike[0].run, name, ("sample.",)), alike[0].baseline, "distill", alike[0].needs)
        trained.append(student)
        for task in alike:
            task.needs = [student]
    return [*shared.values(), *teachers.values(), *trained, *own]


def _upstream(run: Run, name: str, without: tuple[str, ...]) -> Run:
    """What several runs share, as a run of its own."""
    return Run(name, "", run.seed, {key: value for key, value in run.set.items() if not key.startswith(without)})


def run_all(
    work: list[Task], jobs: int, tell: Callable[[Task, dict[str, Any] | str], None], minutes: float | None = None
) -> list[Task]:
    """Run tasks on `jobs` clones; returns those that failed, or whose need did.

    Args:
        work: in order of preference.
        jobs: at a time, one CPU thread each.
        tell: called with each task that ends and its result, or why it failed; one call at a time.
        minutes: after which no task is started any more.
    """
    changed, end = threading.Condition(), None if minutes is None else time.monotonic() + 60 * minutes
    broken: list[Task] = []  # whose end could not be told, or whose worker fell: nothing is started any more

    def take() -> Task | None:
        """The next task that can start; None where none ever will."""
        while True:
            late = bool(broken) or (end is not None and time.monotonic() > end)
            waiting = [task for task in work if task.state == "waiting"]
            for task in waiting:
                if any(need.state == "failed" for need in task.needs):
                    task.state = "failed"
                    tell(task, f"not started: {next(n for n in task.needs if n.state == 'failed').run.name} failed")
                elif not late and all(need.state == "done" for need in task.needs):
                    task.state = "running"
                    return task
            if late or not any(task.state == "waiting" for task in work):
                return None
            changed.wait(timeout=1)

    def serve(worker: Worker) -> None:
        while True:
            with changed:
                task = take()
            if task is None:
                return
            try:
                finish(task, worker)
            finally:  # an error of ours ends this thread with its traceback; the others must not wait for its task
                with changed:
                    if task.state == "running":
                        task.state = "failed"
                        broken.append(task)
                    changed.notify_all()

    def finish(task: Task, worker: Worker) -> None:
        try:
            result: dict[str, Any] | str = worker.run(task.run, task.baseline, task.target)
        except (StudyError, OSError, ValueError, subprocess.SubprocessError) as error:
            result = str(error)
        with changed:
            tell(task, result)
            task.state = "failed" if isinstance(result, str) else "done"

    workers = [Worker(number) for number in range(jobs)]
    threads = [threading.Thread(target=serve, args=(worker,), daemon=True) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():  # so that Ctrl-C is noticed
            thread.join(timeout=0.5)
    if broken:
        raise StudyError(f"{broken[0].run.name} ended in the error above; the same command goes on")
    return [task for task in work if task.state == "failed"]
