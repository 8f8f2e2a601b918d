"""Runs of studies, several at a time: what runs share (features, latents, teachers) is made once, before them."""

import math
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from typing import Any

from studies.plan import Run, override
from studies.worker import StudyError, Worker

SHARED = "reference latents"
# Blocks of params that a teacher depends on.
UPSTREAM = ("data", "reference", "latents", "backbone", "teacher", "train")


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
    state: str = "waiting"  # waiting | done | failed


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
    work: list[Task], jobs: int, report: Callable[[Task, dict[str, Any] | str], None], minutes: float | None = None
) -> list[Task]:
    """Run tasks on `jobs` clones; returns those that failed, or whose need did.

    Args:
        work: in order of preference.
        jobs: at a time, one CPU thread each.
        report: called with each task that ends and its result, or why it failed.
        minutes: after which no task is started any more.

    Raises:
        StudyError: a result could not be recorded; no task is started any more, those that run end first.
    """
    end = math.inf if minutes is None else time.monotonic() + 60 * minutes
    order = TopologicalSorter({task: task.needs for task in work})
    order.prepare()
    workers, ready = [Worker(number) for number in range(jobs)], list[Task]()
    running: dict[Future[dict[str, Any] | str], tuple[Task, Worker]] = {}

    def finish(task: Task, result: dict[str, Any] | str) -> None:
        try:
            report(task, result)
        except OSError as error:
            what = f"{task.run.name} ended, but its result could not be recorded ({error})"
            raise StudyError(f"{what}; the same command goes on") from error
        task.state = "failed" if isinstance(result, str) else "done"
        order.done(task)

    with ThreadPoolExecutor(jobs) as threads:
        while order.is_active():
            ready = sorted([*ready, *order.get_ready()], key=work.index)
            lost = next(((task, need) for task in ready for need in task.needs if need.state == "failed"), None)
            if lost is not None:
                ready.remove(lost[0])
                finish(lost[0], f"not started: {lost[1].run.name} failed")
                continue
            while ready and workers and time.monotonic() <= end:
                task, worker = ready.pop(0), workers.pop()
                running[threads.submit(_run, task, worker)] = task, worker
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                task, worker = running.pop(future)
                workers.append(worker)
                finish(task, future.result())
    return [task for task in work if task.state == "failed"]


def _run(task: Task, worker: Worker) -> dict[str, Any] | str:
    try:
        return worker.run(task.run, task.baseline, task.target)
    except (StudyError, OSError, ValueError, subprocess.SubprocessError) as error:
        return str(error)
