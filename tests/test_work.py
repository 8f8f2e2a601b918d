"""Unfinished work: one folder per key, locked, written whole, pruned."""

import os
import types
from pathlib import Path

import pytest
import torch
from miniature import truncate

import facm.flow
import facm.log
from facm import work
from facm.work import Busy, Work


def inputs(folder: Path, text: str = "{}") -> list[Path]:
    (folder / "meta.json").write_text(text)
    (folder / "config.json").write_text("{}")
    return [folder / "meta.json", folder / "config.json"]


def test_a_second_process_of_the_same_run_is_refused(tmp_path: Path) -> None:
    first = Work("teacher", "k", tmp_path)
    with pytest.raises(Busy, match=r"another process is training this very run .*\.work/teacher-k\): wait for it, or"):
        Work("teacher", "k", tmp_path)
    Work("teacher", "other", tmp_path).close()
    first.close()
    Work("teacher", "k", tmp_path).close()


def test_the_other_ranks_of_a_run_share_the_folder_of_rank_0(tmp_path: Path, monkeypatch) -> None:
    first = Work("teacher", "k", tmp_path)
    first.save({"step": 3})
    monkeypatch.setenv("RANK", "1")
    assert Work("teacher", "k", tmp_path).load() == {"step": 3}


def test_the_state_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    unfinished = Work("teacher", "k", tmp_path)
    assert unfinished.load() is None
    state = {"step": 7, "network": {"w": torch.randn(3)}, "rows": [{"step": 1, "loss_fm": 0.1}], "ema": {0.05: {}}}
    unfinished.save(state)
    loaded = unfinished.load()
    assert torch.equal(loaded["network"].pop("w"), state["network"].pop("w"))
    assert loaded == state


def test_a_save_that_is_interrupted_leaves_the_one_before(tmp_path: Path, monkeypatch) -> None:
    unfinished = Work("teacher", "k", tmp_path)
    unfinished.save({"step": 1})

    def full(state, path) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="no space"):
        unfinished.save({"step": 2})
    assert unfinished.load() == {"step": 1}


def test_a_damaged_state_is_told_with_its_path_and_the_cure(tmp_path: Path) -> None:
    unfinished = Work("teacher", "k", tmp_path)
    unfinished.save({"w": torch.zeros(1000)})
    truncate(unfinished.state_path)
    with pytest.raises(ValueError, match=r"teacher-k/state\.pt is damaged \(.*\): remove .*teacher-k, the run then "):
        unfinished.load()


def test_success_removes_the_folder(tmp_path: Path) -> None:
    unfinished = Work("teacher", "k", tmp_path)
    unfinished.save({"step": 1})
    unfinished.finish()
    assert list((tmp_path / ".work").iterdir()) == []


def test_the_three_newest_unfinished_runs_of_a_stage_are_kept_beside_the_present_one(tmp_path: Path) -> None:
    for i in range(5):
        Work("teacher", f"old{i}", tmp_path).close()
        os.utime(tmp_path / ".work" / f"teacher-old{i}", (i, i))
    Work("distill", "mine", tmp_path).close()
    Work("teacher", "new", tmp_path).close()
    names = sorted(folder.name for folder in (tmp_path / ".work").iterdir())
    assert names == ["distill-mine", "teacher-new", "teacher-old2", "teacher-old3", "teacher-old4"]


def test_a_locked_run_is_never_pruned(tmp_path: Path) -> None:
    running = Work("teacher", "running", tmp_path)
    os.utime(running.folder, (0, 0))
    for i in range(1, 6):
        Work("teacher", f"old{i}", tmp_path).close()
        os.utime(tmp_path / ".work" / f"teacher-old{i}", (i, i))
    Work("teacher", "new", tmp_path).close()
    assert running.folder.exists()
    assert not (tmp_path / ".work" / "teacher-old1").exists()


def test_work_lies_under_the_main_checkout_also_in_a_queue_worker(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    assert Work("teacher", "k").folder == tmp_path / ".work" / "teacher-k"
    monkeypatch.delenv("DVC_ROOT")
    monkeypatch.chdir(tmp_path)
    assert Work("teacher", "k").folder == Path(".work/teacher-k")


def test_the_key_follows_params_inputs_and_the_script(tmp_path: Path) -> None:
    script = tmp_path / "teacher.py"
    script.write_text("pass\n")
    params = {"teacher": {"steps": 3, "betas": [0.9, 0.95]}}
    key = work.key(params, inputs(tmp_path), str(script))
    assert key == work.key({"teacher": {"betas": [0.9, 0.95], "steps": 3}}, inputs(tmp_path)[::-1], str(script))
    assert len(key) == 16
    others = [
        work.key({"teacher": {"steps": 4, "betas": [0.9, 0.95]}}, inputs(tmp_path), str(script)),
        work.key(params, inputs(tmp_path, '{"num": 1}'), str(script)),
        work.key(params, inputs(tmp_path)[:1], str(script)),
    ]
    script.write_text("raise\n")
    others.append(work.key(params, inputs(tmp_path), str(script)))
    assert len({key, *others}) == 5


@pytest.mark.parametrize(("module", "matters"), [(facm.flow, True), (facm.log, False)], ids=["flow", "log"])
def test_the_key_follows_the_code_that_is_loaded_less_what_cannot_change_a_number(
    module: types.ModuleType, matters: bool, tmp_path: Path, monkeypatch
) -> None:
    def key() -> str:
        return work.key({}, [], __file__)

    before, edited = key(), tmp_path / Path(module.__file__ or "").name
    edited.write_text(Path(module.__file__ or "").read_text() + "\n")
    monkeypatch.setattr(module, "__file__", str(edited))
    assert (key() != before) == matters


def test_every_neutral_module_exists() -> None:
    package = Path(work.__file__).parent
    assert [name for name in work.NEUTRAL if not (package / f"{name}.py").is_file()] == []
