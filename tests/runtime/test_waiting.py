"""Processes that need the same unfinished run: one works, the others wait, and nothing is computed twice.

Real processes, each in a clone of its own; the clones share `.work`. A run is four steps of counting.
"""

import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from dvc.repo import Repo
from miniature import ROOT, write_params

from facm.runtime import files, params
from facm.runtime import resume as work
from facm.runtime.resume import Served, Work, handover, locks, waiting
from stages import latents

STEPS, OUTS = 4, ("data/teacher", "metrics/teacher.json")
PIPELINE = """\
stages:
  teacher:
    cmd: "true"
    outs: [data/teacher]
    metrics:
      - metrics/teacher.json: {cache: false}
"""


def count(pause: Path | None = None) -> None:
    """The run, in the current folder; says which steps it computes, and stands still after two while `pause` exists."""
    run = Work("teacher", "k")
    state = run.load() or {"step": 0, "sum": torch.zeros(3)}
    if state["step"]:
        print(f"resumed at {state['step']}", flush=True)
    for step in range(state["step"] + 1, STEPS + 1):
        print(f"computed step {step}", flush=True)
        state = {"step": step, "sum": state["sum"] + step}
        if step < STEPS:
            run.save(state, wait=True)
        while step == 2 and pause is not None and pause.exists():
            time.sleep(0.01)
    files.save_tensors(Path("data/teacher/model.safetensors"), {"sum": state["sum"]})
    files.save_json(Path("data/teacher/deep/config.json"), {"made in": str(Path.cwd())})
    files.save_json(Path("metrics/teacher.json"), {"steps": STEPS})
    run.finish()


