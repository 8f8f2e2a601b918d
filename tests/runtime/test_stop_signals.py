"""Signals are collected, and end a process that waits for one that will never come."""

import os
import signal
import threading
import time

import pytest
import ranks
import torch
import torch.distributed

from facm.runtime import signals as stop
from facm.runtime.signals import StopSignals


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_are_collected_while_open_and_handlers_are_put_back(kind: int) -> None:
    before = signal.getsignal(kind)
    with StopSignals() as signals:
        assert signals.received == []
        os.kill(os.getpid(), kind)
        assert signals.received == [kind]
    assert signal.getsignal(kind) is before


def test_a_signal_that_was_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signals.received == []
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def waiting(patience_s: float, notice: bool) -> None:
    """Rank 0 waits for rank 1, which never comes, and is told to stop; rank 1 ends well once rank 0 is gone."""
    stop.HUNG_S = patience_s
    if int(os.environ["RANK"]):
        time.sleep(4 if notice else 60)
        return
    with StopSignals() as signals:
        if notice:
            signals.noticed()
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
        torch.distributed.barrier() if not notice else time.sleep(2)
        assert notice and signals.received == [signal.SIGTERM]


def test_a_process_that_waits_for_a_dead_one_ends_after_a_signal() -> None:
    start = time.monotonic()
    with pytest.raises(torch.multiprocessing.ProcessExitedException, match="process 0 terminated with exit code 143"):
        ranks.run(2, waiting, 1.0, False)
    assert time.monotonic() - start < 50, "rank 1 would sleep for a minute"


def test_a_process_that_has_noticed_its_signal_may_take_its_time() -> None:
    ranks.run(2, waiting, 0.5, True)
