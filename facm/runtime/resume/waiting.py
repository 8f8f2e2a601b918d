"""A process that waits for another one's run, and what it reports meanwhile."""

import time
from pathlib import Path
from typing import IO

from facm.runtime.log import say, span
from facm.runtime.resume.locks import Holder
from facm.runtime.resume.unfinished import Unfinished

TELL_S, AT_MOST_S = 60.0, 1800.0  # until it tells again: twice as long each time


class Waiting:
    """This process's place among those who wait for a run, and the `holder` it waits for."""

    def __init__(self, stage: str, folder: Path, joined: IO[str]):
        self.stage, self.folder, self.holder = stage, folder, Holder.of(folder)
        self._joined, self._began_s, self._pause_s = joined, time.monotonic(), TELL_S
        self._next_s = self._began_s + TELL_S
        say(
            f"{stage}: {self.holder} is at work on this very run ({Unfinished.of(folder)}): waiting to be given what "
            "it makes; Ctrl-C ends the waiting, not that run"
        )

    def tell(self) -> None:
        """Say how far the other is, if it is time to."""
        now_s = time.monotonic()
        if now_s < self._next_s:
            return
        self.holder = Holder.of(self.folder)  # another one of those who wait may have taken over
        self._pause_s = min(2 * self._pause_s, AT_MOST_S)
        self._next_s = now_s + self._pause_s
        waited = span(now_s - self._began_s)
        say(f"{self.stage}: waiting for {self.holder} for {waited} ({Unfinished.of(self.folder)})")

    def close(self) -> None:
        self._joined.close()
