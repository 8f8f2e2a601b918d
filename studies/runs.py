"""Runs as DVC experiments, one after another: `dvc exp run --temp`.

Not the queue: a task of a queue whose worker was killed says "Running" for ever and is not started again, while a
killed `exp run --temp` leaves no experiment behind, so that the same command runs it again, and the stage in it goes
on from its last save in .work/.
"""

import json
import subprocess
from dataclasses import dataclass
from typing import Any

import yaml

from studies.plan import Run, override

CODE = ("facm", "stages", "dvc.yaml", "params.yaml")  # what a result depends on


class StudyError(RuntimeError):
    """What hinders a study, told to its user."""


@dataclass(frozen=True)
class Done:
    """A finished experiment: its commit, the commit it started from, its metrics/evaluate.json."""

    commit: str
    baseline: str
    result: dict[str, Any]


def git(*arguments: str) -> str:
    """`git ARGUMENTS`; raises StudyError with what git says."""
    done = subprocess.run(["git", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise StudyError(f"git {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def require_clean() -> None:
    """Refuse uncommitted changes: the commit that an experiment records would not be what ran."""
    listed = git("status", "--porcelain", "--untracked-files=no").splitlines()
    changed = [line for line in listed if not line[3:].startswith("studies/results/")]
    if changed:
        names = ", ".join(line[3:] for line in changed[:5])
        raise StudyError(f"uncommitted changes: {names}; commit them, the recorded commit would not be what ran")


def experiments() -> dict[str, list[tuple[str, str]]]:
    """Experiments by name: (commit, baseline commit) each, newest first."""
    listed = git("for-each-ref", "--sort=-committerdate", "--format=%(refname) %(objectname)", "refs/exps")
    found: dict[str, list[tuple[str, str]]] = {}
    for line in listed.splitlines():
        ref, commit = line.split()
        parts = ref.split("/")  # refs/exps/2 digits/38 digits/name
        if len(parts) == 5 and len(parts[2]) == 2:
            found.setdefault(parts[4], []).append((commit, parts[2] + parts[3]))
    return found


def finished(run: Run, known: dict[str, list[tuple[str, str]]]) -> Done | None:
    """The experiment of this run, if one ran with the code and params that HEAD has and with the run's overrides."""
    for commit, baseline in known.get(run.name, []):
        if git("diff", "--name-only", baseline, "HEAD", "--", *CODE).strip():
            continue
        wanted = yaml.safe_load(git("show", "HEAD:params.yaml"))
        override(wanted, run.set)
        if yaml.safe_load(git("show", f"{commit}:params.yaml")) == wanted:
            return Done(commit, baseline, json.loads(git("show", f"{commit}:metrics/evaluate.json")))
    return None


def text(value: Any) -> str:
    """A value as `dvc exp run -S` reads it."""
    return json.dumps(value) if not isinstance(value, str) else value


def start(run: Run) -> bool:
    """Run it to its end; returns whether DVC succeeded."""
    sets = [part for key, value in run.set.items() for part in ("-S", f"{key}={text(value)}")]
    command = ["dvc", "exp", "run", "--temp", "-n", run.name, *sets, "evaluate"]
    return subprocess.run(command).returncode == 0
