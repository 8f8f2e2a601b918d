"""`python -m facm.work`: what is unfinished is listed, and removed where nobody uses it."""

import os
import re
import sys
import time
from pathlib import Path

import pytest
import torch
from documents import among, fenced
from miniature import ROOT

from facm.runtime import resume
from facm.runtime.log import span
from facm.runtime.resume import Work, locks
from facm.runtime.resume.unfinished import look
from facm.work import main

DAY_S = 86400


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository: a teacher in use, two others (three days and an hour old), a latents run, what is none."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.setattr(resume, "_prune_older", lambda *arguments: None)
    (tmp_path / "params.yaml").write_text("teacher:\n  steps: 2000\n")
    for key, age_s in (("aa", 3 * DAY_S), ("ab", 3600)):
        run = Work("teacher", key)
        run.save({"step": 500, "w": torch.zeros(1 << 18)}, wait=True)
        run.close()
        written = time.time() - age_s
        for path in run.folder.iterdir():
            os.utime(path, (written, written))
    latents = Work("latents", "cc")
    for number in range(2):
        (latents.folder / f"shard_0000{number}.json").write_text("{}")
    latents.close()
    (tmp_path / ".work/studies/worker-0").mkdir(parents=True)
    return tmp_path


def listed(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[list[str]]:
    """Cells of the lines that the command prints."""
    main(list(arguments))
    return [re.split(r"  +", line) for line in capsys.readouterr().out.splitlines()]


def left(here: Path) -> list[str]:
    return sorted(path.name for path in (here / ".work").iterdir())


def test_runs_are_listed_with_step_size_age_and_who_has_them(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", "tall-yaks")
    running = Work("distill", "dd")
    joined = locks.wait(running.folder)
    lines = listed(capsys)
    assert lines == [
        ["run", "reached", "size", "last written", "in use by"],
        ["distill-dd", "nothing saved yet", "0.0 MiB", "0 s ago", lines[1][4]],
        ["latents-cc", "2 shards", "0.0 MiB", lines[2][3], "nobody"],
        ["teacher-ab", "step 500 of 2000", "1.0 MiB", "60 min ago", "nobody"],
        ["teacher-aa", "step 500 of 2000", "1.0 MiB", "72.0 h ago", "nobody"],
    ]
    assert re.fullmatch(rf"pid {os.getpid()} on \S+, experiment tall-yaks, awaited", lines[1][4])
    assert joined is not None
    joined.close()
    running.close()


def test_nothing_is_removed_by_looking(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = left(here)
    listed(capsys)
    assert len(look(here / ".work")) == 3 and left(here) == before


def test_prune_removes_all_that_nobody_uses_and_leaves_the_rest(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    running, awaited = Work("teacher", "running"), Work("teacher", "awaited")
    joined = locks.wait(awaited.folder)
    awaited.close()
    (here / ".work/.teacher-half").mkdir()
    main(["--prune", "--yes"])
    told = capsys.readouterr().out.splitlines()[-1]
    assert told == "removed: latents-cc, teacher-ab, teacher-aa; in use or awaited: teacher-awaited, teacher-running"
    assert left(here) == ["studies", "teacher-awaited", "teacher-running"]
    assert joined is not None
    joined.close()
    running.close()


def test_prune_takes_names_beginnings_and_an_age(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--prune", "--older", "2", "--yes"])
    assert left(here) == ["latents-cc", "studies", "teacher-ab"]
    main(["lat", "--prune", "--yes"])
    assert left(here) == ["studies", "teacher-ab"]
    main(["teacher-ab", "--prune", "--older", "1", "--yes"])
    assert "no unfinished runs that were asked for" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="has no unfinished run teacher-zz"):
        main(["teacher-zz", "--prune", "--yes"])
    assert left(here) == ["studies", "teacher-ab"]


def test_prune_asks_on_a_terminal_and_refuses_without_one(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=r"would remove 3 of 3 runs, 2\.0 MiB, and there is no terminal .*add --yes"):
        main(["--prune"])
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda question: "")
    with pytest.raises(SystemExit, match="nothing is removed"):
        main(["--prune"])
    assert len(left(here)) == 4
    monkeypatch.setattr("builtins.input", lambda question: "y")
    main(["--prune"])
    assert left(here) == ["studies"]


def test_the_commands_of_the_page_on_sharing_run(here: Path) -> None:
    (block,) = among(fenced((ROOT / "docs/sharing.md").read_text()), "work")
    for words in block.commands:
        assert words[:3] == ["python", "-m", "facm.work"]
        main(words[3:])
    assert left(here) == ["latents-cc", "studies"]


def test_where_nothing_is_unfinished_that_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    main([])
    main(["--prune"])
    assert capsys.readouterr().out == f"{tmp_path}/.work: no unfinished runs\n" * 2


def test_a_lock_of_an_earlier_version_is_understood(here: Path) -> None:
    (here / ".work/teacher-aa/lock").write_text("7")
    assert (locks.Holder.of(here / ".work/teacher-aa").ordinal, Work("teacher", "new").close()) == (7, None)
    assert locks.Holder.of(here / ".work/teacher-new").ordinal == 8


@pytest.mark.parametrize(
    ("seconds", "text"), [(-1, "0 s"), (99, "99 s"), (100, "2 min"), (6000, "1.7 h"), (5 * DAY_S, "5.0 days")]
)
def test_times_are_told_in_the_unit_that_suits_them(seconds: float, text: str) -> None:
    assert span(seconds) == text
