"""What a long run tells: plain lines in a log, a bar on a terminal, curves that survive a resume."""

import io
import re
import subprocess
import sys
from pathlib import Path

import pytest

from facm.runtime import log
from facm.runtime.log import TrainingLog


class Terminal(io.StringIO):
    """A stderr that is a terminal."""

    def isatty(self) -> bool:
        return True


def on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """From here on stderr is a terminal; not a fixture, because pytest sets stderr anew when a test begins."""
    stderr = Terminal()
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setenv("COLUMNS", "300")
    return stderr


def rows(first: int, last: int) -> list[dict[str, float]]:
    return [{"step": s, "loss_fm": 1.0 / s, "grad_norm": 2.0, "lr": 1e-3, "skipped": 0} for s in range(first, last + 1)]


def curve(folder: Path, name: str = "loss_fm") -> list[tuple[int, float]]:
    header, *lines = (folder / f"plots/metrics/{name}.tsv").read_text().splitlines()
    assert header.split("\t") == ["step", name]
    return [(int(step), float(value)) for step, value in (line.split("\t") for line in lines)]


LINE = re.compile(r"teacher (\d)/4 loss_fm [\d.]+ grad_norm 2 lr 0.001 skipped 0 [\d.]+ ms/step ETA (\d+) s \d+ MiB")


def test_in_a_log_each_interval_is_one_plain_line(tmp_path: Path, capsys) -> None:
    run = TrainingLog(tmp_path / "metrics", "teacher", 4, [])
    for row in rows(1, 4):
        run.advance(int(row["step"]))
        run.row(row)
    run.close()
    out, err = capsys.readouterr()
    first, *lines = out.splitlines()
    found = [LINE.fullmatch(line) for line in lines]
    assert first == "teacher: from step 0 to 4"
    assert all(found) and [match[1] for match in found if match] == ["1", "2", "3", "4"]
    assert found[-1] and found[-1][2] == "0" and "\r" not in out + err and "\x1b" not in out + err and err == ""


def test_on_a_terminal_a_bar_shows_losses_speed_and_remaining_time(tmp_path: Path, monkeypatch, capsys) -> None:
    terminal = on_a_terminal(monkeypatch)
    run = TrainingLog(tmp_path / "metrics", "teacher", 4, [])
    for row in rows(1, 4):
        run.advance(int(row["step"]))
        run.row(row)
    run.close()
    shown = terminal.getvalue().split("\r")
    assert capsys.readouterr().out == "", "no lines beside the bar"
    last = shown[-1]
    assert last.startswith("teacher: 100%|") and "4/4 [" in last
    assert re.search(r"loss_fm 0.25 grad_norm 2 lr 0.001 skipped 0 [\d.]+ ms/step", last)
    assert any(re.search(r"\d+:\d\d<\d+:\d\d", text) for text in shown), "elapsed < remaining"


def test_a_resumed_bar_starts_where_the_run_was(tmp_path: Path, monkeypatch) -> None:
    terminal = on_a_terminal(monkeypatch)
    TrainingLog(tmp_path / "metrics", "teacher", 4, rows(1, 2), 2).close()
    assert "| 2/4 [" in terminal.getvalue()


def test_rows_become_curves_and_are_replayed_on_resume(tmp_path: Path, capsys) -> None:
    whole = TrainingLog(tmp_path / "whole", "teacher", 4, [])
    for row in rows(1, 4):
        whole.row(row)
    whole.close()
    first = TrainingLog(tmp_path / "parts", "teacher", 4, [])
    for row in rows(1, 3):
        first.row(row)  # the third is lost: the state was saved after the second
    second = TrainingLog(tmp_path / "parts", "teacher", 4, rows(1, 2))
    assert curve(tmp_path / "parts") == [(1, 1.0), (2, 0.5)]
    for row in rows(3, 4):
        second.row(row)
    second.close()
    assert second.rows == whole.rows == rows(1, 4)
    for name in ("loss_fm", "grad_norm", "lr", "skipped"):
        assert curve(tmp_path / "parts", name) == curve(tmp_path / "whole", name)
    assert [step for step, _ in curve(tmp_path / "parts")] == [1, 2, 3, 4]


