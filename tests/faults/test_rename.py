"""kill -9 of a stage at the exact moment before a file gets its name, or before it is on the disk."""

import re

import pytest
from clone import Clone, hooked, launch

pytestmark = pytest.mark.slow

HOOK = """\
import os, signal
from pathlib import Path
count, original = 0, os.{call}
def killing(first, *rest):
    global count
    name = str(rest[0]) if rest else os.readlink(f"/proc/self/fd/{{first}}")
    count += Path(name).match("{pattern}")
    if count == {nth}:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(first, *rest)
os.{call} = killing
"""
SAVE = "state-*.safetensors"
# (stage, call, what it is called for, the how-manieth time)
TRAINING = [
    ("teacher", "fsync", f"{SAVE}.tmp", 1),
    ("teacher", "replace", SAVE, 4),
    ("teacher", "fsync", f"{SAVE}.tmp", 5),
    ("teacher", "replace", "ema/*.safetensors", 1),
    ("teacher", "fsync", "ema/*.tmp", 3),
    ("teacher", "replace", "model.safetensors", 1),
    ("teacher", "replace", "data/teacher", 1),
    ("teacher", "replace", "metrics/teacher.json", 1),
    ("teacher", "replace", ".work/.teacher-*", 1),
]
OTHERS = [
    ("latents", "replace", "shard_*.safetensors", 1),
    ("latents", "replace", "data/latents/meta.json", 1),
    ("sample", "replace", "nfe2.npz", 1),
    ("evaluate", "replace", "metrics/evaluate.json", 1),
]


def killed_at(clone: Clone, stage: str, call: str, pattern: str, nth: int) -> str:
    """Run a stage that is killed at the nth call for such a file; returns what it printed."""
    code = HOOK.format(call=call, pattern=pattern, nth=nth)
    with clone.running(*launch(stage), variables=hooked(clone.root, code)) as run:
        assert run.end() == -9, f"no {call} of {pattern}:\n{run.told()}"
    return run.told()


def test_a_training_that_is_killed_at_its_files_ends_bit_identical(clone: Clone, undisturbed: Clone) -> None:
    told = [killed_at(clone, *moment) for moment in TRAINING]
    steps = [int(step) for step in re.findall(r"resumed at step (\d+)", "\n".join(told))]
    assert len(steps) >= 6 and steps == sorted(steps)
    clone.dvc("repro")
    assert clone.made() == undisturbed.made()
    assert clone.unfinished() == []


@pytest.mark.parametrize(("stage", "call", "pattern", "nth"), OTHERS, ids=[moment[2] for moment in OTHERS])
def test_a_stage_that_is_killed_at_its_files_makes_the_same_again(
    stage: str, call: str, pattern: str, nth: int, built: Clone, undisturbed: Clone
) -> None:
    killed_at(built, stage, call, pattern, nth)
    built.stage(stage)
    made = {path: digest for path, digest in built.made().items() if not path.endswith(".tmp")}
    assert made == undisturbed.made()
