"""Unfinished work: one folder per key, locked, written whole, verified, pruned; and the files that it is made of."""

import argparse
import math
import os
import subprocess
import sys
import tempfile
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from miniature import truncate

import facm.flow.path
import facm.runtime.log
from facm.runtime import files, foreign, resume
from facm.runtime.resume import Busy, Work, handover, locks
from facm.runtime.resume.unfinished import look


def inputs(folder: Path, text: str = "{}") -> list[Path]:
    (folder / "meta.json").write_text(text)
    (folder / "config.json").write_text("{}")
    return [folder / "meta.json", folder / "config.json"]


def test_a_process_that_would_wait_for_itself_is_refused(tmp_path: Path) -> None:
    first = Work("teacher", "k", tmp_path)
    with pytest.raises(Busy, match=r"this process is at work on this very run already \(.*\.work/teacher-k\)"):
        Work("teacher", "k", tmp_path)
    Work("teacher", "other", tmp_path).close()
    first.close()
    Work("teacher", "k", tmp_path).close()


def state(step: int) -> dict[str, Any]:
    """One of each kind of value that the training loop saves."""
    parameter = torch.nn.Parameter(torch.full((40, 3), float(step)))
    optimizer = torch.optim.AdamW([parameter], lr=0.1, betas=(0.9, 0.95))
    parameter.square().sum().backward()
    optimizer.step()
    return {
        "step": step,
        "network": {"blocks.0.w": parameter.detach(), "half": torch.randn(3).bfloat16(), "on": torch.tensor(True)},
        "module": {},
        "optimizer": optimizer.state_dict(),
        "ema": {0.05: {"w": torch.randn(2, 0)}, 0.2: {"w": torch.randn(()).double()}},
        "rows": [{"step": 1, "loss_fm": 0.1 + 0.2, "worst": math.nan, "most": math.inf}],
        "interval": [],
        "last": None,
        "flag": True,
        "name": 'a "name" é',
    }


def same(a: Any, b: Any) -> bool:
    """Equal in value, type and order of keys, bit for bit."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[name], b[name]) and type(name) in (str, int, float) for name in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)


def saved(folder: Path, *steps: int) -> Work:
    """Unfinished work with a save of each step."""
    unfinished = Work("teacher", "k", folder)
    for step in steps:
        unfinished.save(state(step), wait=True)
    return unfinished


def saves(unfinished: Work) -> list[str]:
    return sorted(path.name for path in unfinished.folder.iterdir() if path.name != "lock")


def test_another_rank_reads_the_folder_of_rank_0_and_writes_nothing(tmp_path: Path, monkeypatch) -> None:
    first = saved(tmp_path, 3)
    monkeypatch.setenv("RANK", "1")
    other = Work("teacher", "k", tmp_path)
    other.save(state(4), wait=True)
    loaded = other.load()
    assert loaded is not None and loaded["step"] == 3
    other.close()
    other.finish()
    assert saves(first) == ["state-00000003.safetensors"]


def test_the_state_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    unfinished, given = Work("teacher", "k", tmp_path), state(7)
    assert unfinished.load() is None
    unfinished.save(given, wait=True)
    loaded = unfinished.load()
    assert same(loaded, given)
    assert loaded is not None and isinstance(loaded["optimizer"]["param_groups"][0]["betas"], tuple)


def test_a_resumed_optimizer_goes_on_as_the_first_one(tmp_path: Path) -> None:
    given, weights = state(7)["optimizer"], []
    saved(tmp_path).save({"step": 7, "optimizer": given}, wait=True)
    loaded = Work("teacher", "other", tmp_path)
    loaded.folder = tmp_path / ".work/teacher-k"
    read = loaded.load()
    assert read is not None
    for held in (given, read["optimizer"]):
        parameter = torch.nn.Parameter(torch.ones(40, 3))
        optimizer = torch.optim.AdamW([parameter])
        optimizer.load_state_dict(held)
        parameter.sum().backward()
        optimizer.step()
        weights.append(parameter.detach())
    assert torch.equal(*weights)


def test_what_is_no_plain_value_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"/state/rows/0: a PosixPath cannot be saved, only tensors and plain values"):
        saved(tmp_path).save({"step": 1, "rows": [tmp_path]})
    with pytest.raises(ValueError, match=r"two tensors would be saved as '/state/a/b': a key holds a slash"):
        saved(tmp_path / "other").save({"step": 1, "a": {"b": torch.ones(1)}, "a/b": torch.ones(1)})


# Behind training


def blocked(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Let no file reach the disk before the function that is returned has been called."""
    opened, fsync = threading.Event(), os.fsync
    monkeypatch.setattr(files.os, "fsync", lambda handle: (opened.wait(10), fsync(handle)))
    return opened.set


