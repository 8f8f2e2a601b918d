"""SIGINT, SIGTERM and SIGHUP as a request: training finishes its step, saves and ends, unless it hangs."""

import os
import signal
import threading
from types import TracebackType

from facm.runtime import dist

HUNG_S = 45.0  # after a signal, for a step in which the processes wait for each other


class StopSignals:
    """Collects them while open; `received`: their numbers so far.

    Where one of several processes has died, the others wait for it in a collective operation, and no handler written in
    Python runs. A thread that the signal wakes at once then ends this process: after HUNG_S without `noticed`.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self._noticed = threading.Event()

    def noticed(self) -> None:
        """The loop is about to save and end: from here on it may take its time."""
        self._noticed.set()

    def __enter__(self) -> "StopSignals":
        asked = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        kinds = [kind for kind in asked if signal.getsignal(kind) is not signal.SIG_IGN]  # as nohup sets it
        self._previous = {kind: signal.signal(kind, lambda number, _: self.received.append(number)) for kind in kinds}
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        if dist.world_size() > 1:
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._noticed.set()
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._write)  # ends the thread
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _watch(self) -> None:
        signals = os.read(self._read, 1)
        os.close(self._read)
        if signals and not self._noticed.wait(HUNG_S):
            os._exit(128 + signals[0])
