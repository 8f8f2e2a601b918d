"""A temporary clone of the working tree with tiny params, in which tests run the real pipeline.

Each clone has its own git history and its own DVC cache. Bytecode caching is on: with it off, a DVC dependency that
catches `__pycache__` would go unseen.
"""

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import yaml

SOURCE, PYTHON = Path(__file__).parents[1], Path(sys.executable)
DVC = PYTHON.with_name("dvc")
OWNED = ("data", "metrics", "dvc.lock")  # what DVC writes: not copied
IN_PLACE = ("dvc.lock", ".dvc/tmp/rwlock")
PART_OF_FILE = ("'./dvc.lock' validation failed", "'./dvc.lock' is invalid", "Unable to read RWLock-file")
TINY = """\
backbones:
  lightningdit:
    hidden: 16
    depth: 1
    heads: 2
teacher:
  steps: 30
  batch_size: 8
  optimizer:
    warmup: 2
  ema:
    snapshots: 2
baseline:
  steps: 2
  num: 64
distill:
  steps: 30
  batch_size: 8
  optimizer:
    warmup: 2
  ema:
    snapshots: 2
sample:
  num: 64
  nfe:
    - 1
    - 2
reference:
  num: 200
evaluate:
  kid_subsets: 2
runtime:
  log_every: 20
"""
FEATURES, EPOCHS = Path("facm/networks/features/digits_cnn.py"), re.compile(r"^EPOCHS, (.*) = \d+, ", re.MULTILINE)