def test_a_save_holds_the_values_of_its_moment_and_returns_before_it_is_written(tmp_path: Path, monkeypatch) -> None:
    unfinished, write = Work("teacher", "k", tmp_path), blocked(monkeypatch)
    given = {"step": 1, "w": torch.zeros(3), "rows": [{"step": 1}]}
    unfinished.save(given)
    assert "state-00000001.safetensors" not in saves(unfinished)
    given["w"].add_(1)
    given["rows"].append({"step": 2})
    write()
    unfinished.flush()
    loaded = unfinished.load()
    assert loaded is not None and torch.equal(loaded["w"], torch.zeros(3)) and loaded["rows"] == [{"step": 1}]


def test_a_save_waits_for_the_one_before(tmp_path: Path, monkeypatch) -> None:
    unfinished, write = Work("teacher", "k", tmp_path), blocked(monkeypatch)
    unfinished.save(state(1))
    threading.Timer(0.2, write).start()
    unfinished.save(state(2))
    assert "state-00000001.safetensors" in saves(unfinished)
    unfinished.close()
    assert saves(unfinished) == ["state-00000001.safetensors", "state-00000002.safetensors"]


def test_a_process_that_exits_has_its_last_save_on_the_disk(tmp_path: Path) -> None:
    code = "import sys, torch; from pathlib import Path; from facm.runtime.resume import Work; "
    code += "Work('teacher', 'k', Path(sys.argv[1])).save({'step': 5, 'w': torch.ones(10**6)}); raise SystemExit(130)"
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == 130
    loaded = Work("teacher", "k", tmp_path).load()
    assert loaded is not None and loaded["step"] == 5


def test_the_two_newest_saves_are_kept(tmp_path: Path) -> None:
    unfinished = saved(tmp_path, 9, 10, 11)
    assert saves(unfinished) == ["state-00000010.safetensors", "state-00000011.safetensors"]


def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on nothing can be brought to the disk."""

    def fsync(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", fsync)


@pytest.mark.parametrize("then", ["save", "flush", "close"])
def test_a_full_disk_is_told_at_the_next_call_and_leaves_the_saves_before(
    then: str, tmp_path: Path, monkeypatch
) -> None:
    unfinished = saved(tmp_path, 1, 2)
    with monkeypatch.context() as context:
        full_disk(context)
        unfinished.save(state(3))
        calls = {"save": lambda: unfinished.save(state(4)), "flush": unfinished.flush, "close": unfinished.close}
        with pytest.raises(OSError, match="No space left") as caught:
            calls[then]()
    told = str(caught.value)
    assert f"{unfinished.folder}/state-00000003.safetensors could not be written (No space left on device): " in told
    assert "0.0 MiB are needed, " in told and " MiB are free; the save state-00000002.safetensors is intact: " in told
    assert "make room, the same command then goes on from there" in told
    assert saves(unfinished) == ["state-00000001.safetensors", "state-00000002.safetensors"]
    unfinished.close()
    again = Work("teacher", "k", tmp_path)
    loaded = again.load()
    assert loaded is not None and loaded["step"] == 2
    again.save(state(3), wait=True)
    assert saves(again) == ["state-00000002.safetensors", "state-00000003.safetensors"]


def test_a_stage_that_succeeds_does_so_although_its_last_save_failed(tmp_path: Path, monkeypatch) -> None:
    unfinished = saved(tmp_path, 1)
    full_disk(monkeypatch)
    unfinished.save(state(2))
    unfinished.finish()
    assert not unfinished.folder.exists()


# Damage


def zero_tail(path: Path) -> None:
    """What a power loss may leave of a file: its length, but zeros instead of the data that were not yet written."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))


