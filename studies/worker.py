"""A clone of this repository in which experiments run one after another: `dvc exp run`.

Not DVC's queue: a task whose worker was killed says "Running" for ever and is not started again. Clones share the
repository's DVC cache, so that a stage that ran in one is restored in the others, and its .work/, so that a killed run
goes on from its last save wherever it is started again.
"""

import fcntl
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Any

import torch

from facm.runtime import params
from studies.plan import Run, complete, override

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".work/studies"
DVC = (sys.executable, "-m", "dvc")
WORD, NO_TEXT = re.compile(r"[A-Za-z][\w/.-]*", re.ASCII), ("true", "false", "null", "nan", "inf")
REPOSITORY = threading.Lock()  # git in the repository itself, one at a time


class StudyError(RuntimeError):
    """What hinders a study, told to its user."""


def git(
    *arguments: str, cwd: Path | None = None, variables: dict[str, str] | None = None, stdin: str | None = None
) -> str:
    """`git ARGUMENTS`, in the project where no folder is given; raises StudyError with what git says."""
    done = subprocess.run(
        ["git", *arguments],
        cwd=cwd or ROOT,
        capture_output=True,
        text=True,
        env=os.environ | (variables or {}),
        input=stdin,
    )
    if done.returncode:
        raise StudyError(f"git {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout.strip()


def repository() -> Path:
    """The root of the git repository: the project, or a folder above it."""
    return Path(git("rev-parse", "--show-toplevel"))


def prefix() -> str:
    """The project's path in the git repository, with / at its end; empty where it is the repository."""
    return git("rev-parse", "--show-prefix")


def text(value: Any) -> str:
    """A value as `dvc exp run -S` reads it; text in quotes where Hydra would take it for something else."""
    if isinstance(value, str) and WORD.fullmatch(value) and value.lower() not in NO_TEXT:
        return value
    return json.dumps(value, ensure_ascii=False)


def machine() -> str:
    """Processor and torch, beside a result that depends on both by rounding."""
    names = [line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, torch {torch.__version__}"


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


class Worker:
    """One clone of the git repository, .work/studies/worker-N; what a kill left in it does no harm."""

    def __init__(self, number: int):
        self.path = FOLDER / f"worker-{number}"
        self.log = FOLDER / f"worker-{number}.log"
        self.made = False
        FOLDER.mkdir(parents=True, exist_ok=True)
        self._lock = (FOLDER / f"worker-{number}.lock").open("a")  # DVC inherits it, and holds it where this is killed
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StudyError(
                f"{self.path.relative_to(ROOT)} is in use, by another `python -m studies` or by a run that outlived a "
                "killed one: wait for it, or end it"
            ) from None

    @property
    def project(self) -> Path:
        """The project in the clone."""
        return self.path / prefix()

    def run(self, run: Run, baseline: str, target: str) -> dict[str, Any]:
        """Run an experiment to its end.

        Args:
            run: its name and overrides.
            baseline: commit that it starts from.
            target: last stage; with "evaluate" the experiment is brought home.

        Returns:
            `result` (metrics/evaluate.json), `code`, `machine`, `cpu_s`; nothing of another target.

        Raises:
            StudyError: DVC failed; the message names the log.
        """
        self._prepare(baseline)
        for ref in git("for-each-ref", "--format=%(refname)", "refs/exps", cwd=self.path).splitlines():
            git("update-ref", "-d", ref, cwd=self.path)
        with self.log.open("a") as log:
            log.write(f"== {run.name}, {target}\n")
            log.flush()
            if target == "evaluate":
                sets = [part for key, value in complete(run.set).items() for part in ("-S", f"{key}={text(value)}")]
                code, cpu_s = self._dvc(["exp", "run", "-n", run.name, *sets, target], log)
            else:  # an experiment of some stages fails where the others' outputs are nowhere, as in a fresh clone
                self._set(run)
                code, cpu_s = self._dvc(["repro", *target.split()], log)
        if code:
            raise StudyError(f"{run.name} failed, see {self.log.relative_to(ROOT)}")
        if target != "evaluate":
            return {}
        self._bring_home(run.name)
        result = json.loads((self.project / "metrics/evaluate.json").read_text())
        return {"result": result, "code": code_of(baseline), "machine": machine(), "cpu_s": round(cpu_s, 1)}

    def _prepare(self, baseline: str) -> None:
        """The clone, made where it is missing, at the commit `baseline` and without traces of a run that was killed."""
        project = self.project
        if not self.made:
            if not is_repository(self.path):  # else git would take the repository around it, and check out there
                shutil.rmtree(self.path, ignore_errors=True)
                with REPOSITORY:
                    git("clone", "-q", "--no-checkout", str(repository()), str(self.path))
            shutil.rmtree(project / ".dvc/tmp", ignore_errors=True)
            cache = subprocess.run([*DVC, "cache", "dir"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
            (project / ".dvc").mkdir(parents=True, exist_ok=True)
            (project / ".dvc/config.local").write_text(f"[cache]\n    dir = {cache.strip()}\n")
            if not (project / ".work").is_symlink():
                (project / ".work").symlink_to(ROOT / ".work")
            (self.path / ".git/info/exclude").write_text(".work\n")
            self.made = True
        with REPOSITORY:
            git("fetch", "-q", str(repository()), baseline, cwd=self.path)
        git("checkout", "-q", "-f", "--detach", baseline, cwd=self.path)
        # What the committed lock says of unchanged stages hides the run cache, and may have been made elsewhere.
        (project / "dvc.lock").unlink(missing_ok=True)

    def _set(self, run: Run) -> None:
        """Write a run's overrides into the clone's params.yaml."""
        path = self.project / "params.yaml"
        path.write_text(params.written(override(params.raw(path), complete(run.set))), encoding="utf-8")

    def _dvc(self, arguments: list[str], log: IO[str]) -> tuple[int, float]:
        """Exit status of a DVC command, and CPU seconds of it and what it started."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"  # dvc.yaml says `python`
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PATH": path}
        process = subprocess.Popen(
            [*DVC, *arguments],
            cwd=self.project,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=[self._lock.fileno()],
        )
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        return process.returncode, used.ru_utime + used.ru_stime

    def _bring_home(self, name: str) -> None:
        """Fetch the experiment, so that `dvc exp show` and `dvc exp apply` know it here."""
        refs = git("for-each-ref", "--format=%(refname)", "refs/exps", cwd=self.path).splitlines()
        with REPOSITORY:
            for ref in refs:
                if ref.endswith(f"/{name}"):
                    git("fetch", "-q", str(self.path), f"+{ref}:{ref}")


def is_repository(path: Path) -> bool:
    """Whether a folder is a whole git repository of its own, not one within another."""
    asked = ["git", "-C", str(path), "rev-parse", "--show-toplevel"]
    done = subprocess.run(asked, capture_output=True, text=True) if path.is_dir() else None
    return done is not None and not done.returncode and Path(done.stdout.strip()) == path.resolve()


def baseline(preset: str | None) -> str:
    """The commit that runs start from: HEAD, or HEAD with a preset's params.yaml, kept as refs/studies/PRESET.

    Its hash depends on HEAD and the preset alone.
    """
    head = git("rev-parse", "HEAD")
    if preset is None:
        return head
    rendered = subprocess.run(
        [sys.executable, "-c", f"from facm.preset import render; print(render({preset.split()!r}), end='')"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    index = FOLDER / f"index-{preset.replace(' ', '-')}"
    FOLDER.mkdir(parents=True, exist_ok=True)
    blob = git("hash-object", "-w", "--stdin", stdin=rendered)
    indexed = {"GIT_INDEX_FILE": str(index)}
    git("read-tree", head, variables=indexed)
    git("update-index", "--cacheinfo", f"100644,{blob},{prefix()}params.yaml", variables=indexed)
    tree = git("write-tree", variables=indexed)
    if tree == git("rev-parse", f"{head}^{{tree}}"):
        return head
    date = git("show", "-s", "--format=%cI", head)
    who = {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in _signed(date).items()}
    commit = git("commit-tree", tree, "-p", head, "-m", f"params.yaml of preset {preset}", variables=who)
    git("update-ref", f"refs/studies/{preset.replace(' ', '-')}", commit)
    return commit


def _signed(date: str) -> dict[str, str]:
    return {"NAME": "studies", "EMAIL": "studies@localhost", "DATE": date}


def code_of(commit: str) -> str:
    """The commit whose code a baseline holds: its parent where it is one of a preset."""
    subject = git("show", "-s", "--format=%s", commit)
    return git("rev-parse", f"{commit}^") if subject.startswith("params.yaml of preset ") else commit


def require_clean() -> None:
    """Refuse uncommitted changes of the project: the commit that an experiment records would not be what ran."""
    listed, own = git("status", "--porcelain", "--untracked-files=no", "--", ".").splitlines(), prefix()
    names = [line[2:].strip().removeprefix(own) for line in listed]
    changed = [name for name in names if not name.startswith(("studies/results/", "studies/tuned/"))]
    if changed:
        told = ", ".join(changed[:5])
        raise StudyError(f"uncommitted changes: {told}; commit them, the recorded commit would not be what ran")