def test_after_falling_back_to_an_older_save_the_curves_have_neither_gap_nor_double_point(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run = TrainingLog(whole, "teacher", 9, [])
    for row in rows(1, 9):
        run.row(row)
    run.close()
    # Killed after 5, the last save at 2; killed after 6, the last save at 5 but damaged, the one before it at 3.
    for first, last in ((1, 5), (3, 6), (4, 9)):
        run = TrainingLog(parts, "teacher", 9, rows(1, first - 1))
        for row in rows(first, last):
            run.row(row)
    run.close()
    written = [{p.name: p.read_bytes() for p in folder.rglob("*.tsv")} for folder in (whole, parts)]
    assert written[0] == written[1]


def test_values_that_are_not_finite_are_replayed_as_they_were_written(tmp_path: Path) -> None:
    odd = [{"step": s, "worst": v} for s, v in ((1, float("nan")), (2, float("-inf")), (3, 1e-30), (4, 1 / 3))]
    run = TrainingLog(tmp_path / "whole", "teacher", 4, [])
    for row in odd:
        run.row(row)
    run.close()
    TrainingLog(tmp_path / "again", "teacher", 4, odd).close()
    written = [(tmp_path / name / "plots/metrics/worst.tsv").read_bytes() for name in ("whole", "again")]
    assert written[0] == written[1]


def test_without_dvclive_the_package_is_imported_all_the_same() -> None:
    code = "import sys; sys.modules['dvclive'] = None; import facm.runtime.log, facm.training.loop"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_speed_of_a_resumed_run_counts_its_own_steps_only(tmp_path: Path, capsys, monkeypatch) -> None:
    clock = iter([100.0, 101.0])
    monkeypatch.setattr(log.time, "perf_counter", lambda: next(clock))
    run = TrainingLog(tmp_path / "metrics", "teacher", 40, rows(1, 2), 9)  # saved between two rows
    run.row(rows(10, 10)[0])
    out = capsys.readouterr().out
    assert out.startswith("teacher: from step 9 to 40\n") and " 1000.0 ms/step ETA 30 s " in out


def test_a_log_hears_of_slow_steps_before_the_first_row(tmp_path: Path, capsys, monkeypatch) -> None:
    now = 100.0
    monkeypatch.setattr(log.time, "perf_counter", lambda: now)
    run = TrainingLog(tmp_path / "metrics", "teacher", 40, rows(1, 1), 1)
    for step in range(2, 8):
        now += 4.0
        run.advance(step)
    run.row(rows(7, 7)[0])
    now += 99.0
    run.advance(8)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        "teacher: from step 1 to 40",
        "teacher 4/40 4000.0 ms/step ETA 144 s",
        "teacher 7/40 4000.0 ms/step ETA 132 s",
    ]
    assert len(lines) == 4 and lines[3].startswith("teacher 7/40 loss_fm ")


def test_a_repository_without_a_commit_is_told_in_one_line(tmp_path: Path, monkeypatch) -> None:
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RuntimeError, match="Empty git repo; it needs a commit"):
        TrainingLog("metrics", "teacher", 4, [])


def test_only_curves_are_left_behind(tmp_path: Path) -> None:
    run = TrainingLog(tmp_path / "metrics", "teacher", 2, [])
    (tmp_path / "metrics" / "stale.txt").write_text("of an earlier run")
    run.row(rows(1, 1)[0])
    run.close()
    files = sorted(str(p.relative_to(tmp_path / "metrics")) for p in (tmp_path / "metrics").rglob("*") if p.is_file())
    names = ("grad_norm", "loss_fm", "lr", "skipped")
    assert files == [*(f"plots/metrics/{name}.tsv" for name in names), "stale.txt"]
    TrainingLog(tmp_path / "metrics", "teacher", 2, []).close()
    assert not (tmp_path / "metrics" / "stale.txt").exists()


def test_progress_in_a_log_tells_each_tenth(capsys) -> None:
    assert list(log.progress(range(40), 40, "drawing")) == list(range(40))
    lines = capsys.readouterr().out.splitlines()
    assert [re.fullmatch(r"drawing: (\d+)/40, [\d.]+ s", line)[1] for line in lines] == [
        str(4 * i) for i in range(1, 11)
    ]


def test_progress_of_few_items_tells_each(capsys) -> None:
    list(log.progress(range(3), 3, "drawing"))
    assert [line.split(",")[0] for line in capsys.readouterr().out.splitlines()] == [
        f"drawing: {i}/3" for i in (1, 2, 3)
    ]


def test_progress_of_slow_items_is_told_between_the_tenths(monkeypatch, capsys) -> None:
    seconds = iter([0.0, *range(25, 25 * 41, 25)])
    monkeypatch.setattr(log.time, "perf_counter", lambda: next(seconds))
    list(log.progress(range(40), 40, "drawing"))
    told = [int(re.fullmatch(r"drawing: (\d+)/40, .*", line)[1]) for line in capsys.readouterr().out.splitlines()]
    assert told[:4] == [3, 4, 7, 8] and told[-1] == 40


def test_progress_on_a_terminal_is_a_bar(monkeypatch, capsys) -> None:
    terminal = on_a_terminal(monkeypatch)
    assert list(log.progress(range(3), 3, "drawing")) == [0, 1, 2]
    assert "drawing: 100%|" in terminal.getvalue() and capsys.readouterr().out == ""


def test_what_the_terminals_encoding_lacks_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(terminal, encoding="ascii"))
    log.say("Caf\u00e9 \udcff.jpg")
    assert terminal.getvalue() == b"Caf\\xe9 \\udcff.jpg\n"