def one_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "truncated": truncate,
    "of zero length": lambda path: path.write_bytes(b""),
    "all zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "a tail of zeros": zero_tail,
    "one bit": one_bit,
    "other plain values": lambda path: path.write_bytes(path.read_bytes().replace(b"loss_fm", b"loss_cm")),
    "of another origin": lambda path: path.write_bytes(safetensors.torch.save({"w": torch.ones(2)})),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_save_is_told_and_the_one_before_it_taken(name: str, tmp_path: Path, capsys) -> None:
    unfinished = saved(tmp_path, 1, 2)
    newest = unfinished.folder / "state-00000002.safetensors"
    DAMAGE[name](newest)
    loaded = unfinished.load()
    assert loaded is not None and loaded["step"] == 1
    told = capsys.readouterr().out
    assert told.startswith(f"{newest} is damaged (") and told.endswith("): going on from step 1, saved before it\n")
    unfinished.save(state(3), wait=True)
    assert saves(unfinished) == ["state-00000001.safetensors", "state-00000003.safetensors"], "the damaged one is gone"


@pytest.mark.parametrize("name", DAMAGE)
def test_where_all_saves_are_damaged_the_cure_is_told(name: str, tmp_path: Path) -> None:
    unfinished = saved(tmp_path, 1, 2)
    for path in unfinished.folder.glob("state-*"):
        DAMAGE[name](path)
    with pytest.raises(
        ValueError, match=r"state-00000002\.safetensors is damaged \(.*\): .*state-00000001\."
    ) as caught:
        unfinished.load()
    assert str(caught.value).endswith(f"remove {unfinished.folder}, the run then starts afresh")


def test_a_save_beside_which_a_snapshot_was_damaged_is_passed_over(tmp_path: Path, capsys) -> None:
    unfinished = saved(tmp_path, 1)
    snapshot = unfinished.folder / "ema/step2.safetensors"
    files.save_tensors(snapshot, {"w": torch.ones(30)})
    unfinished.save(state(3), wait=True)
    truncate(snapshot)
    loaded = unfinished.load()
    assert loaded is not None and loaded["step"] == 1
    assert "(ema/step2.safetensors beside it has 96 bytes, then it had 192)" in capsys.readouterr().out


def test_a_half_written_save_is_never_read_and_goes_with_the_next(tmp_path: Path) -> None:
    unfinished = saved(tmp_path, 1)
    (unfinished.folder / "state-00000002.safetensors.tmp").write_bytes(b"half")
    loaded = unfinished.load()
    assert loaded is not None and loaded["step"] == 1
    unfinished.save(state(3), wait=True)
    assert saves(unfinished) == ["state-00000001.safetensors", "state-00000003.safetensors"]


# Removal


def test_success_removes_the_folder(tmp_path: Path) -> None:
    unfinished = saved(tmp_path, 1)
    unfinished.save(state(2))
    unfinished.finish()
    assert list((tmp_path / ".work").iterdir()) == []


def test_where_dvc_has_died_the_folder_of_a_finished_run_is_kept(tmp_path: Path, monkeypatch) -> None:
    unfinished = saved(tmp_path, 1)
    monkeypatch.setattr(resume.os, "getppid", lambda: 1)
    assert not unfinished.orphaned, "not started by DVC: a shell may be closed"
    monkeypatch.setenv("DVC_STAGE", "teacher")
    assert unfinished.orphaned
    unfinished.finish()
    again = Work("teacher", "k", tmp_path).load()
    assert again is not None and again["step"] == 1