@dataclass(frozen=True)
class Clone:
    """A repository with the pipeline in it."""

    root: Path

    def run(
        self,
        *command: str | Path,
        fails: bool = False,
        timeout_s: float = 180,
        variables: Mapping[str, str] | None = None,
    ) -> str:
        """Run a command in the clone; returns stdout and stderr as they came.

        Args:
            command: program and arguments.
            fails: whether it must end with an error.
            timeout_s: after which it counts as hung.
            variables: further environment variables.
        """
        done = subprocess.run(
            command,
            cwd=self.root,
            env=environment(self.root) | dict(variables or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=timeout_s,
        )
        assert (done.returncode != 0) == fails, f"{command} exited with {done.returncode}:\n{done.stdout}"
        return done.stdout

    def dvc(self, *arguments: str, fails: bool = False, variables: Mapping[str, str] | None = None) -> str:
        """`dvc ARGUMENTS`."""
        return self.run(DVC, *arguments, fails=fails, variables=variables)

    def git(self, *arguments: str) -> str:
        """`git ARGUMENTS`."""
        return self.run("git", *arguments)

    def commit(self) -> None:
        """Commit whatever lies there."""
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", "state")

    def repair(self) -> None:
        """What docs/traps.md advises where a kill has left a part of a file that DVC writes in place."""
        for name in IN_PLACE:
            (self.root / name).unlink(missing_ok=True)
        if self.git("ls-tree", "HEAD", "dvc.lock"):
            self.git("restore", "--source=HEAD", "--staged", "--worktree", "dvc.lock")

    def repro(self) -> str:
        """`dvc repro`, and again after a repair where DVC asks for one; returns all that it told."""
        with self.running(DVC, "repro") as run:
            code = run.end()
        told = run.told()
        if not in_part(told):
            assert code == 0, told
            return told
        self.repair()
        return told + self.dvc("repro")

    def stage(self, name: str, *, fails: bool = False, variables: Mapping[str, str] | None = None) -> str:
        """Run a stage as dvc.yaml does, without DVC."""
        return self.run(*launch(name), fails=fails, variables=variables)

    def edit(self, path: str | Path, old: str, new: str) -> None:
        """Replace the first `old` in a file, which must be there."""
        text = (self.root / path).read_text()
        assert old in text, f"{path} holds no {old!r}"
        (self.root / path).write_text(text.replace(old, new, 1))

    def append(self, path: str | Path, text: str) -> None:
        """Add text to the end of a file, which may be new."""
        with (self.root / path).open("a") as file:
            file.write(text)

    def set(self, key: str, value: str) -> None:
        """Set a scalar of params.yaml, such as `teacher.steps`, by editing its line."""
        lines = (self.root / "params.yaml").read_text().splitlines()
        place, depth = key.split("."), 0
        for i, line in enumerate(lines):
            if re.match(rf"{'  ' * depth}{place[depth]}:", line):
                depth += 1
                if depth == len(place):
                    head, _, comment = line.partition("#")
                    lines[i] = f"{head.split(':')[0]}: {value}" + (f"  # {comment.strip()}" if comment else "")
                    (self.root / "params.yaml").write_text("\n".join(lines) + "\n")
                    return
        raise AssertionError(f"params.yaml has no {key}")

    def overlay(self, *names: str) -> None:
        """Write params.yaml from presets/digits.yaml, the tiny overlay and further ones."""
        self.run(PYTHON, "-m", "facm.preset", "digits", "tiny", *names, "--force")

    def read(self, path: str | Path) -> bytes:
        """Content of a file."""
        return (self.root / path).read_bytes()

    def unfinished(self) -> list[Path]:
        """Folders of unfinished runs."""
        return sorted((self.root / ".work").glob("*"))

    @contextmanager
    def running(self, *command: str | Path, variables: Mapping[str, str] | None = None) -> Iterator["Running"]:
        """Start a command in its own process group; whatever is left of it in the end is killed."""
        output = self.root / ".git" / f"running-{time.monotonic_ns()}.log"
        with output.open("w") as file:
            process = subprocess.Popen(
                command,
                cwd=self.root,
                env=environment(self.root) | dict(variables or {}),
                stdout=file,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        try:
            yield Running(process, output)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def killed(self, *command: str | Path, when: Callable[[], bool], timeout_s: float = 60) -> str:
        """Start a command in its own process group, kill -9 the whole group when `when()` holds; returns its output.

        Raises:
            AssertionError: the command ended before, or `when` never held.
        """
        with self.running(*command) as started:
            started.until(when, timeout_s)
        return started.told()

    def trainers(self) -> list[int]:
        """Process ids of the stages (each rank) that run in this clone or in a folder of it."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                inside = (folder / "cwd").readlink().is_relative_to(self.root)
                if inside and b"facm.launch" in (folder / "cmdline").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
        return sorted(found)

    def saves(self, stage: str) -> list[int]:
        """Steps at which the stage's unfinished work was saved, as far as these saves are kept."""
        paths = (self.root / ".work").glob(f"{stage}-*/state-*.safetensors")
        return sorted(int(path.stem.removeprefix("state-")) for path in paths)

    def made(self) -> dict[str, str]:
        """sha256 of every file that the stages have made."""
        paths = [path for folder in ("data", "metrics") for path in (self.root / folder).rglob("*") if path.is_file()]
        return {str(p.relative_to(self.root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(paths)}

    def damaged_in_cache(self) -> list[Path]:
        """Objects in DVC's cache whose content is not what their name says."""
        objects = (self.root / ".git/dvc-cache/files/md5").glob("*/*")
        return [p for p in objects if hashlib.md5(p.read_bytes()).hexdigest() != p.parent.name + p.stem]


@dataclass(frozen=True)
class Running:
    """A command that was started by `Clone.running`."""

    process: subprocess.Popen[bytes]
    output: Path

    def told(self) -> str:
        """What it has printed."""
        return self.output.read_text()

    def until(self, when: Callable[[], bool], timeout_s: float = 60) -> None:
        """Wait until `when()` holds.

        Raises:
            AssertionError: it never did, or the command ended before.
        """
        end = time.monotonic() + timeout_s
        while not when():
            assert self.process.poll() is None or when(), f"{self.process.args} ended too early:\n{self.told()}"
            assert time.monotonic() < end, f"{self.process.args}: not within {timeout_s} s:\n{self.told()}"
            time.sleep(0.005)

    def send(self, kind: signal.Signals) -> None:
        """Send a signal to the whole process group, as a terminal does."""
        os.killpg(self.process.pid, kind)

    def end(self, timeout_s: float = 120) -> int:
        """Wait until it has ended; returns its exit status."""
        return self.process.wait(timeout_s)


def make(folder: Path) -> Clone:
    """Clone the working tree, with uncommitted and new files, and give it tiny params and a first commit."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=SOURCE, check=True, capture_output=True, text=True).stdout.split("\0")
    for name in filter(None, names):
        if Path(name).parts[0] not in OWNED and (SOURCE / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(SOURCE / name, folder / name)
    (folder / "presets/tiny.yaml").write_text(TINY)
    text, times = EPOCHS.subn(r"EPOCHS, \1 = 1, ", (folder / FEATURES).read_text())
    assert times == 1, f"{FEATURES} has no line of the form 'EPOCHS, ... = ...'"
    (folder / FEATURES).write_text(text)
    clone = Clone(folder)
    clone.git("init", "-q")
    own_cache(clone)
    clone.overlay()
    clone.commit()
    return clone


def copy(clone: Clone, folder: Path) -> Clone:
    """A copy of a clone, with all that it has made, and a cache of its own."""
    shutil.copytree(clone.root, folder, symlinks=True, dirs_exist_ok=True)
    shutil.rmtree(folder / ".dvc/tmp", ignore_errors=True)
    copied = Clone(folder)
    own_cache(copied)
    return copied


def untrained(clone: Clone, folder: Path) -> Clone:
    """A copy of a clone, as if the teacher and what follows had never run there or anywhere."""
    copied = copy(clone, folder)
    shutil.rmtree(copied.root / ".git/dvc-cache/runs")
    lock = yaml.safe_load(copied.read("dvc.lock"))
    for stage in set(lock["stages"]) - {"reference", "latents"}:
        for out in lock["stages"].pop(stage)["outs"]:
            path = copied.root / out["path"]
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    (copied.root / "dvc.lock").write_text(yaml.safe_dump(lock))
    copied.commit()
    return copied


def ran(output: str) -> list[str]:
    """Stages that DVC ran, in order (not those restored from the run cache)."""
    return re.findall(r"Running stage '([^']+)':", output)


def in_part(output: str) -> bool:
    """Whether DVC ended because a kill had left a part of a file that it writes in place (`Clone.repair`)."""
    return any(text in output for text in PART_OF_FILE)


class SecondSave:
    """Holds once a stage's unfinished work has been saved twice."""

    def __init__(self, clone: Clone, stage: str):
        self.clone, self.stage = clone, stage

    def __call__(self) -> bool:
        return len(self.clone.saves(self.stage)) >= 2


def launch(stage: str) -> tuple[str | Path, ...]:
    """The command of a stage in dvc.yaml."""
    return PYTHON, "-m", "facm.launch", f"stages.{stage}"


def restored(output: str) -> list[str]:
    """Stages that DVC restored from the run cache, in order."""
    return re.findall(r"Stage '([^']+)' is cached - skipping run", output)


def hooked(root: Path, code: str) -> dict[str, str]:
    """Environment variables with which every Python process runs some code before its own."""
    folder = root / ".git" / f"hook-{hashlib.md5(code.encode()).hexdigest()[:8]}"
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(code)
    return {"PYTHONPATH": str(folder)}


def environment(root: Path) -> dict[str, str]:
    """Environment of a user's shell in which the virtual environment is active, less this machine's settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DVC", "GIT", "FACM", "PYTHON"))}
    return kept | {
        "PATH": f"{PYTHON.parent}{os.pathsep}{kept.get('PATH', '')}",
        "DVC_NO_ANALYTICS": "1",
        "DVC_GLOBAL_CONFIG_DIR": str(root / ".git/none"),
        "DVC_SYSTEM_CONFIG_DIR": str(root / ".git/none"),
        "DVC_SITE_CACHE_DIR": str(root / ".git/dvc-site"),
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_SYSTEM": os.devnull,
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",  # several clones may be at work
        "OPENBLAS_NUM_THREADS": "1",
    }


def own_cache(clone: Clone) -> None:
    """Give a clone a name and a cache of its own."""
    for name, value in (("user.name", "Test"), ("user.email", "test@example.org")):
        clone.git("config", name, value)
    (clone.root / ".dvc/config.local").write_text(f"[cache]\n    dir = {clone.root / '.git/dvc-cache'}\n")
