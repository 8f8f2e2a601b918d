"""SIGTERM and Ctrl-C during a training under DVC: it saves, fails, and the same command goes on."""

import re
import signal
import time

import pytest
from clone import DVC, Clone, SecondSave

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_a_training_that_is_stopped_goes_on_where_it_was(
    kind: signal.Signals, clone: Clone, undisturbed: Clone
) -> None:
    with clone.running(DVC, "repro", "teacher") as run:
        run.until(SecondSave(clone, "teacher"))
        run.send(kind)
        assert run.end() != 0
        while clone.trainers():  # DVC does not wait for its stage on SIGTERM
            time.sleep(0.05)
    saved = re.search(r"teacher: stopped .* at step (\d+), saved", run.told())  # SIGTERM ends DVC, too
    assert saved, run.told()
    assert clone.saves("teacher")[-1] == int(saved[1])
    output = clone.dvc("repro", "teacher")
    assert f"teacher: resumed at step {saved[1]}" in output
    made = clone.made()
    assert made == {path: undisturbed.made()[path] for path in made}
    assert "data/teacher/model.safetensors" in made and clone.unfinished() == []


def test_an_impatient_second_ctrl_c_loses_nothing(clone: Clone, undisturbed: Clone) -> None:
    with clone.running(DVC, "repro", "teacher") as run:
        run.until(SecondSave(clone, "teacher"))
        for _ in range(3):
            run.send(signal.SIGINT)
        assert run.end() != 0
    saved = max(clone.saves("teacher"))
    output = clone.stage("teacher")
    assert f"teacher: resumed at step {saved}" in output
    weights = "data/teacher/model.safetensors"
    assert clone.read(weights) == undisturbed.read(weights)