def test_a_folder_that_is_removed_while_its_lock_is_taken_is_made_anew(tmp_path: Path, monkeypatch) -> None:
    first, flock = saved(tmp_path, 1), locks.fcntl.flock

    def late(lock, kind) -> None:
        monkeypatch.setattr(locks.fcntl, "flock", flock)
        first.finish()
        flock(lock, kind)

    monkeypatch.setattr(locks.fcntl, "flock", late)
    second = Work("teacher", "k", tmp_path)
    with pytest.raises(Busy):
        Work("teacher", "k", tmp_path)
    assert second.load() is None


def test_what_a_killed_removal_left_goes_with_the_next_run(tmp_path: Path) -> None:
    (tmp_path / ".work/.teacher-old").mkdir(parents=True)
    Work("teacher", "k", tmp_path).close()
    assert [path.name for path in (tmp_path / ".work").iterdir()] == ["teacher-k"]


def begun(folder: Path, *keys: str) -> None:
    """Unfinished runs, begun in this order by a clock that runs backwards."""
    for i, key in enumerate(keys):
        Work("teacher", key, folder).close()
        for path in (folder / ".work" / f"teacher-{key}", folder / ".work" / f"teacher-{key}" / "lock"):
            os.utime(path, (4e9 - i, 4e9 - i))


