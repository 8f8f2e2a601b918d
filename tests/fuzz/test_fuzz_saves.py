"""What .work holds: saves, locks, outputs that are kept for those who wait."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from judge import Wrong, campaign
from mutations import DEEP, as_json, edited, edits, plain, retensored, retensorings, rewritings, rewritten
from safetensors.torch import load_file, save

from facm.runtime import files
from facm.runtime.resume import Work, handover, locks
from facm.runtime.resume.unfinished import look
from facm.work import table

pytestmark = pytest.mark.slow


def state(step: int) -> dict[str, Any]:
    """What a training saves, small."""
    generator = torch.Generator().manual_seed(step)
    weights = {"a": torch.randn(4, 3, generator=generator), "b": torch.arange(5)}
    return {
        "step": step,
        "network": weights,
        "losses": [0.5, float("nan")],
        "ema": {0.05: weights},
        "rng": (1, None, True, "x"),
    }


def is_state(found: Any, step: int) -> bool:
    """Whether a state is the one that was saved at a step, bit by bit."""
    text, tensors = files.flatten(found)
    its_text, its = files.flatten(state(step))
    return (
        text == its_text and tensors.keys() == its.keys() and all(torch.equal(tensors[name], its[name]) for name in its)
    )


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an unfinished run with two saves and a snapshot beside them; a finished output lies elsewhere."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DVC_ROOT", str(folder))
    (folder / "finished").mkdir()
    (folder / "finished" / "model.safetensors").write_bytes(b"done")
    work = Work("teacher", "aa", folder)
    (work.folder / "ema").mkdir()
    files.save_tensors(work.folder / "ema" / "step1.safetensors", {"a": torch.ones(3)})
    for step in (5, 10):
        work.save(state(step), wait=True)
    work.close()
    return work.folder


def resumed(run: Path) -> int | None:
    """Open the run and load its newest whole save; returns the step."""
    reader = Work.__new__(Work)
    reader.folder, reader._newest = run, None
    found = reader.load()
    if found is None:
        return None
    if not any(is_state(found, step) for step in (5, 10)):
        raise Wrong("another state than those that were saved")
    return int(found["step"])


@pytest.mark.parametrize("how", ["bytes", "tensors"])
@pytest.mark.parametrize("both", [False, True])
def test_damaged_saves(how: str, both: bool, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The save before is taken where the newest is damaged; where both are, that is said and nothing is removed."""
    old, new = sorted(run.glob("state-*.safetensors"))
    content = new.read_bytes()
    tensors = {name: tensor.clone() for name, tensor in load_file(new).items()}

    def trial(changes: Any) -> Callable[[], Any]:
        damaged = (
            edited(content, changes) if how == "bytes" else save(retensored(tensors, changes), {"checksum": "0" * 64})
        )
        new.write_bytes(damaged)
        if both:
            old.write_bytes(damaged)

        def read() -> None:
            step = resumed(run)
            if damaged == content and step != 10:
                raise Wrong("an intact save is passed over")
            if damaged != content and not both and step not in (5, 10):
                raise Wrong("the intact save before is passed over")

        return read

    inputs = edits(len(content)) if how == "bytes" else retensorings()
    campaign("saves", inputs, trial, 300, folder=run.parent, names=[str(run)])


def test_saves_whose_plain_values_are_others(run: Path) -> None:
    """With a checksum that fits: what a program of another version may have written."""
    _, new = sorted(run.glob("state-*.safetensors"))
    tensors, _ = files.read_tensors(new)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    plain_values = json.loads(tensors.pop("plain values").numpy().tobytes())

    def trial(drawn: Any) -> Callable[[], Any]:
        from facm.runtime.resume import _checksum

        text = (
            drawn.decode(errors="replace") if isinstance(drawn, bytes) else json.dumps(rewritten(plain_values, drawn))
        )
        space = torch.frombuffer(bytearray(text, "utf-8") or bytearray(b" "), dtype=torch.uint8)
        files.save_tensors(
            new, tensors | {"plain values": space}, {"checksum": _checksum(space.numpy().tobytes().decode(), tensors)}
        )

        def read() -> None:
            reader = Work.__new__(Work)
            reader.folder, reader._newest = run, None
            found = reader.load()
            if not isinstance(found, dict) or "step" not in found:
                raise Wrong("a state without a step")

        return read

    campaign("saves", st.one_of(rewritings(), st.sampled_from(DEEP)), trial, 300, folder=run.parent, names=[str(run)])


