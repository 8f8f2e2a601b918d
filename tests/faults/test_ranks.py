"""Two ranks: one that dies ends the other within a minute, and the run goes on from the last save."""

import os
import re
import signal
import time
from pathlib import Path

import pytest
from clone import Clone, SecondSave, launch, untrained

pytestmark = pytest.mark.slow
WEIGHTS, TWO = "data/teacher/model.safetensors", {"FACM_NPROC": "2"}


@pytest.fixture(scope="module")
def weights(undisturbed: Clone, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The teacher of two undisturbed ranks."""
    clone = untrained(undisturbed, tmp_path_factory.mktemp("two"))
    clone.stage("teacher", variables=TWO)
    return clone.read(WEIGHTS)


def ranks(clone: Clone) -> list[int]:
    """Process ids of rank 0 and 1, in this order."""
    found = {}
    for process in clone.trainers():
        rank = re.search(rb"\0RANK=(\d)\0", Path(f"/proc/{process}/environ").read_bytes())
        if rank:
            found[int(rank[1])] = process
    return [found[rank] for rank in sorted(found)]


def end(clone: Clone, since: float, within_s: float) -> None:
    """Wait until no process of the run is left."""
    while clone.trainers():
        assert time.monotonic() - since < within_s, f"still there: {clone.trainers()}"
        time.sleep(0.1)


@pytest.mark.parametrize("dying", [0, 1])
def test_a_rank_that_dies_ends_the_other_within_a_minute(dying: int, clone: Clone, weights: bytes) -> None:
    with clone.running(*launch("teacher"), variables=TWO) as run:
        run.until(SecondSave(clone, "teacher"))
        os.kill(ranks(clone)[dying], signal.SIGKILL)
        killed = time.monotonic()
        assert run.end(60) != 0
        end(clone, killed, 60)
    saved = clone.saves("teacher")[-1]
    assert f"teacher: resumed at step {saved}" in clone.stage("teacher", variables=TWO)
    assert clone.read(WEIGHTS) == weights
    assert clone.unfinished() == []


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_two_ranks_that_are_stopped_save_and_go_on(kind: signal.Signals, clone: Clone, weights: bytes) -> None:
    with clone.running(*launch("teacher"), variables=TWO) as run:
        run.until(SecondSave(clone, "teacher"))
        run.send(kind)
        sent = time.monotonic()
        assert run.end(60) != 0
        end(clone, sent, 60)
    saved = re.search(r"teacher: stopped by signal at step (\d+), saved", run.told())
    assert saved, run.told()
    assert f"teacher: resumed at step {saved[1]}" in clone.stage("teacher", variables=TWO)
    assert clone.read(WEIGHTS) == weights


def test_two_ranks_wait_for_those_that_a_killed_torchrun_has_left(clone: Clone, weights: bytes) -> None:
    with clone.running(*launch("teacher"), variables=TWO) as run:
        run.until(SecondSave(clone, "teacher"))
        left = ranks(clone)
        for process in left:
            os.kill(process, signal.SIGSTOP)
        run.process.kill()
    with clone.running(*launch("teacher"), variables=TWO) as second:
        second.until(lambda: "waiting to be given what it makes" in second.told())
        assert second.told().count("is at work on this very run") == 1, "rank 0 alone tells"
        for process in left:
            os.kill(process, signal.SIGCONT)
        assert second.end() == 0, second.told()
    # Those that were left need no torchrun: mostly they finish.
    assert re.search(r"teacher: resumed at step \d+|its outputs are taken", second.told())
    assert clone.read(WEIGHTS) == weights and clone.unfinished() == []


def test_two_ranks_are_given_what_the_process_that_they_waited_for_has_made(clone: Clone, undisturbed: Clone) -> None:
    with clone.running(*launch("teacher")) as run:
        run.until(SecondSave(clone, "teacher"))
        run.send(signal.SIGSTOP)
        with clone.running(*launch("teacher"), variables=TWO) as second:
            second.until(lambda: "waiting to be given what it makes" in second.told())
            run.send(signal.SIGCONT)
            assert (run.end(), second.end()) == (0, 0), second.told()
    assert "its outputs are taken, nothing is computed again" in second.told()
    assert "resumed" not in second.told() and "120/120" not in second.told()
    made = clone.made()
    assert made == {path: undisturbed.made()[path] for path in made}
    assert WEIGHTS in made and clone.unfinished() == []
