"""Power loss: of the newest save only a part, or nothing, or zeros reached the disk."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from clone import Clone, SecondSave, launch, untrained
from miniature import truncate

pytestmark = pytest.mark.slow
WEIGHTS = "data/teacher/model.safetensors"


@pytest.fixture(scope="module")
def interrupted(undisturbed: Clone, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A clone with a teacher that was killed after its first snapshot was taken. Not to be changed."""
    clone = untrained(undisturbed, tmp_path_factory.mktemp("interrupted"))
    clone.killed(*launch("teacher"), when=lambda: max(clone.saves("teacher"), default=0) >= 65)
    assert SecondSave(clone, "teacher")()
    return clone


@pytest.fixture
def lost(interrupted: Clone, tmp_path: Path) -> tuple[Clone, list[Path]]:
    """A copy of it for one test, and its two saves, the newest first."""
    shutil.copytree(interrupted.root, tmp_path / "clone", symlinks=True)
    clone = Clone(tmp_path / "clone")
    saves = sorted(clone.root.glob(".work/teacher-*/state-*.safetensors"), reverse=True)
    for path in saves[2:]:  # the kill came between a save and the removal of the one before the last
        path.unlink()
    return clone, saves[:2]


def no_length(path: Path) -> Any:
    path.write_bytes(b"")


def zeros(path: Path) -> Any:
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize("damage", [truncate, no_length, zeros])
def test_the_save_before_is_taken_and_the_end_is_bit_identical(
    damage: Callable[[Path], Any], lost: tuple[Clone, list[Path]], undisturbed: Clone
) -> None:
    clone, (newest, before) = lost
    damage(newest)
    step = int(before.stem.removeprefix("state-"))
    output = clone.stage("teacher")
    assert f"{newest.name} is damaged (" in output and f"going on from step {step}, saved before it" in output
    assert f"teacher: resumed at step {step}" in output
    made = clone.made()
    assert made == {path: undisturbed.made()[path] for path in made}
    assert WEIGHTS in made


def test_a_lost_snapshot_of_an_average_does_not_end_in_the_teacher(
    lost: tuple[Clone, list[Path]], undisturbed: Clone
) -> None:
    clone, saves = lost
    for path in saves[0].parent.glob("ema/*"):
        truncate(path)
    output = clone.stage("teacher", fails=True)
    assert "beside it has" in output and f"remove {saves[0].parent.relative_to(clone.root)}" in output
    assert not (clone.root / "data/teacher").exists()
    shutil.rmtree(saves[0].parent)
    clone.stage("teacher")
    assert clone.read(WEIGHTS) == undisturbed.read(WEIGHTS)


def test_where_nothing_is_left_the_cure_is_told(lost: tuple[Clone, list[Path]], undisturbed: Clone) -> None:
    clone, saves = lost
    for path in saves:
        no_length(path)
    output = clone.stage("teacher", fails=True)
    cure = f"remove {saves[0].parent.relative_to(clone.root)}, the run then starts afresh"
    assert all(f"{path.name} is damaged" in output for path in saves) and cure in output
    assert "Traceback" not in output
    shutil.rmtree(saves[0].parent)
    assert "resumed" not in clone.stage("teacher")
    assert clone.read(WEIGHTS) == undisturbed.read(WEIGHTS)
