"""A clock that goes backwards, and files from the future."""

import os
import re

import pytest
from clone import DVC, Clone, SecondSave, hooked

pytestmark = pytest.mark.slow

BACKWARDS = """\
import time
now = 3e8
def backwards():
    global now
    now -= 60
    return now
time.time = backwards
time.time_ns = lambda: int(backwards() * 1e9)
"""


def test_a_training_on_a_clock_that_goes_backwards_is_bit_identical(clone: Clone, undisturbed: Clone) -> None:
    with clone.running(DVC, "repro", "teacher") as run:
        run.until(SecondSave(clone, "teacher"))
    for path in (clone.root / ".work").rglob("*"):
        os.utime(path, (4e9, 4e9))  # the year 2096
    saved = clone.saves("teacher")[-1]
    output = clone.stage("teacher", variables=hooked(clone.root, BACKWARDS))
    assert re.search(rf"teacher: resumed at step {saved}\b", output)
    made = clone.made()
    assert made == {path: undisturbed.made()[path] for path in made}
    assert "data/teacher/model.safetensors" in made
