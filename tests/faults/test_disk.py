"""A full disk: the message says so, earlier saves stay, and after room was made the run goes on."""

import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from clone import Clone, SecondSave, launch

pytestmark = pytest.mark.slow


@pytest.fixture
def small(clone: Clone) -> Iterator[Clone]:
    """A clone whose unfinished work lies on a file system of 16 MiB."""
    folder = clone.root / ".work"
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", folder]
    mounted = subprocess.run(mount, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"needs mount -t tmpfs: {mounted.stderr.strip()}")
    yield clone
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(path: Path) -> None:
    """Write until there is no room."""
    with pytest.raises(OSError, match="No space left"), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def test_a_training_on_a_full_disk_says_so_and_goes_on_after_room_was_made(small: Clone, undisturbed: Clone) -> None:
    ballast = small.root / ".work/ballast"
    with small.running(*launch("teacher")) as run:
        run.until(SecondSave(small, "teacher"))
        run.send(signal.SIGSTOP)
        fill(ballast)
        run.send(signal.SIGCONT)
        assert run.end() != 0
    told = run.told()
    found = re.search(
        r"state-\d+\.safetensors could not be written \(No space left on device\): [\d.]+ MiB are needed, 0\.0 MiB "
        r"are free; the save state-0*(\d+)\.safetensors is intact: make room, the same command then goes on",
        told,
    )
    assert found and "Traceback" not in told, told
    assert small.saves("teacher")[-1] == int(found[1])
    assert list(small.root.glob(".work/*/*.tmp")) == [], "no half of a file takes up room"
    assert not (small.root / "data/teacher").exists()
    ballast.unlink()
    assert f"teacher: resumed at step {found[1]}" in small.stage("teacher")
    made = small.made()
    assert made == {path: undisturbed.made()[path] for path in made}
    assert "data/teacher/model.safetensors" in made