def test_what_lies_in_work_is_listed(run: Path, folder: Path) -> None:
    """Locks of any content, saves and folders of any name."""
    lock = run / locks.LOCK
    told = json.loads(lock.read_text())
    name = st.sampled_from(
        [
            "state-x.safetensors",
            "state-.safetensors",
            "state-1.5.safetensors",
            "state-٣.safetensors",
            "shard_1.json",
            "outputs.json",
            "waiters",
            "state-99999999999999999999.safetensors",
            "state--1.safetensors",
            "a\nb",
            "\udce4",
        ]
    )

    def trial(drawn: Any) -> Callable[[], Any]:
        content, name, kind = drawn
        for path in run.parent.glob("*"):
            if path != run:
                shutil.rmtree(path)
        for path in run.iterdir():
            if path.name not in ("lock", "ema") and not path.name.startswith("state-000"):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        lock.write_bytes(content if isinstance(content, bytes) else as_json(rewritten(told, content)))
        other = run / name
        if kind == "folder":
            other.mkdir()
        elif kind == "link":
            other.symlink_to("nowhere")
        else:
            other.write_bytes(b"{}")
        return lambda: table(look(folder / ".work"))

    contents = st.one_of(rewritings(), st.sampled_from(DEEP), st.builds(as_json, plain()))
    inputs = st.tuples(contents, name, st.sampled_from(["file", "folder", "link"]))
    campaign("listings of .work", inputs, trial, 500, folder=run.parent, names=[".work"])


def test_a_run_begins_beside_damaged_ones(run: Path, folder: Path) -> None:
    """Another run of the stage looks at the locks of all."""
    lock = run / locks.LOCK
    told = json.loads(lock.read_text())

    def trial(content: Any) -> Callable[[], Any]:
        lock.write_bytes(content if isinstance(content, bytes) else as_json(rewritten(told, content)))

        def read() -> None:
            work = Work("teacher", "new", folder)
            if locks.Holder.of(work.folder).pid != os.getpid():
                raise Wrong("the lock does not say who holds it")
            work.close()

        return read

    inputs = st.one_of(rewritings(), st.sampled_from(DEEP), st.builds(as_json, plain()))
    campaign("locks", inputs, trial, 300, folder=run, names=[".work"])


def test_outputs_that_are_kept_for_those_who_wait(run: Path, folder: Path) -> None:
    """Whole ones are taken; others leave what lies here as it was, and nothing outside of the outputs is written."""
    out = folder / "data" / "teacher"
    out.mkdir(parents=True)
    (out / "model.safetensors").write_bytes(b"made")
    (out / "config.json").write_bytes(b"{}")
    assert handover.offer(run, ["data/teacher"])
    index, kept = run / handover.INDEX, run / handover.OUTPUTS / "data/teacher/model.safetensors"
    named, content = json.loads(index.read_text()), index.read_bytes()

    def trial(drawn: Any) -> Callable[[], Any]:
        kind, changes = drawn
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        (out / "model.safetensors").write_bytes(b"older")
        index.write_bytes(content)
        kept.write_bytes(b"made")
        if kind == "kept":
            kept.write_bytes(edited(b"made", changes))
        else:
            index.write_bytes(
                changes
                if isinstance(changes, bytes)
                else edited(content, changes)
                if kind == "bytes"
                else as_json(rewritten(named, changes))
            )

        def read() -> None:
            taken = handover.take(run, ["data/teacher"])
            there = (out / "model.safetensors").read_bytes() if (out / "model.safetensors").exists() else b""
            if there != (b"made" if taken else b"older"):
                raise Wrong(f"taken: {taken}, and {there!r} lies there")
            if (folder / "finished" / "model.safetensors").read_bytes() != b"done" or (folder / "x").exists():
                raise Wrong("a file outside of the outputs was written")

        return read

    inputs = st.one_of(
        st.tuples(st.just("bytes"), st.one_of(edits(len(content)), st.sampled_from(DEEP))),
        st.tuples(st.just("values"), rewritings()),
        st.tuples(st.just("kept"), edits(4)),
    )
    campaign("kept outputs", inputs, trial, 450, folder=run, names=[str(run)])