def test_the_three_latest_unfinished_runs_of_a_stage_are_kept_whatever_the_clock(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(resume, "KEEP_S", 0)
    begun(tmp_path, "old0", "old1", "old2", "old3", "old1", "old4")
    Work("distill", "mine", tmp_path).close()
    Work("teacher", "new", tmp_path).close()
    names = sorted(folder.name for folder in (tmp_path / ".work").iterdir())
    assert names == ["distill-mine", "teacher-new", "teacher-old1", "teacher-old3", "teacher-old4"]


def test_a_stage_with_large_work_keeps_fewer(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(resume, "KEEP_S", 0)
    begun(tmp_path, "old0", "old1", "old2")
    Work("teacher", "new", tmp_path, keep=1).close()
    assert sorted(folder.name for folder in (tmp_path / ".work").iterdir()) == ["teacher-new", "teacher-old2"]


def test_a_locked_run_is_never_pruned(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(resume, "KEEP_S", 0)
    running = Work("teacher", "running", tmp_path)
    begun(tmp_path, "old1", "old2", "old3", "old4", "old5")
    Work("teacher", "new", tmp_path).close()
    assert running.folder.exists()
    assert not (tmp_path / ".work" / "teacher-old1").exists()


def test_only_what_is_forgotten_goes_by_itself_and_that_is_told(tmp_path: Path, capsys) -> None:
    keys = [f"k{i}" for i in range(6)]
    for key in keys:
        run = Work("teacher", key, tmp_path)
        run.save({"step": 1, "x": torch.zeros(1)}, wait=True)
        run.close()
    Work("teacher", "new", tmp_path).close()
    assert all((tmp_path / f".work/teacher-{key}").is_dir() for key in keys), "five were killed at once, say"
    for key in ("k0", "k5"):
        os.utime(tmp_path / f".work/teacher-{key}/state-00000001.safetensors", (1e9, 1e9))
    capsys.readouterr()
    Work("teacher", "other", tmp_path).close()
    left = sorted(path.name for path in (tmp_path / ".work").iterdir())
    assert left == [*(f"teacher-{key}" for key in keys[1:]), "teacher-new", "teacher-other"], "k5 is one of the latest"
    told = capsys.readouterr().out
    assert told.count("removed the unfinished") == 1 and "teacher-k0, which was not written to for" in told


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become another user")
def test_another_users_run_is_left_alone_and_told(monkeypatch) -> None:
    monkeypatch.setattr(resume, "KEEP_S", 0)
    with tempfile.TemporaryDirectory() as name:  # pytest's own lie in a folder that others cannot enter
        folder = Path(name)
        os.chmod(folder, 0o755)
        begun(folder, *"abcde")
        os.chmod(folder / ".work", 0o777)

        def as_another() -> bool:
            os.setuid(65534)
            Work("teacher", "mine", folder).close()
            free = [run.free for run in look(folder / ".work") if run.folder.name != "teacher-mine"]
            with pytest.raises(PermissionError, match=r"teacher-e.* is another user's: .* `chmod g\+rwxs`"):
                Work("teacher", "e", folder)
            return free == [False] * 4  # their own user has removed the first

        pid = os.fork()
        if not pid:
            status = 2
            try:
                status = 0 if as_another() else 1
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


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
    key = resume.key(params, inputs(tmp_path), str(script))
    assert key == resume.key({"teacher": {"betas": [0.9, 0.95], "steps": 3}}, inputs(tmp_path)[::-1], str(script))
    assert len(key) == 16
    others = [
        resume.key({"teacher": {"steps": 4, "betas": [0.9, 0.95]}}, inputs(tmp_path), str(script)),
        resume.key(params, inputs(tmp_path, '{"num": 1}'), str(script)),
        resume.key(params, inputs(tmp_path)[:1], str(script)),
    ]
    script.write_text("raise\n")
    others.append(resume.key(params, inputs(tmp_path), str(script)))
    assert len({key, *others}) == 5


@pytest.mark.parametrize(
    ("module", "matters"), [(facm.flow.path, True), (facm.runtime.log, False)], ids=["flow", "log"]
)
def test_the_key_follows_the_code_that_is_loaded_less_what_cannot_change_a_number(
    module: types.ModuleType, matters: bool, tmp_path: Path, monkeypatch
) -> None:
    def key() -> str:
        return resume.key({}, [], __file__)

    before, edited = key(), tmp_path / Path(module.__file__ or "").name
    edited.write_text(Path(module.__file__ or "").read_text() + "\n")
    monkeypatch.setattr(module, "__file__", str(edited))
    assert (key() != before) == matters


def test_every_neutral_module_exists() -> None:
    root = Path(__file__).parents[2]
    paths = [root.joinpath(*name.rstrip(".").split(".")) for name in resume.NEUTRAL]
    assert [path for path in paths if not (path.is_dir() or path.with_suffix(".py").is_file())] == []


# Files


def test_a_file_is_byte_for_byte_what_the_safetensors_library_writes(tmp_path: Path) -> None:
    tensors = {}
    for i, dtype in enumerate(files.DTYPES):
        named = {f"b{i}": torch.randn(3, 5).mul(9).to(dtype), f"a{i}é": torch.ones((), dtype=dtype)}
        tensors |= named | {f"c{i}": torch.ones(0, 2, dtype=dtype)}
    for given, metadata in ((tensors, {"plain": '["é"]'}), (tensors, None), ({}, None)):
        described = files.save_tensors(tmp_path / "x", given, metadata)
        assert (tmp_path / "x").read_bytes() == safetensors.torch.save(given, metadata)
        assert described == {
            "file": "x",
            "bytes": (tmp_path / "x").stat().st_size,
            "sha256": files.sha256(tmp_path / "x"),
        }
    files.save_tensors(tmp_path / "x", {"w": torch.ones(4, 3).T})
    assert files.load_tensors(tmp_path / "x", "")["w"].shape == (3, 4)


def test_a_dtype_without_a_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a tensor of torch.complex64 cannot be saved: known are I64, F64, "):
        files.save_tensors(tmp_path / "x", {"w": torch.ones(1, dtype=torch.complex64)})
    assert list(tmp_path.iterdir()) == []


WRITERS: dict[str, Callable[[Path], Any]] = {
    "tensors": lambda path: files.save_tensors(path, {"w": torch.ones(9)}),
    "JSON": lambda path: files.save_json(path, {"a": 1}),
    "CSV": lambda path: files.save_csv(path, {"a": [1.0]}),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_reaches_the_disk_before_its_name_and_then_its_folder_does(
    name: str, tmp_path: Path, monkeypatch
) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def flushed(handle: int) -> None:
        calls.append(Path(f"/proc/self/fd/{handle}").readlink().name)
        fsync(handle)

    def moved(old: Path, new: Path) -> None:
        calls.append("moved")
        replace(old, new)

    monkeypatch.setattr(files.os, "fsync", flushed)
    monkeypatch.setattr(files.os, "replace", moved)
    WRITERS[name](tmp_path / "folder/x")
    assert calls == ["x.tmp", "moved", "folder"]


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_leaves_the_file_before_and_nothing_else(name: str, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "x").write_text("before")
    full_disk(monkeypatch)
    with pytest.raises(OSError, match="No space left"):
        WRITERS[name](tmp_path / "x")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("x", "before")]


def test_a_foreign_file_of_tensors_is_read(tmp_path: Path) -> None:
    torch.save({"ema": {"w": torch.ones(2)}, "step": 3}, tmp_path / "x.pt")
    read = foreign.read(tmp_path / "x.pt")
    assert torch.equal(read["ema"]["w"], torch.ones(2)) and read["step"] == 3


@pytest.mark.parametrize("zipped", [True, False])
def test_a_foreign_file_that_needs_more_is_refused_with_a_command_that_works(zipped: bool, tmp_path: Path) -> None:
    path, ran = tmp_path / "x.pt", tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(ran),))

    torch.save({"w": torch.ones(2), "args": Evil()}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        ValueError, match=r"x\.pt holds more than tensors and plain values \(unsupported GLOBAL "
    ) as caught:
        foreign.read(path)
    assert not ran.exists(), "the refused code was not run"
    assert "may run code hidden in it" in str(caught.value)
    torch.save({"state_dict": {"w": torch.ones(2)}, "args": argparse.Namespace(lr=1)}, path)
    with pytest.raises(ValueError, match="Namespace was not an allowed global") as caught:
        foreign.read(path)
    _, code, _ = str(caught.value).split('"')
    code = code.replace("trust=True)", "trust=True)['state_dict']")
    subprocess.run([sys.executable, "-c", code], check=True)
    assert torch.equal(files.load_tensors(tmp_path / "x.safetensors", "")["w"], torch.ones(2))


@pytest.mark.parametrize("content", [b"", b"abcdefgh" * 9, b"PK\x03\x04"])
def test_a_damaged_foreign_file_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.pt is damaged, or no checkpoint \(.+\): fetch it again"):
        foreign.read(tmp_path / "x.pt")
    with pytest.raises(FileNotFoundError, match=r"y\.pt is missing"):
        foreign.read(tmp_path / "y.pt")


@pytest.mark.parametrize(
    "text", ["[1]", '{"dict": 3}', '{"tensor": "none"}', '{"dict": [["state", 5]]}', "[" * 100_000]
)
def test_a_save_of_other_values_is_passed_over(text: str, tmp_path: Path, capsys) -> None:
    """Its checksum fits: another version of this code may have written it."""
    made = Work("teacher", "k", tmp_path)
    made.save({"step": 5}, wait=True)
    made._write(made.folder / "state-00000010.safetensors", text)
    assert made.load() == {"step": 5} and "going on from step 5" in capsys.readouterr().out
    made.close()


@pytest.mark.parametrize(
    "text", ["{", "null", '{"ordinal": "x"}', '{"ordinal": 1, "pid": []}', '{"more": 1}', "[" * 100_000]
)
def test_a_lock_of_any_content_says_nothing_and_hinders_nobody(text: str, tmp_path: Path) -> None:
    folder = tmp_path / ".work" / "teacher-a"
    folder.mkdir(parents=True)
    (folder / "lock").write_text(text)
    (folder / "state-x.safetensors").write_text("")
    assert locks.Holder.of(folder) == locks.Holder()
    assert [run.step for run in look(tmp_path / ".work")] == [None]
    work = Work("teacher", "b", tmp_path)
    assert locks.Holder.of(work.folder).here
    work.close()


@pytest.mark.parametrize("index", ["{}", "[]", "{", '{"../../x": "a"}', '{"data/a.txt": 3}'])
def test_outputs_with_a_damaged_index_are_not_taken(index: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    Path("data/a.txt").write_text("made")
    run = tmp_path / "run"
    assert handover.offer(run, ["data"]) and handover.take(run, ["data"])
    (run / handover.INDEX).write_text(index)
    assert not handover.take(run, ["data"]) and Path("data/a.txt").read_text() == "made"