class Process:
    """A child that runs in a clone; what it prints is in a file."""

    def __init__(self, clone: Path, work: Callable[[], None]):
        self.clone, self.output, self.status = clone, clone / "printed", -1
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid:
            return
        os.chdir(clone)
        os.environ.pop("DVC_ROOT", None)
        handle = os.open(self.output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.stdout = os.fdopen(1, "w", closefd=False)
        code: object = 1
        try:
            work()
            code = 0
        except SystemExit as end:
            code = end.code
        finally:
            sys.stdout.flush()
            os._exit(code if isinstance(code, int) else 1)

    def told(self) -> str:
        return self.output.read_text() if self.output.exists() else ""

    def until(self, text: str) -> None:
        """Wait until it has printed a text."""
        end = time.monotonic() + 20
        while text not in self.told():
            assert time.monotonic() < end, self.told()
            time.sleep(0.01)

    def end(self) -> int:
        """Wait for its end; returns its exit status, negative by a signal."""
        if self.status == -1:
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            self.pid = 0
        return self.status

    def kill(self, kind: signal.Signals = signal.SIGKILL) -> int:
        os.kill(self.pid, kind)
        return self.end()

    @property
    def computed(self) -> list[int]:
        return [int(step) for step in re.findall(r"computed step (\d)", self.told())]

    def made(self) -> dict[str, bytes]:
        paths = [path for out in OUTS for path in [self.clone / out, *(self.clone / out).rglob("*")] if path.is_file()]
        return {str(path.relative_to(self.clone)): path.read_bytes() for path in paths}


class Team:
    """Clones that share `.work`, and the processes that run in them."""

    def __init__(self, folder: Path):
        self.folder, self.work, self.pause = folder, folder / "shared", folder / "pause"
        self.started: list[Process] = []
        self.work.mkdir()
        self.pause.touch()

    def start(self, run: Callable[[], None] = count) -> Process:
        """A process in the next clone, which waits if another one is at work."""
        clone = self.folder / f"clone{len(self.started)}"
        clone.mkdir()
        (clone / ".work").symlink_to(self.work)
        (clone / "dvc.yaml").write_text(PIPELINE)
        (clone / "params.yaml").write_text(f"teacher:\n  steps: {STEPS}\n")
        self.started.append(Process(clone, run))
        return self.started[-1]

    def first(self) -> Process:
        """A process that has computed two steps and stands still."""
        process = self.start(lambda: count(self.pause))
        process.until("computed step 2")
        wait(lambda: (self.run / "state-00000002.safetensors").exists())
        return process

    def second(self) -> Process:
        """A process that waits."""
        process = self.start()
        process.until("waiting to be given")
        return process

    @property
    def run(self) -> Path:
        return self.work / "teacher-k"


def wait(when: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not when():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def team(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Team]:
    monkeypatch.setattr(work, "POLL_S", 0.02)
    made = Team(tmp_path)
    yield made
    for process in made.started:
        if process.pid:
            process.kill()


def test_who_waits_is_given_what_the_first_one_made_and_computes_nothing(team: Team) -> None:
    first, second = team.first(), team.second()
    told = rf"teacher: pid {first.pid} on \S+ is at work on this very run \(step 2 of 4, saved \d s ago\): waiting "
    assert re.search(told, second.told()), second.told()
    team.pause.unlink()
    assert (first.end(), second.end()) == (0, 0)
    assert (first.computed, second.computed) == ([1, 2, 3, 4], [])
    assert "its outputs are taken, nothing is computed again" in second.told()
    assert first.made() == second.made() and len(first.made()) == 3
    assert list(team.work.iterdir()) == [], "the last one that waited has removed the folder"


def test_of_several_who_wait_each_is_given_it_and_the_last_one_removes_it(team: Team) -> None:
    first, others = team.first(), [team.second() for _ in range(3)]
    team.pause.unlink()
    assert [process.end() for process in (first, *others)] == [0] * 4
    assert all(process.computed == [] and process.made() == first.made() for process in others)
    assert list(team.work.iterdir()) == []


def test_where_the_first_one_is_killed_one_of_those_who_wait_takes_over_at_its_last_save(team: Team) -> None:
    first, others = team.first(), [team.second(), team.second()]
    holder = locks.Holder.of(team.run)
    first.kill()
    assert [process.end() for process in others] == [0, 0]
    assert sorted(process.computed for process in others) == [[], [3, 4]]
    (heir,) = (process for process in others if process.computed)
    assert f"teacher: {holder} has ended without finishing; this process takes over" in heir.told()
    assert "resumed at 2" in heir.told()
    alone = team.start()
    assert alone.end() == 0 and alone.computed == [1, 2, 3, 4]
    weights = "data/teacher/model.safetensors"
    assert {process.made()[weights] for process in (*others, alone)} == {alone.made()[weights]}
    assert list(team.work.iterdir()) == []


@pytest.mark.parametrize(("kind", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_who_waits_can_be_interrupted_at_once_and_the_first_one_does_not_notice(
    kind: signal.Signals, status: int, team: Team
) -> None:
    first, second = team.first(), team.second()
    start = time.monotonic()
    assert second.kill(kind) == status and time.monotonic() - start < 5
    assert "Traceback" not in second.told()
    assert ("no longer waiting" in second.told()) == (kind == signal.SIGINT)
    team.pause.unlink()
    assert first.end() == 0 and first.computed == [1, 2, 3, 4]
    assert list(team.work.iterdir()) == [], "nobody waited any more"


def test_who_waits_tells_now_and_then_how_far_the_other_one_is(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "TELL_S", 0.05)
    first, second = team.first(), team.second()
    second.until("teacher: waiting for")
    assert re.search(rf"waiting for pid {first.pid} on \S+ for 0 s \(step 2 of 4, saved \d s ago\)", second.told())
    time.sleep(0.5)
    assert 2 <= second.told().count("teacher: waiting for") <= 5, "twice as long each time"


def test_where_dvc_dies_nobody_waits_any_more(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    first = team.first()
    monkeypatch.setattr(Work, "orphaned", property(lambda self: True))
    second = team.start()
    assert second.end() == 130 and "DVC, which started this process, is gone" in second.told()
    assert first.computed == [1, 2]


def test_what_was_left_to_one_who_was_killed_meanwhile_is_taken_by_the_next_run(team: Team) -> None:
    first, second = team.first(), team.second()
    os.kill(second.pid, signal.SIGSTOP)
    team.pause.unlink()
    assert first.end() == 0 and handover.offered(team.run)
    assert {path.name for path in team.run.iterdir()} == {"lock", "waiters", "outputs", "outputs.json"}
    second.kill()
    third = team.start()
    assert third.end() == 0 and third.computed == [] and third.made() == first.made()
    assert list(team.work.iterdir()) == []


def test_damaged_outputs_are_not_taken(team: Team) -> None:
    first, second = team.first(), team.second()
    os.kill(second.pid, signal.SIGSTOP)
    team.pause.unlink()
    assert first.end() == 0
    with (team.run / "outputs/data/teacher/model.safetensors").open("r+b") as file:
        file.write(b"?")
    os.kill(second.pid, signal.SIGCONT)
    assert second.end() == 0 and second.computed == [1, 2, 3, 4] and "are damaged, and are made again" in second.told()
    assert list(team.work.iterdir()) == []


def test_a_disk_too_full_to_leave_something_does_not_fail_the_first_one(
    team: Team, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(folder: Path, outputs: list[str]) -> bool:
        handover.files.save_json(folder / "outputs/half", {})
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(handover, "offer", full)
    first, second = team.first(), team.second()
    team.pause.unlink()
    assert (first.end(), second.end()) == (0, 0)
    assert "go on from its last save ([Errno 28] No space left" in first.told() and second.computed == [4]


def test_whoever_prunes_leaves_a_run_that_is_awaited(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "KEEP_S", 0)
    first, second = team.first(), team.second()
    os.kill(second.pid, signal.SIGSTOP)
    team.pause.unlink()
    assert first.end() == 0
    assert team.start(lambda: Work("teacher", "other", keep=0).close()).end() == 0
    assert not locks.remove_unused(team.run) and handover.offered(team.run)
    assert not locks.in_use(team.run) and locks.awaited(team.run)


def test_latents_that_another_process_encoded_meanwhile_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish, joined = Work.finish, []

    def awaited(self: Work) -> None:
        joined.append(locks.wait(self.folder))
        finish(self)

    monkeypatch.setattr(Work, "finish", awaited)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    (tmp_path / "shared").mkdir()
    for name in ("one", "two"):
        clone = tmp_path / name
        clone.mkdir()
        (clone / ".work").symlink_to(tmp_path / "shared")
        shutil.copy(ROOT / "dvc.yaml", clone)
        write_params(clone, latents__shard_size=500)
        monkeypatch.chdir(clone)
        with pytest.raises(Served) if joined else nullcontext():
            latents.main()
        if name == "one":
            joined[0].close()
    torch.set_flush_denormal(False)
    files_of = {p.relative_to(tmp_path / "one"): p.read_bytes() for p in (tmp_path / "one/data").rglob("*.*")}
    assert files_of == {p.relative_to(tmp_path / "two"): p.read_bytes() for p in (tmp_path / "two/data").rglob("*.*")}
    assert len(files_of) == 5 and list((tmp_path / "shared").iterdir()) == []


def test_served_is_success_for_the_shell() -> None:
    assert Served().code == 0


@pytest.mark.parametrize("stage", ["latents", "teacher", "distill"])
def test_what_is_left_is_all_that_dvc_expects_of_the_stage(stage: str, tmp_path: Path) -> None:
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    with Repo(str(tmp_path)) as repo:
        (expected,) = ([out.def_path for out in s.outs] for s in repo.index.stages if s.name == stage)
    assert sorted(params.outputs(stage, ROOT / "dvc.yaml")) == sorted(expected) != []
    assert set(expected) <= set(params.outputs(None, ROOT / "dvc.yaml"))
    assert params.outputs("nosuch", ROOT / "dvc.yaml") == params.outputs(stage, tmp_path / "nosuch.yaml") == []


def test_an_empty_folder_is_handed_over_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data/a").mkdir(parents=True)
    Path("data/b").write_text("2")
    assert handover.offer(tmp_path / "run", ["data/a", "data/b"])
    shutil.rmtree("data")
    assert handover.take(tmp_path / "run", ["data/a", "data/b"])
    assert Path("data/a").is_dir() and not list(Path("data/a").iterdir()) and Path("data/b").read_text() == "2"


def test_who_only_looks_when_a_run_ends_does_not_keep_its_folder(tmp_path: Path, monkeypatch) -> None:
    run, remove, asked = Work("teacher", "k", tmp_path), locks.remove, []

    def hindered(folder: Path) -> bool:
        asked.append(folder)
        return len(asked) > 1 and remove(folder)

    monkeypatch.setattr(locks, "remove", hindered)
    run.finish()
    assert len(asked) == 2 and not run.folder.exists()


def test_outputs_of_another_shape_are_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path, text in (("data/a/x/y", "1"), ("data/b", "2")):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text)
    assert handover.offer(tmp_path / "run", ["data/a", "data/b"])
    assert not handover.offer(tmp_path / "other", ["data/a", "data/c"]) and not handover.offer(tmp_path / "other", [])
    Path("data/a/z").write_text("of another run")
    Path("data/b").unlink()
    Path("data/b").mkdir()
    assert handover.take(tmp_path / "run", ["data/a", "data/b"])
    assert sorted(map(str, Path("data").rglob("*"))) == ["data/a", "data/a/x", "data/a/x/y", "data/b"]
    assert Path("data/a/x/y").read_text() == "1" and Path("data/b").read_text() == "2"
